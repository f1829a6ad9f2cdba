"""F_latt: the interference of the unit cells of a mosaic block, for each shape of block (docs/physics.md, section 2).

Every function is even in the offset from the node and equals NaNbNc on it. Offsets `dh` (..., 3) are h minus the
nearest whole numbers, `dq` (..., 3) the same as a vector in 1/Å; `N` (3,) is the number of cells along a, b, c.
"""

import math

import torch
from torch import Tensor

from nanobrag_torch.config import CrystalConfig
from nanobrag_torch.tensors import as_tensor

#: F_latt of a Gaussian block is exp(-x²/0.63): half the width of the square's sinc², nanoBragg's choice.
GAUSS_WIDTH = 0.63
#: x² at which a top hat ends, nanoBragg's 0.63².
TOPHAT_EDGE = 0.3969
#: F_latt of a sphere on its node over NaNbNc, √(π/6): makes the integral of F_latt² that of the parallelepiped.
SPHERE_HEIGHT = math.sqrt(math.pi / 6)


def grating(N: Tensor, h: Tensor) -> Tensor:
    """sin(πNh)/sin(πh) for |h| < 1, with its limit N at h = 0."""
    small = torch.abs(h) < 1e-7
    denominator = torch.where(small, torch.ones_like(h), torch.sin(math.pi * h))
    limit = N - (N * (N * N - 1) * (math.pi**2 / 6)) * h * h
    return torch.where(small, limit, torch.sin(math.pi * N * h) / denominator)


def ball(u_squared: Tensor) -> Tensor:
    """3 (sin u - u cos u)/u³ as a function of u², 1 at zero: the transform of a sphere."""
    small = u_squared < 1e-2
    safe = torch.where(small, torch.ones_like(u_squared), u_squared)
    u = torch.sqrt(safe)
    series = 1 - u_squared / 10 * (1 - u_squared / 28 * (1 - u_squared / 54 * (1 - u_squared / 88)))
    return torch.where(small, series, 3 * (torch.sin(u) / u - torch.cos(u)) / safe)


def square(dh: Tensor, N: Tensor) -> Tensor:
    """A parallelepiped of Na x Nb x Nc cells: the product of three gratings."""
    return grating(N[0], dh[..., 0]) * grating(N[1], dh[..., 1]) * grating(N[2], dh[..., 2])


def sphere(dh: Tensor, N: Tensor, fudge: Tensor) -> Tensor:
    """An ellipsoid with half-axes in proportion to N."""
    return N.prod() * SPHERE_HEIGHT * ball(math.pi**2 * fudge * _squared(N * dh))


def gauss(dh: Tensor, N: Tensor, fudge: Tensor) -> Tensor:
    """A Gaussian in h, of variance 0.1575/(fudge N²) along each axis once squared."""
    return N.prod() * torch.exp(-fudge / GAUSS_WIDTH * _squared(N * dh))


def tophat(dh: Tensor, N: Tensor, fudge: Tensor) -> Tensor:
    """NaNbNc inside an ellipsoid in h, zero outside: its derivatives with respect to its edge are zero."""
    return N.prod() * (fudge * _squared(N * dh) < TOPHAT_EDGE)


def gauss_isotropic(dq: Tensor, N: Tensor, size_A: Tensor, fudge: Tensor) -> Tensor:
    """A Gaussian of |dq| for a block of `size_A` in every direction: variance 0.1575/(fudge size²) once squared."""
    return N.prod() * torch.exp(-fudge / GAUSS_WIDTH * size_A**2 * _squared(dq))


def tophat_isotropic(dq: Tensor, N: Tensor, size_A: Tensor, fudge: Tensor) -> Tensor:
    """NaNbNc inside a sphere of radius 0.63/(√fudge size), zero outside."""
    return N.prod() * (fudge * size_A**2 * _squared(dq) < TOPHAT_EDGE)


def lattice_factor(crystal: CrystalConfig, dh: Tensor, A: Tensor) -> Tensor:
    """F_latt (...) at offsets `dh` (..., 3) from the nodes of a crystal with reciprocal basis `A` (3, 3), 1/Å.

    A block with `domain_size_A` is isotropic. Without it the isotropic shapes take the C program's size, which is
    the number NaNbNc read as Å.
    """
    N, fudge = as_tensor(crystal.N_cells, dh), as_tensor(crystal.fudge, dh)
    if crystal.shape.endswith("_isotropic") or crystal.domain_size_A is not None:
        size = N.prod() if crystal.domain_size_A is None else as_tensor(crystal.domain_size_A, dh)
        isotropic = tophat_isotropic if crystal.shape.startswith("tophat") else gauss_isotropic
        return isotropic(_times(A.to(dh.dtype), dh), N, size, fudge)
    if crystal.shape == "square":
        return square(dh, N)
    shapes = {"round": sphere, "gauss": gauss, "tophat": tophat}
    return shapes[crystal.shape](dh, N, fudge)


def _squared(v: Tensor) -> Tensor:
    """||v||² of vectors (..., 3), summed in a fixed order so that the result never depends on threads."""
    x, y, z = v.unbind(-1)
    return x * x + y * y + z * z


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    """matrix (3, 3) times vectors v (..., 3), summed in a fixed order."""
    x, y, z = v.unbind(-1)
    return torch.stack([row[0] * x + row[1] * y + row[2] * z for row in matrix], -1)
