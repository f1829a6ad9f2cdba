"""The orientations of a crystal's mosaic blocks: given, or drawn as nanoBragg draws them from a seed."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from nanobrag_torch.config import CrystalConfig
from nanobrag_torch.rotation import cross_matrix, rotation_from_vector
from nanobrag_torch.tensors import as_tensor
from nanobrag_torch.units import RADIANS_PER_DEGREE

#: rms rotation about each axis over nanoBragg's mosaic spread: a block turns by spread (1 - r²)^(1/3), r uniform in
#: (-1, 1), about a random axis, and ∫(1 - r²)^(2/3) dr = √π Γ(5/3)/(2 Γ(13/6)) over (0, 1). It is 0.4964.
MOSAIC_RMS_PER_SPREAD = math.sqrt(math.sqrt(math.pi) / 2 * math.gamma(5 / 3) / math.gamma(13 / 6) / 3)


def uniform_deviates(seed: int) -> Iterator[float]:
    """Uniform numbers in (0, 1), rounded to float32: the minimal standard generator of Park and Miller (1988) with
    the shuffle of Bays and Durham, 32 entries. Seeds of opposite sign give the same sequence."""
    modulus, multiplier, entries = 2**31 - 1, 16807, 32
    state = max(1, abs(seed))
    table = [0] * entries
    for j in range(entries + 7, -1, -1):
        state = multiplier * state % modulus
        if j < entries:
            table[j] = state
    last = table[0]
    while True:
        state = multiplier * state % modulus
        j = last // (1 + (modulus - 1) // entries)
        last, table[j] = table[j], state
        yield torch.tensor(min(last / modulus, 1 - 1.2e-7), dtype=torch.float32).item()


def drawn_axes(domains: int, seed: int) -> tuple[Tensor, Tensor]:
    """Axes (n, 3), float64, and angles (n,), float32, of the rotations of domains for a spread of 1.

    The first domain's angle is zero; it uses up its three deviates all the same.
    """
    deviates = uniform_deviates(seed)
    r = torch.tensor([[2 * next(deviates) - 1 for _ in range(3)] for _ in range(domains)], dtype=torch.float64)
    across = torch.sqrt(1 - r[:, 1] ** 2)
    axes = torch.stack([across * torch.sin(math.pi * r[:, 0]), across * torch.cos(math.pi * r[:, 0]), r[:, 1]], -1)
    angles = (1 - r[:, 2] ** 2).float() ** (1 / 3)
    angles[0] = 0
    return axes, angles


def seeded_rotations(spread_deg: float, domains: int, seed: int) -> Tensor:
    """The matrices (n, 3, 3), float64, of nanoBragg's mosaic domains, equal to its own bit for bit or nearly so.

    Its angle is a float32 product of the float32 spread and a float32 power.
    """
    axes, angles = drawn_axes(domains, seed)
    spread = torch.tensor(spread_deg * RADIANS_PER_DEGREE, dtype=torch.float32)
    angle = (spread * angles).double()[:, None, None]
    outer = axes[:, :, None] * axes[:, None, :]
    identity = torch.eye(3, dtype=torch.float64)
    rotations = torch.cos(angle) * identity + torch.sin(angle) * cross_matrix(axes) + (1 - torch.cos(angle)) * outer
    return torch.cat([identity[None], rotations[1:]])


def domain_rotations(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """The rotations (n, 3, 3) of a crystal's domains, in the laboratory frame.

    Given matrices are used as they are. Otherwise they are drawn from the seed and scaled, so that the distribution
    from which they come has an rms of `mosaicity_deg` about each axis; they stay differentiable in it. Raises
    ValueError for a mosaicity with a single domain, which is never turned.
    """
    if crystal.mosaic_rotations is not None:
        return as_tensor(crystal.mosaic_rotations, like)
    if not isinstance(crystal.mosaicity_deg, Tensor) and crystal.mosaicity_deg == 0:
        return torch.eye(3, dtype=like.dtype, device=like.device)[None]
    if crystal.mosaic_domains < 2 and bool(torch.as_tensor(crystal.mosaicity_deg) != 0):
        raise ValueError(
            f"mosaicity_deg is {float(torch.as_tensor(crystal.mosaicity_deg).detach()):g} but mosaic_domains is "
            f"{crystal.mosaic_domains}, and the first domain is never turned: give more domains, or mosaic_rotations"
        )
    axes, angles = drawn_axes(crystal.mosaic_domains, crystal.mosaic_seed)
    spread = as_tensor(crystal.mosaicity_deg, like) * (RADIANS_PER_DEGREE / MOSAIC_RMS_PER_SPREAD)
    return rotation_from_vector(as_tensor(axes * angles[:, None], like) * spread)
