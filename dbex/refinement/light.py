"""The Bragg light of a solved lattice on its whole image: what it adds to the pixels of another lattice's boxes."""

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.groups import FIRST_NODE
from dbex.refinement.objective import Objective
from dbex.refinement.rounds import K_TAILS, Round, objective_for
from dbex.refinement.shoeboxes import Predictions, Shoeboxes, predict
from dbex.still import Image, Still
from nanobrag_torch.fused import BoxPixels

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
    objective = objective_for(still, map, patches(spots, shapes), found.model_error, x)
    weights = objective.at_nodes(intensities(objective, found))
    inside = objective.boxes.inside
    columns_of = objective.columns(objective.at(torch.as_tensor(x)))
    for group, columns in zip(objective.groups.groups, columns_of, strict=True):
        photons = (weights[group.part, None, : group.reach] @ columns[:, FIRST_NODE:])[:, 0]
        here = inside[group.part, : group.pixels]
        panel = group.where.panel[:, None].expand_as(here)[here].numpy()
        slow, fast = (a[here].long().numpy() for a in (group.where.slow, group.where.fast))
        for i in np.unique(panel):
            mine = panel == i
            np.add.at(light[i], (slow[mine], fast[mine]), photons[here].numpy()[mine])
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
    spots, half = spots.select(order), half[order, None]
    span = np.arange(-half.max(), half.max() + 1)
    up, along = (a.ravel()[None] for a in np.meshgrid(span, span, indexing="ij"))
    centre = np.floor(spots.xy_px).astype(np.int64)
    slow, fast = centre[:, 1:] + up, centre[:, :1] + along
    limit = np.array(shapes, dtype=np.int64)[spots.panel]
    within = (np.abs(up) <= half) & (np.abs(along) <= half) & (slow >= 0) & (fast >= 0)
    within &= (slow < limit[:, :1]) & (fast < limit[:, 1:])
    first = np.argsort(~within, axis=1, kind="stable")
    slow, fast, inside = (torch.as_tensor(np.take_along_axis(a, first, 1)) for a in (slow, fast, within))
    zero = torch.zeros(slow.shape, dtype=torch.float64)
    bbox = np.stack(
        [
            *(centre[:, 0] + side for side in (-half[:, 0], half[:, 0] + 1)),
            *(centre[:, 1] + side for side in (-half[:, 0], half[:, 0] + 1)),
        ],
        -1,
    )
    return Shoeboxes(
        BoxPixels(torch.as_tensor(spots.panel), slow, fast),
        inside,
        inside,
        zero,
        zero,
        zero,
        torch.zeros(*slow.shape, 3, dtype=torch.float64),
        bbox,
        spots.index,
        torch.arange(len(spots))[:, None],
        {},
    )
