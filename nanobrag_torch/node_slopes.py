"""How the covariance of a node follows from what it is made of, written out; tests prove it against autograd.

With t = q + s0/λ, s1 = t/|t|, c = s1.n and R = |D/c|, what a panel adds to S is (docs/physics.md, section 3)

    Σ_a k_a w_a w_aᵀ,    w_a = (a - (a.s1) s1)/(λ R),    a = fast, slow, normal

with k the variances of a pixel's edges and of the depth of absorption, which follows |c|. A symmetric matrix is six
numbers in the order of SIX.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Causes, Layer, Quadrature, Quadratures, layer_depth, pixel_variance, sensor_layers
from nanobrag_torch.rotation import cross_matrix
from nanobrag_torch.tensors import as_tensor, dot

#: Pairs of axes in the order of the six numbers of a symmetric matrix, and how often each stands in the nine.
SIX = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
TWICE = (1.0, 2.0, 2.0, 1.0, 2.0, 1.0)
ROWS, COLUMNS = (list(places) for places in zip(*SIX, strict=True))


@dataclass(frozen=True)
class NodeSlopes:
    """Derivatives of the six numbers of S (layers, m, 6, ...): by q (3); by the rotations' six numbers, the radial
    variance, the wavelength and s0 (11); by fast, slow, normal, distance and point spread of the panel (11). Those by
    the covariances of size and divergence are 1."""

    q: Tensor
    causes: Tensor
    panel: Tensor


def six(matrix: Tensor) -> Tensor:
    """The six numbers (..., 6) of symmetric matrices (..., 3, 3)."""
    return matrix[..., ROWS, COLUMNS]


def node_slopes(of: Causes, panels: Panels, q: Tensor, rule: Quadrature | Quadratures) -> NodeSlopes:
    """The slopes of nodes at q (m, 3), whose causes and panels are arranged as they are."""
    foot = _foot(of, panels, q)
    edge = pixel_variance(panels, ..., rule)
    by_rotations, by_radial, spread_by_q = _spread(of, q)
    layers = [_layer(foot, panels, edge, layer) for layer in sensor_layers(panels, rule.layers)]
    by_q, by_causes, by_panel = [], [], []
    for by_s1, by_ln_scale, of_panel in layers:
        by_toward = foot.across @ by_s1
        by_wavelength = -(of.s0[:, None] @ by_toward) / of.wavelength[:, None, None] ** 2
        by_wavelength = by_wavelength - by_ln_scale[:, None] / of.wavelength[:, None, None]
        by_q.append(spread_by_q + by_toward)
        by_s0 = by_toward / of.wavelength[:, None, None]
        by_causes.append(torch.cat([by_rotations, by_radial, by_wavelength, by_s0], 1))
        by_panel.append(of_panel)
    return NodeSlopes(*(torch.stack(parts).transpose(-1, -2) for parts in (by_q, by_causes, by_panel)))


@dataclass(frozen=True)
class _Foot:
    """Where nodes meet their panels: s1 (m, 3), (1 - s1 s1ᵀ)/|t| (m, 3, 3), c and 1/(λ R) (m,), the panels' axes a and
    w (m, 3, 3), a row each, and a.s1 (m, 3)."""

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
    across = (torch.eye(3, dtype=q.dtype, device=q.device) - s1[:, :, None] * s1[:, None]) / length[:, None, None]
    cosine = dot(s1, panels.normal)
    scale = torch.abs(cosine / panels.distance) / of.wavelength
    axes = torch.stack([panels.fast, panels.slow, panels.normal], 1)
    along = (axes * s1[:, None]).sum(-1)
    w = (axes - along[..., None] * s1[:, None]) * scale[:, None, None]
    return _Foot(s1, across, cosine, scale, length, axes, along, w)


def _spread(of: Causes, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of what crystal and beam add: by the rotations (m, 6, 6), the radial variance (m, 1, 6) and q (m, 3, 6),
    a row for what they are by."""
    lever = cross_matrix(q)
    arms = lever.transpose(1, 2)
    share = 0.5 * as_tensor(TWICE, q)
    by_rotations = _twice(arms[:, ROWS], arms[:, COLUMNS]) * share[:, None]
    turned = of.spread.rotations @ lever.transpose(1, 2)
    unit_levers = cross_matrix(torch.eye(3, dtype=q.dtype, device=q.device))
    half = (unit_levers @ turned[:, None]).flatten(2)
    by_q = half[..., [3 * i + j for i, j in SIX]] + half[..., [3 * j + i for i, j in SIX]]
    identity = torch.eye(3, dtype=q.dtype, device=q.device).expand(len(q), 3, 3)
    radial = of.spread.radial.reshape(-1, 1, 1)
    by_q = by_q + radial * _twice(identity, q[:, None])
    return by_rotations, 0.5 * _twice(q[:, None], q[:, None]), by_q


def _layer(foot: _Foot, panels: Panels, edge: Tensor, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of what the panel adds by way of one layer of its sensor: by s1 (m, 3, 6), by ln of 1/(λ R) (m, 6) and by
    the panel (m, 11, 6), a row for what they are by."""
    depth, depth_slope = _depth_variance(panels, layer, torch.abs(foot.cosine))
    squares = 0.5 * _twice(foot.w, foot.w)
    variances = torch.stack([edge, edge, depth], 1)[..., None]
    by_ln_scale = 2 * (variances * squares).sum(1)
    by_cosine = by_ln_scale / foot.cosine[:, None] + (depth_slope * torch.sign(foot.cosine))[:, None] * squares[:, 2]
    weighed = variances * foot.w
    # w_a follows s1 by -(a_k s1 + (a.s1) e_k)/(λ R), and a by (1 - s1 s1ᵀ)/(λ R)
    together = foot.scale[:, None, None] * (foot.axes.transpose(1, 2) @ weighed)
    lean = foot.scale[:, None] * (foot.along[..., None] * weighed).sum(1)
    by_s1 = foot.axes[:, 2, :, None] * by_cosine[:, None] - _twice(together, foot.s1[:, None])
    by_s1 = by_s1 - _twice(torch.eye(3, dtype=lean.dtype, device=lean.device).expand(len(lean), 3, 3), lean[:, None])
    turn = (foot.scale * foot.length)[:, None, None] * foot.across
    by_axes = _twice(turn[:, None], weighed[:, :, None])
    by_normal = by_axes[:, 2] + foot.s1[..., None] * by_cosine[:, None]
    by_distance = -by_ln_scale / panels.distance[:, None]
    by_point_spread = 2 * panels.point_spread[:, None] * (squares[:, 0] + squares[:, 1])
    numbers = torch.stack([by_distance, by_point_spread], 1)
    return by_s1, by_ln_scale, torch.cat([by_axes[:, 0], by_axes[:, 1], by_normal, numbers], 1)


def _twice(a: Tensor, b: Tensor) -> Tensor:
    """The six numbers of a bᵀ + b aᵀ (..., 6)."""
    return a[..., ROWS] * b[..., COLUMNS] + a[..., COLUMNS] * b[..., ROWS]


def _depth_variance(panels: Panels, layer: Layer, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (m,) of the depth of absorption and its derivative by the obliquity's cosine."""
    with torch.enable_grad():
        at = cosine.clone().requires_grad_()
        variance = layer_depth(panels, layer, ..., at)[1]
        (slope,) = torch.autograd.grad(variance.sum(), at)
    return variance.detach(), slope
