"""How the covariance of a node follows from what it is made of, written out; tests prove it against autograd.

With t = q + s0/λ, s1 = t/|t|, c = s1.n and R = |D/c|, what a panel adds to S is (docs/physics.md, section 3)

    Σ_a k_a w_a w_aᵀ,    w_a = (a - (a.s1) s1)/(λ R),    a = fast, slow, normal

with k the variances of a pixel's edges and of the depth of absorption, which follows |c|. A symmetric matrix is six
numbers in the order of SIX.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Causes, Layer, Quadrature, Quadratures, crossing, pixel_variance, sensor_layers
from nanobrag_torch.rotation import cross_matrix
from nanobrag_torch.spread import outer
from nanobrag_torch.tensors import as_tensor

#: Pairs of axes in the order of the six numbers of a symmetric matrix, and how often each stands in the nine.
SIX = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
TWICE = (1.0, 2.0, 2.0, 1.0, 2.0, 1.0)


@dataclass(frozen=True)
class NodeSlopes:
    """Derivatives of the six numbers of S (layers, m, 6, ...): by q (3); and by what is shared (22), the rotations' six
    numbers, the radial variance, the wavelength and s0, then fast, slow, normal, distance and point spread of the
    panel. Those by the covariances of size and divergence are 1."""

    q: Tensor
    shared: Tensor


@cache
def _places(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and place among the nine (6,) of the six numbers of a symmetric matrix."""
    rows, columns = (torch.as_tensor(axis, device=device) for axis in zip(*SIX, strict=True))
    return rows, columns, 3 * rows + columns


def six_of_nine(numbers: Tensor, dim: int = -1) -> Tensor:
    """The six numbers of symmetric matrices whose nine are along that axis."""
    return numbers.index_select(dim, _places(numbers.device)[2])


def six(matrix: Tensor) -> Tensor:
    """The six numbers (..., 6) of symmetric matrices (..., 3, 3)."""
    return six_of_nine(matrix.flatten(-2))


def node_slopes(of: Causes, panels: Panels, q: Tensor, rule: Quadrature | Quadratures) -> NodeSlopes:
    """The slopes of nodes at q (m, 3), whose causes and panels are arranged as they are."""
    # every slope is H + Hᵀ: rows of H, nine numbers each, are brought to the six together
    foot = _foot(of, panels, q)
    edge = pixel_variance(panels, ..., rule)
    by_rotations, by_radial, spread_by_q = _spread(of, q)
    wavelength = of.wavelength[:, None, None]
    layers = []
    for layer in sensor_layers(panels, rule.layers):
        by_s1, by_ln_scale, of_panel = _layer(foot, panels, edge, layer)
        by_toward = foot.across @ by_s1
        by_s0 = by_toward / wavelength
        by_wavelength = -(of.s0[:, None] @ by_s0 + by_ln_scale) / wavelength
        by_q = spread_by_q + by_toward
        rows = torch.cat([by_q, by_rotations, by_radial, by_wavelength, by_s0, of_panel], 1)
        layers.append(rows @ _both_ways(q.dtype, q.device))
    return NodeSlopes(*torch.stack(layers).transpose(-1, -2).split((3, 22), -1))


@cache
def _both_ways(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What takes the nine numbers of H to the six of H + Hᵀ (9, 6)."""
    each = torch.eye(9, dtype=dtype, device=device).view(9, 3, 3)
    return six(each + each.transpose(1, 2))


@cache
def _levers(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The three matrices [e]x (3, 3, 3) of the axes e."""
    return cross_matrix(torch.eye(3, dtype=dtype, device=device))


@dataclass(frozen=True)
class _Foot:
    """Where nodes meet their panels: s1 (m, 3), (1 - s1 s1ᵀ)/|t| (m, 3, 3), c, 1/(λ R) and |t| (m,), the panels' axes a
    and w (m, 3, 3), a row each, and a.s1 (m, 3)."""

    s1: Tensor
    across: Tensor
    cosine: Tensor
    scale: Tensor
    length: Tensor
    axes: Tensor
    along: Tensor
    w: Tensor


def _foot(of: Causes, panels: Panels, q: Tensor) -> _Foot:
    toward = q + of.s0 / of.wavelength[:, None]
    length = torch.linalg.vector_norm(toward, dim=-1)
    s1 = toward / length[:, None]
    across = (torch.eye(3, dtype=q.dtype, device=q.device) - outer(s1)) / length[:, None, None]
    axes = torch.stack([panels.fast, panels.slow, panels.normal], 1)
    along = (axes @ s1[..., None]).squeeze(-1)
    cosine = along[:, 2]
    scale = torch.abs(cosine / panels.distance) / of.wavelength
    w = (axes - along[..., None] * s1[:, None]) * scale[:, None, None]
    return _Foot(s1, across, cosine, scale, length, axes, along, w)


def _spread(of: Causes, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of what crystal and beam add: by the rotations (m, 6, 9), the radial variance (m, 1, 9) and q (m, 3, 9),
    a row of H for what they are by."""
    lever = cross_matrix(q)
    arms = lever.transpose(1, 2)
    rows, columns, _ = _places(q.device)
    first = arms.index_select(1, rows) * (0.5 * as_tensor(TWICE, q))[:, None]
    by_rotations = first[..., None] * arms.index_select(1, columns)[:, :, None]
    by_q = _levers(q.dtype, q.device) @ (of.spread.rotations @ arms)[:, None]
    # radial e qᵀ, e the axes
    by_q = by_q + torch.diag_embed((of.spread.radial[:, None] * q)[..., None].expand(-1, -1, 3), dim1=1, dim2=2)
    return by_rotations.flatten(2), 0.5 * outer(q).flatten(1)[:, None], by_q.flatten(2)


def _layer(foot: _Foot, panels: Panels, edge: Tensor, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of what the panel adds by way of one layer of its sensor: by s1 (m, 3, 9), by ln of 1/(λ R) (m, 1, 9) and
    by the panel (m, 11, 9), a row of H for what they are by."""
    crossed = crossing(panels, layer, ..., torch.abs(foot.cosine))
    weighed = torch.stack([edge, edge, crossed.variance()], 1)[..., None] * foot.w
    by_ln_scale = (weighed.transpose(1, 2) @ foot.w).flatten(1)[:, None]
    by_depth = 0.5 * crossed.variance_slope()[:, None] * outer(foot.w[:, 2]).flatten(1)
    by_cosine = (by_ln_scale + by_depth[:, None]) / foot.cosine[:, None, None]
    # w_a follows s1 by -(a_k s1 + (a.s1) e_k)/(λ R), and a by (1 - s1 s1ᵀ)/(λ R)
    scale = foot.scale[:, None, None]
    together = scale * (foot.axes.transpose(1, 2) @ weighed)
    lean = scale * (foot.along[:, None] @ weighed)
    by_s1 = together[..., None] * foot.s1[:, None, None]
    by_s1 = by_s1 + torch.diag_embed(lean.transpose(1, 2).expand(-1, -1, 3), dim1=1, dim2=2)
    by_s1 = foot.axes[:, 2, :, None] * by_cosine - by_s1.flatten(2)
    turn = (scale * foot.length[:, None, None]) * foot.across
    by_axes = (turn[:, None, :, :, None] * weighed[:, :, None, None]).flatten(1, 2).flatten(2)
    by_axes[:, 6:] += foot.s1[..., None] * by_cosine
    by_distance = -by_ln_scale / panels.distance[:, None, None]
    edges = foot.w[:, :2]
    by_point_spread = panels.point_spread[:, None, None] * (edges.transpose(1, 2) @ edges)
    return by_s1, by_ln_scale, torch.cat([by_axes, by_distance, by_point_spread.flatten(1)[:, None]], 1)
