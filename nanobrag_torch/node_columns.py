"""How nodes follow the parameters: by the few numbers that all nodes share, so that many parameters cost no more.

The ten numbers of a node follow from its hkl, from the numbers of its component of the crystal and of the beam, and
from those of its panel: node by node by the slopes of node_slopes.py. The derivatives of the shared numbers by the
parameters are small.
"""

from itertools import accumulate

import torch
from torch import Tensor

from nanobrag_torch.fused import NodeColumns
from nanobrag_torch.node_slopes import LN_SLOPES, SLOPES, TWICE, node_pass, six_of_nine, slope_pass
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Causes, Nodes, Quadrature, Quadratures
from nanobrag_torch.tensors import as_tensor


def cause_rows(of: Causes) -> Tensor:
    """The causes of the nodes of c components as rows of numbers (c, CAUSES), from those of which the ln scale (c,) has
    a number for each and the others have one for each or one for all."""
    spread, count = of.spread, len(of.ln_scale)
    matrices = [matrix.reshape(-1, 9) for matrix in (of.A, spread.size, spread.rotations, spread.divergence)]
    vectors = [vector.reshape(-1, 3) for vector in (of.s0, of.offset)]
    numbers = [number.reshape(-1, 1) for number in (spread.radial, of.wavelength, of.b_factor, of.ln_scale)]
    parts = [*matrices, *vectors, *numbers]
    return torch.cat([part if len(part) == count else part.expand(count, part.shape[1]) for part in parts], 1)


def place_rows(panels: Panels) -> Tensor:
    """What nodes see of panels that can change, as rows of numbers (n panels, 11): fast, slow, normal, distance, point
    spread."""
    return place_numbers((panels.fast, panels.slow, panels.normal), (panels.distance, panels.point_spread))


def place_numbers(vectors: tuple[Tensor, Tensor, Tensor], numbers: tuple[Tensor, Tensor]) -> Tensor:
    """The same rows (n panels, 11, ...) from the three vectors (n panels, 3, ...) and the two numbers (n panels, ...),
    or the derivatives of all."""
    return torch.cat([*vectors, torch.stack(numbers, 1)], 1)


def part_nodes(
    components: Tensor, component: Tensor, panels: Panels, hkl: Tensor, panel: Tensor, rule: Quadrature | Quadratures
) -> Nodes:
    """The nodes hkl (m, 3) on panels (m,), each of the component (m,) whose causes are that row of `components`."""
    causes, places, numbers = _gathered(components, component, panels, hkl, panel, rule)
    found = node_pass(causes, places, numbers, rule=rule.layers)
    covariance = found[4:].view(rule.layers, 3, 3, -1).permute(0, 3, 1, 2)
    return Nodes(found[:3].T.contiguous(), covariance.contiguous(), found[3])


def node_columns(
    components: Tensor,
    component: Tensor,
    panels: Panels,
    hkl: Tensor,
    panel: Tensor,
    rule: Quadrature | Quadratures,
    by_x: tuple[Tensor, Tensor | None],
) -> NodeColumns:
    """Derivatives of these nodes, whose components (m,) stand in order.

    `by_x` are the derivatives of the components (c, CAUSES, n) and of place_rows (n panels, 11, n), None where they
    stay.
    """
    of_components, of_panels = by_x
    n, m = of_components.shape[2], len(hkl)
    causes, places, numbers = _gathered(components, component, panels, hkl, panel, rule)
    slopes = slope_pass(causes, places, numbers, rule=rule.layers)
    of_S, of_ln = slopes[:-LN_SLOPES].view(rule.layers, SLOPES, 6, m), slopes[-LN_SLOPES:]
    of_shared, added = _shared(of_components), _added(of_components)
    if of_panels is not None:
        of_panels = of_panels.roll(2, 1)
        if len(of_panels) == 1:
            of_shared = torch.cat([of_shared, of_panels.expand(len(of_shared), -1, -1)], 1)
    size = of_shared.shape[1]
    used = _followed(of_shared)
    by_q, by_ln = causes.new_empty(m, 3, n), causes.new_empty(m, n)
    by_S = causes.new_empty(rule.layers, m, 6, n)
    counts = torch.bincount(component, minlength=len(components)).tolist()
    ends = accumulate(counts)
    for end, count, by, shared, more in zip(ends, counts, of_components, of_shared, added, strict=True):
        own = slice(end - count, end)
        by_q[own] = _q_columns(causes[:, own], numbers[:, own], by)
        by_ln[own] = torch.addmm(by[45], of_ln[:, own].T, torch.cat([by[39:42], by[:9], by[44:45]]))
        for layer, columns in zip(of_S, by_S, strict=True):
            # a product for each of the six numbers: (6, m, slopes) @ (slopes, n)
            each = layer[used, :, own].permute(1, 2, 0)
            columns[own] = torch.baddbmm(more[:, None], each, shared[used].expand(6, -1, -1)).transpose(0, 1)
    if of_panels is not None and len(of_panels) > 1:
        by_S = by_S + of_S[:, size:].permute(0, 3, 2, 1) @ of_panels[panel]
    return NodeColumns(by_q, by_S, by_ln)


def _followed(of_shared: Tensor) -> slice:
    """Where among shared numbers, whose derivatives are (c, numbers, n), those stand that move, and what is between."""
    moved = torch.nonzero((of_shared != 0).any(2).any(0))[:, 0].tolist()
    return slice(moved[0], moved[-1] + 1) if moved else slice(0)


def _q_columns(causes: Tensor, hkl: Tensor, by: Tensor) -> Tensor:
    """Derivatives of q (m, 3, n) of the nodes hkl (3, m) of one component, whose causes (CAUSES, m) have the
    derivatives `by` (CAUSES, n)."""
    n = by.shape[1]
    of_basis = by[:9].view(3, 3, n).transpose(0, 1).reshape(3, 3 * n)
    by_q = ((hkl + causes[39:42]).T @ of_basis).view(-1, n)
    return by_q.addmm(causes[:9].T.reshape(-1, 3), by[39:42]).view(-1, 3, n)


def _shared(by: Tensor) -> Tensor:
    """Of derivatives of causes (c, CAUSES, n) those that the first of the slopes of S are by (c, 23, n)."""
    rotations = six_of_nine(by[:, 18:27], 1) * as_tensor(TWICE, by)[:, None]
    return torch.cat([by[:, 36:42], by[:, :9], rotations, by[:, 42:44]], 1)


def _added(by: Tensor) -> Tensor:
    """Of derivatives of causes (c, CAUSES, n) those of the six numbers that are added to S (c, 6, n)."""
    return six_of_nine(by[:, 9:18] + by[:, 27:36], 1)


def _gathered(
    components: Tensor, component: Tensor, panels: Panels, hkl: Tensor, panel: Tensor, rule: Quadrature | Quadratures
) -> tuple[Tensor, Tensor, Tensor]:
    """What nodes are made of as a pass takes it: causes (CAUSES, m), the numbers of their panels and how their pixels
    are sampled (PLACE, m), and hkl (3, m)."""
    numbers = (panels.distance, panels.point_spread, panels.pixel_size, panels.thickness, panels.mu)
    rows = torch.stack([*numbers, panels.parallax.to(panels.mu.dtype)])
    of_panels = torch.cat([panels.fast.T, panels.slow.T, panels.normal.T, rows])
    oversample = as_tensor(rule.oversample, rows).expand(1, len(panel))
    places = torch.cat([of_panels[:, panel], oversample])
    return components.T[:, component], places, hkl.T.to(rows.dtype)
