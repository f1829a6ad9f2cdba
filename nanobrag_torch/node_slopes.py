"""The passes over nodes: what they are, and how they follow what they are made of; tests prove it against autograd.

With t = q + s0/λ, s1 = t/|t|, P = 1 - s1 s1ᵀ, c = s1.n and σ = |c/D|/λ, what a panel adds to S is (docs/physics.md,
section 3)

    Sₚ = Σ_a k_a w_a w_aᵀ,    w_a = σ P a,    a = fast, slow, normal

with k the variances of a pixel's edges and of the depth of absorption, which follows |c|. Every slope is H + Hᵀ: what
is found is H (..., 3, 3, m), nodes last, so that a compiler makes loops over the nodes of it (compiling.py). A
symmetric matrix is six numbers in the order of SIX.
"""

from functools import cache

import torch
from torch import Tensor

from nanobrag_torch.compiling import compiled
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Causes, Quadratures, crossing, nodes_from, pixel_variance, sensor_layers
from nanobrag_torch.rotation import cross_matrix
from nanobrag_torch.spread import Spread

#: Pairs of axes in the order of the six numbers of a symmetric matrix, and how often each stands in the nine.
SIX = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
TWICE = (1.0, 2.0, 2.0, 1.0, 2.0, 1.0)
#: Numbers of a node's causes and of its panel, and of these those that S follows, and ln of the amplitude, but for what
#: is added to S or to the ln as it is.
CAUSES, PLACE = 46, 16
SLOPES, LN_SLOPES = 34, 13


@cache
def _places(device: torch.device) -> Tensor:
    """Place among the nine (6,) of the six numbers of a symmetric matrix."""
    return torch.as_tensor([3 * row + column for row, column in SIX], device=device)


def six_of_nine(numbers: Tensor, dim: int = -1) -> Tensor:
    """The six numbers of symmetric matrices whose nine are along that axis."""
    return numbers.index_select(dim, _places(numbers.device))


def six(matrix: Tensor) -> Tensor:
    """The six numbers (..., 6) of symmetric matrices (..., 3, 3)."""
    return six_of_nine(matrix.flatten(-2))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ (..., 3, 3, m)."""
    return a[..., :, None, :] * b[..., None, :, :]


def _upper(matrix: Tensor, dim: int) -> Tensor:
    """Of two axes of three that begin at `dim` the six on and above the diagonal."""
    rows = (matrix.select(dim, i).narrow(dim, i, 3 - i) for i in range(3))
    return torch.cat(list(rows), dim)


def _both(H: Tensor) -> Tensor:
    """The six numbers (k, 6, m) of H + Hᵀ for H (k, 3, 3, m)."""
    return _upper(H + H.transpose(1, 2), 1)


@compiled({1: ((CAUSES, "m"), (PLACE, "m"), (3, "m"))})
def node_pass(causes: Tensor, places: Tensor, hkl: Tensor, *, rule: int) -> Tensor:
    """q, ln of the amplitude and the covariances (4 + layers · 9, m) of nodes hkl (3, m) from the numbers of their
    causes and panels, in `rule` layers of the sensor. Units are those of `Nodes`: 1/Å, 1/Å²."""
    panels, oversample = _of_places(places)
    at = nodes_from(_causes(causes.T), panels, hkl.T, ..., Quadratures(oversample, rule))
    return torch.cat([at.q.T, at.ln_amplitude[None], at.covariance.permute(0, 2, 3, 1).flatten(0, 2)])


@compiled({1: ((CAUSES, "m"), (PLACE, "m"), (3, "m"))})
def slope_pass(causes: Tensor, places: Tensor, hkl: Tensor, *, rule: int) -> Tensor:
    """The slopes (layers · SLOPES · 6 + LN_SLOPES, m) of nodes hkl (3, m) by the numbers of their causes and panels.

    First those of the six numbers of S, for each of `rule` layers of the sensor (layers, SLOPES, 6, m): by s0, the
    offset, A (9), the rotations' six numbers, an off-diagonal one counted twice, the radial variance, the wavelength,
    and distance, point spread, fast, slow and normal of the panel; then those of ln of the amplitude by the offset,
    A and B. Units are those of the numbers: 1/Å, Å, mm, rad².
    """
    A, s0, wavelength = causes[:9].unflatten(0, (3, 3)), causes[36:39], causes[43]
    h = hkl + causes[39:42]
    q = (A * h).sum(1)
    by_rotations, by_radial, spread_by_q = _of_crystal(q, causes[18:27].unflatten(0, (3, 3)), causes[42])
    parts: list[Tensor] = []
    for S, by_t, by_distance, by_axes in _of_layers(q + s0 / wavelength, wavelength, places, rule):
        by_s0 = by_t / wavelength
        by_wavelength = -((s0[:, None, None] * by_s0).sum(0) + S) / wavelength
        by_q = _both(spread_by_q + by_t)
        by_offset = (A[:, :, None] * by_q[:, None]).sum(0)
        by_A = (by_q[:, None] * h[:, None]).flatten(0, 1)
        numbers = torch.stack([by_radial, by_wavelength, *by_distance])
        parts += [_both(by_s0), by_offset, by_A, by_rotations, _both(numbers), _both(by_axes)]
    # the ln is -B q²/2
    pull = -causes[44] * q
    of_ln = [(A * pull[:, None]).sum(0), _outer(pull, h).flatten(0, 1), -0.5 * (q * q).sum(0)[None]]
    return torch.cat([*(part.flatten(0, 1) for part in parts), *of_ln])


def _of_crystal(q: Tensor, rotations: Tensor, radial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of what crystal and beam add, [q]x M [q]xᵀ + r q qᵀ: the six numbers of those by M (6, 6, m), H of those
    by r (3, 3, m) and by q (3, 3, 3, m)."""
    axes = torch.eye(3, dtype=q.dtype, device=q.device)
    turns = cross_matrix(axes)[..., None]
    lever = (turns * q[:, None, None]).sum(0)
    # columns and rows of [q]x are the same but for the sign
    arms = _outer(lever[:, None], lever[None])
    by_rotations = _upper(_upper(0.5 * (arms + arms.transpose(2, 3)), 2), 0)
    turned = (rotations[:, None] * lever).sum(2)
    by_q = (turns[..., None] * turned).sum(2)
    return by_rotations, 0.5 * _outer(q, q), by_q + axes[..., None, None] * (radial * q)


def _of_layers(
    t: Tensor, wavelength: Tensor, places: Tensor, layers: int
) -> list[tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]]:
    """For each layer of the sensor what the panel adds (3, 3, m), which is H of its slope by ln σ, and H of those by t
    (3, 3, 3, m), by distance and point spread, and by the axes (9, 3, 3, m)."""
    axes, distance, point_spread = places[:9].unflatten(0, (3, 3)), places[9], places[10]
    per_length = torch.rsqrt((t * t).sum(0))
    s1 = per_length * t
    along = (axes * s1).sum(1)
    cosine = along[2]
    sigma = torch.abs(cosine / distance) / wavelength
    lean = axes - _outer(along, s1)
    w = sigma * lean
    projector = torch.eye(3, dtype=t.dtype, device=t.device)[..., None] - _outer(s1, s1)
    by_point_spread = point_spread * _outer(w[:2], w[:2]).sum(0)
    panels, oversample = _of_places(places)
    edge = pixel_variance(panels, ..., Quadratures(oversample, layers))
    result = []
    for layer in sensor_layers(panels, layers):
        crossed = crossing(panels, layer, ..., torch.abs(cosine))
        weighed = torch.stack([edge, edge, crossed.variance()])[:, None] * w
        S = _outer(weighed, w).sum(0)
        by_cosine = (S + 0.5 * crossed.variance_slope() * _outer(w[2], w[2])) / cosine
        # s1 follows t by P/|t|, and P a is w/σ
        force = -sigma * per_length * (along[:, None] * weighed).sum(0)
        by_t = _outer((-per_length * s1)[None], S) + _outer(force[None], projector)
        by_t = by_t + (per_length * lean[2])[:, None, None] * by_cosine
        by_axes = _outer(weighed[:, None], (sigma * projector)[None])
        by_normal = by_axes[2] + s1[:, None, None] * by_cosine
        by_distance = -S / distance
        result.append((S, by_t, (by_distance, by_point_spread), torch.cat([by_axes[0], by_axes[1], by_normal])))
    return result


def _of_places(places: Tensor) -> tuple[Panels, Tensor]:
    """What is known of the panels of nodes, arranged as they are, and how their pixels are sampled (m,)."""
    fast, slow, normal = places[:9].unflatten(0, (3, 3)).transpose(1, 2).unbind()
    distance, point_spread, pixel_size, thickness, mu, parallax, oversample = places[9:].unbind()
    panels = Panels(fast, slow, normal, distance, normal, pixel_size, thickness, mu, point_spread, parallax > 0)
    return panels, oversample


def _causes(rows: Tensor) -> Causes:
    """Causes of each of n nodes from its row of numbers."""
    A, size, rotations, divergence = (rows[:, 9 * i : 9 * i + 9].unflatten(1, (3, 3)) for i in range(4))
    radial, wavelength, b_factor, ln_scale = rows[:, 42:CAUSES].unbind(1)
    spread = Spread(size, rotations, divergence, radial)
    return Causes(A, spread, rows[:, 36:39], rows[:, 39:42], wavelength, b_factor, ln_scale)
