"""From cell and orientation to the reciprocal basis, and from scattering vectors to fractional indices."""

import torch
from torch import Tensor

from nanobrag_torch.config import CrystalConfig
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.tensors import as_tensor
from nanobrag_torch.units import RADIANS_PER_DEGREE


def cell_volume(cell: Tensor) -> Tensor:
    """Volume (Å³) of cells (..., 6): lengths in Å, angles in degrees."""
    a, b, c = cell[..., 0], cell[..., 1], cell[..., 2]
    cos = torch.cos(cell[..., 3:] * RADIANS_PER_DEGREE)
    squared = 1 - (cos**2).sum(-1) + 2 * cos.prod(-1)
    return a * b * c * torch.sqrt(squared)


def reciprocal_matrix(cell: Tensor) -> Tensor:
    """B (..., 3, 3), 1/Å: columns a*, b*, c* in the crystal's Cartesian frame, a along x and b in the xy plane.

    This is the frame of cctbx and dxtbx; `cell` (..., 6) holds lengths in Å and angles in degrees.
    """
    a, b, c = cell[..., 0], cell[..., 1], cell[..., 2]
    cos_al, cos_be, cos_ga = torch.cos(cell[..., 3:] * RADIANS_PER_DEGREE).unbind(-1)
    sin_ga = torch.sin(cell[..., 5] * RADIANS_PER_DEGREE)
    height = cell_volume(cell) / (a * b * sin_ga)
    c_x, c_y = c * cos_be, c * (cos_al - cos_be * cos_ga) / sin_ga
    zero = torch.zeros_like(a)
    return torch.stack(
        [
            torch.stack([1 / a, zero, zero], -1),
            torch.stack([-cos_ga / (a * sin_ga), 1 / (b * sin_ga), zero], -1),
            torch.stack([(cos_ga * c_y / sin_ga - c_x) / (a * height), -c_y / (b * sin_ga * height), 1 / height], -1),
        ],
        -2,
    )


def cell_tensor(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """The six cell parameters (6,): Å and degrees."""
    names = ("cell_a", "cell_b", "cell_c", "cell_alpha", "cell_beta", "cell_gamma")
    return torch.stack([as_tensor(getattr(crystal, name), like) for name in names])


def orientation(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """R(misset) U (3, 3)."""
    misset = as_tensor(crystal.misset_deg, like) * RADIANS_PER_DEGREE
    return rotation_from_vector(misset) @ as_tensor(crystal.U, like)


def reciprocal_basis(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """A = R(misset) U B(cell) (3, 3), 1/Å: columns a*, b*, c* in the laboratory frame."""
    return orientation(crystal, like) @ reciprocal_matrix(cell_tensor(crystal, like))


def fractional_hkl(q: Tensor, A: Tensor) -> Tensor:
    """Fractional indices h = A^-1 q of scattering vectors q (..., 3) in 1/Å: the Laue equations."""
    return torch.linalg.solve(A, q.unsqueeze(-1)).squeeze(-1) if A.ndim > 2 else q @ torch.linalg.inv(A).T
