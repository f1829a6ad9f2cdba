"""Esds from the data themselves: what each parameter would become if a part of the boxes were left out.

A model that does not describe the crystal leaves residuals that neighbouring boxes share, and formal esds know nothing
of them. Boxes are grouped by sector of the detector and shell of resolution; leaving out a group moves the solution by
one Gauss-Newton step, which the normal equations of its boxes give without any new simulation (Efron & Stein 1981).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.groups import DATA, FIRST_NODE
from dbex.refinement.tables import Solved
from dbex.still import Floats, Ints

#: Sectors of azimuth times shells of resolution: enough groups for an esd to 15 %, few enough for each to hold spots.
SECTORS, SHELLS = 8, 3
#: Of what a box's pixels are linear in: the plane's basis and the own profile, then room for the residual.
LINEAR = [*range(DATA), FIRST_NODE, DATA]
#: A jackknife of so many groups scatters by 15 %, and more where few boxes carry most: it is quoted beyond three times
#: that.
QUOTED_BEYOND = 1.5


def jackknife_covariance(solved: Solved, matrix: Floats, gradient: Floats, places: Sequence[int]) -> Floats:
    """Covariance of the numbers of x at `places` by leaving out one group of boxes after the other, the others held;
    `matrix` (n, n) and `gradient` (n,) are those of the whole."""
    gradients, matrices = box_contributions(solved)
    whole, downhill, among = matrix[np.ix_(places, places)], gradient[places], np.ix_(places, places)
    group = groups(solved)
    names = np.unique(group)
    steps = np.array(
        [
            np.linalg.solve(
                whole - matrices[group == name].sum(0)[among], downhill - gradients[group == name].sum(0)[places]
            )
            for name in names
        ]
    )
    away = steps - steps.mean(0)
    return (len(names) - 1) / len(names) * away.T @ away


def larger_esds(formal: Floats, jackknife: Floats, inflation: float) -> Floats:
    """The esds (n,) to quote: formal ones with the noise that the model leaves, or those of the jackknife where clearly
    larger."""
    return np.where(jackknife > QUOTED_BEYOND * inflation * formal, jackknife, inflation * formal)


def quoted_covariance(covariance: Floats, empirical: Floats, inflation: float) -> Floats:
    """The formal covariance (n, n) with its correlations and the esds to quote."""
    formal = np.sqrt(np.diag(covariance))
    factor = larger_esds(formal, np.sqrt(np.diag(empirical)), inflation) / formal
    return covariance * np.outer(factor, factor)


def box_contributions(solved: Solved) -> tuple[Floats, Floats]:
    """The downhill gradient (n boxes, n) and Gauss-Newton matrix (n boxes, n, n) of each box, its plane and its own
    intensity eliminated."""
    objective, local, boxes = solved.objective, solved.local, solved.objective.boxes
    w, n = objective.weights(solved.variance), len(objective.map)
    residual = boxes.data - local.background - local.bragg
    crossed = torch.zeros(len(boxes), len(LINEAR), n, dtype=w.dtype)
    matrices = torch.zeros(len(boxes), n, n, dtype=w.dtype)
    derivatives = objective.derivatives(solved.x, objective.at_nodes(local.intensity), torch.sqrt(w))
    by_group = zip(derivatives, objective.groups.of_reached(local.columns), strict=True)
    for (group, found, here), columns in by_group:
        linear = columns[:, LINEAR] * here[:, None]
        linear[:, -1] = group.of(residual) * here
        of_sums = found.sums.transpose(1, 2)
        crossed.index_add_(0, group.box, found.times(linear @ of_sums))
        matrices.index_add_(0, group.box, found.times(found.times(found.sums @ of_sums).transpose(1, 2)))
    cross = crossed[:, :-1]
    block = objective.gram(local.columns, w)[:, LINEAR[:-1]][..., LINEAR[:-1]]
    block[:, -1, -1] += objective.prior.sd[boxes.node[:, 0]] ** -2.0
    matrices -= cross.transpose(1, 2) @ _solved(block, cross)
    return crossed[:, -1].numpy(), matrices.numpy()


def _solved(block: Tensor, cross: Tensor) -> Tensor:
    """block⁻¹ cross, the block scaled first: an intensity's curvature and a plane's differ by many powers of ten."""
    scale = torch.rsqrt(block.diagonal(dim1=1, dim2=2))
    scaled = block * scale[:, :, None] * scale[:, None, :]
    return scale[:, :, None] * torch.linalg.solve(scaled, scale[:, :, None] * cross)


def groups(solved: Solved) -> Ints:
    """The group (n boxes,) of each box: shells of equal numbers of boxes, each cut into sectors of azimuth."""
    objective = solved.objective
    models = objective.map.models(solved.x)
    boxes = objective.boxes
    centre = torch.tensor(boxes.bbox, dtype=solved.x.dtype)
    panel = boxes.panel
    size = models.panels.pixel_size[panel]
    at = (
        models.panels.origin[panel]
        + (centre[:, :2].mean(1) * size)[:, None] * models.panels.fast[panel]
        + (centre[:, 2:].mean(1) * size)[:, None] * models.panels.slow[panel]
    )
    fast, slow, normal = objective.map.frame.axes[0]
    across = at - at @ normal[:, None] * normal
    azimuth = torch.atan2(across @ slow, across @ fast).numpy()
    radius = torch.linalg.vector_norm(across, dim=1).numpy()
    shell = np.searchsorted(np.quantile(radius, np.arange(1, SHELLS) / SHELLS), radius)
    group = np.empty(len(radius), dtype=np.int64)
    for number in range(SHELLS):
        mine = shell == number
        cuts = np.quantile(azimuth[mine], np.arange(1, SECTORS) / SECTORS)
        group[mine] = number * SECTORS + np.searchsorted(cuts, azimuth[mine])
    return group
