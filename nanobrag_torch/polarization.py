"""The polarisation factor of scattered rays (Kahn et al. 1982)."""

import torch
from torch import Tensor

from nanobrag_torch.tensors import dot, unit


def polarization_factor(s1: Tensor, s0: Tensor, normal: Tensor, fraction: Tensor) -> Tensor:
    """The factor (...) for unit rays s1 (..., 3), a unit beam s0 (..., 3) and a polarisation normal (3,).

    `fraction` f is 0.5 unpolarised and 1 polarised along E = unit(normal x s0): the factor is
    f (1 - (s1.E)²) + (1 - f) (1 - (s1.P)²), P = s0 x E, which equals ½(1 + c² - K cos 2ψ (1 - c²)) with K = 2f - 1
    (docs/physics.md, section 2).
    """
    e = unit(torch.linalg.cross(normal.expand_as(s0), s0))
    p = torch.linalg.cross(s0, e)
    return fraction * (1 - dot(s1, e) ** 2) + (1 - fraction) * (1 - dot(s1, p) ** 2)
