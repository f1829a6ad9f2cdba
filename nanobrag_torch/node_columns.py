"""How nodes follow the parameters: by the few numbers that all nodes share, so that many parameters cost no more.

The ten numbers of a node follow from its hkl, from the numbers of its component of the crystal and of the beam, and
from those of its panel. Their derivatives by those are taken node by node, with one reverse pass for each of the ten;
the derivatives of the shared numbers by the parameters are small.
"""

from dataclasses import replace

import torch
from torch import Tensor

from nanobrag_torch.fused import SIX, NodeColumns
from nanobrag_torch.jacobian import rowwise_jacobian
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Causes, Nodes, Quadrature, nodes_from
from nanobrag_torch.spread import Spread

#: Places of the six numbers of a symmetric matrix in its nine.
SYMMETRIC = (0, 1, 2, 1, 3, 4, 2, 4, 5)
#: Numbers of a component's causes.
CAUSES = 46


def cause_row(of: Causes) -> Tensor:
    """The causes of a component's nodes as a row of numbers (CAUSES,)."""
    spread = of.spread
    matrices = (of.A, spread.size, spread.rotations, spread.divergence)
    numbers = (spread.radial, of.wavelength, of.b_factor, of.ln_scale)
    return torch.cat([*(matrix.flatten() for matrix in matrices), of.s0, of.offset, torch.stack(numbers)])


def place_rows(panels: Panels) -> Tensor:
    """What nodes see of panels that can change, as rows of numbers (n panels, 11): fast, slow, normal, distance, point
    spread."""
    numbers = torch.stack([panels.distance, panels.point_spread], 1)
    return torch.cat([panels.fast, panels.slow, panels.normal, numbers], 1)


def part_nodes(
    components: Tensor, component: Tensor, panels: Panels, hkl: Tensor, panel: Tensor, rule: Quadrature
) -> Nodes:
    """The nodes hkl (m, 3) on panels (m,), each of the component (m,) whose causes are that row of `components`."""
    return nodes_from(_causes(components[component]), panels, hkl, panel, rule)


def node_columns(
    components: Tensor,
    component: Tensor,
    panels: Panels,
    hkl: Tensor,
    panel: Tensor,
    rule: Quadrature,
    by_x: tuple[Tensor, Tensor | None],
) -> NodeColumns:
    """Derivatives of these nodes, whose components (m,) stand in order.

    `by_x` are the derivatives of the components (c, CAUSES, n) and of place_rows (n panels, 11, n), None where they
    stay.
    """
    mine = Panels(**{name: value[panel] for name, value in vars(panels).items()})
    rows = torch.cat([components[component], place_rows(mine)], 1)

    def numbers(rows: Tensor) -> Tensor:
        at = nodes_from(_causes(rows), _moved(mine, rows[:, CAUSES:]), hkl, ..., rule)
        six = torch.stack([at.covariance[:, :, i, j] for i, j in SIX], -1)
        return torch.cat([at.q, at.ln_amplitude[:, None], six.transpose(0, 1).flatten(1)], 1)

    slopes = rowwise_jacobian(numbers, rows)
    of_components, of_panels = by_x
    each = torch.split(slopes[..., :CAUSES], torch.bincount(component, minlength=len(components)).tolist())
    columns = torch.cat([part @ by for part, by in zip(each, of_components, strict=True)])
    if of_panels is not None:
        columns = columns + slopes[..., CAUSES:] @ of_panels[panel]
    six = columns[:, 4:].unflatten(1, (-1, 6)).transpose(0, 1)
    covariance = torch.stack([six[:, :, i] for i in SYMMETRIC], 2).unflatten(2, (3, 3))
    return NodeColumns(columns[:, :3], covariance, columns[:, 3])


def _causes(rows: Tensor) -> Causes:
    """Causes of each of n nodes from its row of numbers."""
    A, size, rotations, divergence = (rows[:, 9 * i : 9 * i + 9].unflatten(1, (3, 3)) for i in range(4))
    radial, wavelength, b_factor, ln_scale = rows[:, 42:CAUSES].unbind(1)
    spread = Spread(size, rotations, divergence, radial)
    return Causes(A, spread, rows[:, 36:39], rows[:, 39:42], wavelength, b_factor, ln_scale)


def _moved(panels: Panels, rows: Tensor) -> Panels:
    """Panels, one for each node, as rows of numbers (n, 11) have them."""
    places = {"fast": rows[:, :3], "slow": rows[:, 3:6], "normal": rows[:, 6:9]}
    return replace(panels, **places, distance=rows[:, 9], point_spread=rows[:, 10])
