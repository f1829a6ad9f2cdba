"""Rotation of the crystal during the exposure: in steps, and exactly along the line that a node draws."""

import math

import torch
from torch import Tensor

from nanobrag_torch.config import ScanConfig
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.tensors import as_tensor, unit
from nanobrag_torch.units import RADIANS_PER_DEGREE


def scan_rotations(scan: ScanConfig | None, like: Tensor) -> Tensor:
    """Rotations (n, 3, 3) of the laboratory at the left edges start + i width/steps, right-handed about the axis."""
    if scan is None:
        return torch.eye(3, dtype=like.dtype, device=like.device)[None]
    step = as_tensor(scan.width_deg, like) / scan.steps
    angles = as_tensor(scan.start_deg, like) + step * torch.arange(scan.steps, dtype=like.dtype, device=like.device)
    return rotation_from_vector(angles[:, None] * RADIANS_PER_DEGREE * unit(as_tensor(scan.axis, like)))


def line_integral(a: Tensor, b: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """(1/w) ∫ exp(-½(a φ² - 2 b φ + c)) dφ over -w/2 … w/2, w > 0: a Gaussian averaged along a straight line.

    With v the velocity of a node, a = vᵀS⁻¹v, b = vᵀS⁻¹Δ and c = ΔᵀS⁻¹Δ, so that a c ≥ b² (docs/physics.md,
    section 3). A line so short that the Gaussian hardly changes along it (a w² and |b| w small) is integrated as a
    series, which is also the limit of no movement.
    """
    slow = (a * w**2 < 1e-3) & (torch.abs(b) * w < 0.1)
    safe_a = torch.where(slow, torch.ones_like(a), a)
    safe_b = torch.where(slow, torch.zeros_like(b), b)
    safe_c = torch.where(slow, torch.zeros_like(c), c)
    safe_w = torch.where(slow, torch.ones_like(w), w)
    return torch.where(slow, _short_line(a, b, c, w, slow), _long_line(safe_a, safe_b, safe_c, safe_w))


def _long_line(a: Tensor, b: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """The integral by error functions.

    Where both ends lie on one side of the Gaussian's centre the two error functions nearly cancel: the scaled
    complementary functions, whose exponents are those of the two ends, keep the digits.
    """
    root = torch.sqrt(a / 2)
    centre = torch.abs(b) / a
    near, far = root * (w / 2 - centre), root * (w / 2 + centre)
    inside = near > 0
    depth = torch.exp(-0.5 * (c - b**2 / a))
    both = depth * (torch.erf(torch.where(inside, near, torch.zeros_like(near))) + torch.erf(far))
    gap = torch.where(inside, torch.zeros_like(near), -near)
    at_near = torch.exp(-0.5 * (a * w**2 / 4 - torch.abs(b) * w + c))
    at_far = torch.exp(-0.5 * (a * w**2 / 4 + torch.abs(b) * w + c))
    beside = at_near * torch.special.erfcx(gap) - at_far * torch.special.erfcx(far)
    return torch.sqrt(math.pi / (2 * a)) / w * torch.where(inside, both, beside)


def _short_line(a: Tensor, b: Tensor, c: Tensor, w: Tensor, valid: Tensor) -> Tensor:
    """exp(-c/2) times the mean of exp(bφ - aφ²/2), by six Gauss-Legendre nodes: exact to 1e-16 for short lines."""
    nodes = (0.2386191860831969, 0.6612093864662645, 0.9324695142031521)
    weights = (0.4679139345726910, 0.3607615730481386, 0.1713244923791704)
    a, b = torch.where(valid, a, torch.zeros_like(a)), torch.where(valid, b, torch.zeros_like(b))
    c = torch.where(valid, c, torch.zeros_like(c))
    mean = torch.zeros_like(a)
    for x, weight in zip(nodes, weights, strict=True):
        phi = x * w / 2
        mean = mean + weight * torch.exp(-0.5 * a * phi**2) * torch.cosh(b * phi)
    return torch.exp(-0.5 * c) * mean
