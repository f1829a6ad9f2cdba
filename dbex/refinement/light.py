"""The Bragg light of a solved lattice on its whole image: what it adds to the pixels of another lattice's boxes."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.objective import Objective
from dbex.refinement.predictions import Predictions, predict
from dbex.refinement.rounds import K_TAILS, Round, objective_for
from dbex.refinement.shoeboxes import Shoeboxes, counted
from dbex.still import Image, Still

#: A spot is drawn so many of its widths and this margin to each side, up to a number of pixels: beyond, 1e5 photons
#: leave less than a tenth of one in a pixel.
WIDTHS, MARGIN_PX, HALF_MAX = 5.0, 2, 30


def bragg_light(still: Still, found: Round, d_min: float) -> tuple[Image, ...]:
    """Photons, one array (slow, fast) a panel, of all reflections to `d_min` that the solved model predicts.

    A reflection whose spot or tail the fit has seen has the intensity that it found, with its prior; any other |F|².
    """
    map, x = found.objective.map, found.solution.x
    shapes = [panel.shape for panel in still.detector]
    light = tuple(np.zeros(shape, dtype=np.float32) for shape in shapes)
    spots = predict(map.models(torch.as_tensor(x)), still.amplitudes, d_min, K_TAILS, shapes)
    if not len(spots):
        return light
    at, objective = torch.as_tensor(x), objective_for(still, map, patches(spots, shapes), found.model_error, x)
    # without data nothing says which pixels can be taken whole
    objective = replace(objective, whole=None).prepared(at)
    boxes, weights = objective.boxes, objective.at_nodes(intensities(objective, found))
    photons = ((objective.profiles(at) * weights[boxes.box]).sum(1) * boxes.real).numpy()
    panel, slow, fast = (a.numpy() for a in (boxes.panel[boxes.box], boxes.slow, boxes.fast))
    for i in np.unique(panel):
        mine = panel == i
        np.add.at(light[i], (slow[mine], fast[mine]), photons[mine])
    return light


def intensities(objective: Objective, found: Round) -> Tensor:
    """Intensities (m,) of the objective's reflections: those of the solved round where it has them, else |F|²."""
    known = found.objective.boxes.reflections
    sought = objective.boxes.reflections
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, sought, sorter=order), len(known) - 1)]
    has = torch.as_tensor(known[place] == sought)
    return torch.where(has, found.state.local.intensity[torch.as_tensor(place)], objective.prior.mean)


def patches(spots: Predictions, shapes: list[tuple[int, int]]) -> Shoeboxes:
    """A box around each spot with all pixels that its light reaches on its panel, whomever they belong to; nothing was
    measured in them."""
    half = np.clip(np.ceil(WIDTHS * spots.sigma_px.max(1)).astype(np.int64) + MARGIN_PX, 1, HALF_MAX)
    order = np.argsort(half, kind="stable")
    spots, half = spots.select(order), half[order]
    width = 2 * half + 1
    corner = np.floor(spots.xy_px).astype(np.int64) - half[:, None]
    row, place = counted(width**2)
    fast, slow = corner[row, 0] + place % width[row], corner[row, 1] + place // width[row]
    limit = np.array(shapes, dtype=np.int64)[spots.panel][row]
    on_panel = (slow >= 0) & (fast >= 0) & (slow < limit[:, 0]) & (fast < limit[:, 1])
    box, slow_px, fast_px = (torch.as_tensor(a[on_panel]) for a in (row, slow, fast))
    zero = torch.zeros(len(box), dtype=torch.float64)
    far = corner + width[:, None]
    return Shoeboxes(
        torch.as_tensor(spots.panel),
        torch.ones_like(box, dtype=torch.bool),
        box,
        slow_px,
        fast_px,
        torch.ones(len(box), dtype=torch.bool),
        zero,
        zero,
        zero,
        torch.ones_like(box),
        torch.zeros(len(box), 3, dtype=torch.float64),
        np.stack([corner[:, 0], far[:, 0], corner[:, 1], far[:, 1]], -1),
        spots.index,
        torch.arange(len(spots))[:, None],
        {},
    )
