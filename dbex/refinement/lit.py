"""Which nodes light which pixels: most pixels of a box see its background alone, few the light of neighbours.

A pixel's model holds its box's nodes up to the last that lights it, and the own one all over its spot, however faint:
there its intensity is measured. What is left out is less than the noise by so much that no parameter notices: a misfit
moves none by more than √Σ (light²/variance) of its esd.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from dbex.refinement.groups import in_tiles
from dbex.refinement.objective import Objective
from dbex.refinement.shoeboxes import Shoeboxes
from dbex.refinement.summation import FOREGROUND

#: Photons that a neighbour must send to some pixel of a box to be part of its model.
FAINT = 0.01
#: And to a pixel, were its light so much wider than it is: the model may grow and move while the boxes stay.
DARK, WIDER = 1e-3, 1.15
#: A fit whose pixels do not hold so much of its light, which moves χ² by about as much, is solved again with it.
LEFT_OUT = 1.0


def lit_boxes(objective: Objective, x: Tensor, faint: float = FAINT) -> Shoeboxes:
    """The boxes at x without neighbours that send a box no light worth naming, and each pixel without nodes that would
    leave it dark even if they were wider and, the box's own, as bright as noise can make them."""
    boxes, profiles = objective.boxes, all_profiles(objective, x)
    most = boxes.largest(profiles)
    told = boxes.sums(profiles[:, 0] ** 2 * objective.weights(objective.first_variance()))
    noise = torch.where(told > 0, torch.rsqrt(told), torch.zeros_like(told))
    bright = objective.bright + pad(noise[:, None], (0, most.shape[1] - 1))
    photons = bright * most
    seen = (boxes.node >= 0) & (photons >= faint)
    seen[:, 0] = True
    # the logarithm of a Gaussian goes with the inverse of its variance
    least = most * (DARK / photons) ** WIDER**2
    # what a spot's own pixels say of it does not hang on how bright it was thought to be
    least[:, 0] = torch.minimum(least[:, 0], FOREGROUND * most[:, 0])
    return boxes.reached_by(seen, (profiles > least[boxes.box]) & seen[boxes.box])


def all_profiles(objective: Objective, x: Tensor) -> Tensor:
    """Profiles (N, k) of the nodes of every pixel's box at x, also where they do not reach the pixel."""
    boxes = objective.boxes
    every = (boxes.node >= 0).sum(1)[boxes.box]
    if torch.equal(every, boxes.reach):
        return objective.profiles(x)
    return replace(objective, boxes=replace(boxes, reach=every), grouping=None).prepared(x).profiles(x)


def light_left_out(objective: Objective, x: Tensor, intensity: Tensor, variance: Tensor) -> float:
    """Σ (light²/variance) of the light that nodes of these intensities (m,) send at x to pixels of variances (N,) whose
    model does not hold them: no parameter is off by more than the root of it, in esds."""
    boxes, profiles = objective.boxes, all_profiles(objective, x)
    beyond = torch.arange(profiles.shape[1]) >= boxes.reach[:, None]
    light = (profiles * objective.at_nodes(intensity)[boxes.box] * beyond).sum(1)
    return float((light**2 / variance)[boxes.used].sum())


def lit_anew(objective: Objective, x: Tensor) -> Objective:
    """The same boxes and nodes, each pixel with those that light it at x; pixels count in full again."""
    whole = np.zeros(len(objective.boxes), dtype=bool) if objective.whole is None else objective.whole
    boxes = in_tiles(lit_boxes(objective, x, faint=0.0), whole)
    return replace(objective, boxes=boxes, weight=torch.ones_like(boxes.data)).prepared(x)
