"""How nodes follow the parameters: by the few numbers that all nodes share, so that many parameters cost no more.

The ten numbers of a node follow from its hkl, from the numbers of its component of the crystal and of the beam, and
from those of its panel: node by node by the slopes of node_slopes.py. The derivatives of the shared numbers by the
parameters are small.
"""

import torch
from torch import Tensor

from nanobrag_torch.fused import NodeColumns
from nanobrag_torch.node_slopes import node_slopes, six_of_nine
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Causes, Nodes, Quadrature, Quadratures, nodes_from
from nanobrag_torch.spread import Spread

#: Numbers of a component's causes.
CAUSES = 46


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
    return nodes_from(_causes(components[component]), panels, hkl, panel, rule)


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
    of = _causes(components[component])
    mine = Panels(**{name: value[panel] for name, value in vars(panels).items()})
    of_components, of_panels = by_x
    counts = torch.bincount(component, minlength=len(components)).tolist()
    h = hkl + of.offset
    q = (of.A * h[:, None]).sum(-1)
    slopes = node_slopes(of, mine, q, rule)
    parts = zip(of_components, *(torch.split(a, counts) for a in (h, of.A, of.b_factor, q)), strict=True)
    of_crystal = [_crystal_columns(*part) for part in parts]
    by_q, by_ln_amplitude = (torch.cat(columns) for columns in zip(*of_crystal, strict=True))
    of_shared = _shared(of_components)
    if of_panels is not None and len(of_panels) == 1:
        of_shared = torch.cat([of_shared, of_panels.expand(len(of_shared), -1, -1)], 1)
    size, added, layers = of_shared.shape[1], _added(of_components), []
    for by_place, by_shared in zip(slopes.q, slopes.shared, strict=True):
        each = zip(torch.split(by_shared[..., :size], counts), of_shared, added, strict=True)
        columns = torch.cat([part @ by + more for part, by, more in each]) + by_place @ by_q
        if of_panels is not None and len(of_panels) > 1:
            columns = columns + by_shared[..., size:] @ of_panels[panel]
        layers.append(columns)
    return NodeColumns(by_q, torch.stack(layers), by_ln_amplitude)


def _crystal_columns(by: Tensor, h: Tensor, A: Tensor, b_factor: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of q (m, 3, n) and of the ln amplitudes (m, n) of the nodes of one component, whose causes have the
    derivatives `by` (CAUSES, n)."""
    n = by.shape[1]
    of_basis = by[:9].view(3, 3, n).transpose(0, 1).reshape(3, 3 * n)
    by_q = (h @ of_basis).view(-1, 3, n) + A @ by[39:42]
    by_length = (q[:, None] @ by_q).squeeze(1)
    return by_q, by[45] - b_factor[:, None] * by_length - 0.5 * (q**2).sum(-1, keepdim=True) * by[44]


def _shared(by: Tensor) -> Tensor:
    """Of derivatives of causes (c, CAUSES, n) those that the first of `NodeSlopes.shared` are for (c, 11, n)."""
    return torch.cat([six_of_nine(by[:, 18:27], 1), by[:, 42:44], by[:, 36:39]], 1)


def _added(by: Tensor) -> Tensor:
    """Of derivatives of causes (c, CAUSES, n) those of the six numbers that are added to S (c, 6, n)."""
    return six_of_nine(by[:, 9:18] + by[:, 27:36], 1)


def _causes(rows: Tensor) -> Causes:
    """Causes of each of n nodes from its row of numbers."""
    A, size, rotations, divergence = (rows[:, 9 * i : 9 * i + 9].unflatten(1, (3, 3)) for i in range(4))
    radial, wavelength, b_factor, ln_scale = rows[:, 42:CAUSES].unbind(1)
    spread = Spread(size, rotations, divergence, radial)
    return Causes(A, spread, rows[:, 36:39], rows[:, 39:42], wavelength, b_factor, ln_scale)
