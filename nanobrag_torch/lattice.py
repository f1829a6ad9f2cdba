"""From cell and orientation to the reciprocal basis, and from scattering vectors to fractional indices."""

import torch
from torch import Tensor

from nanobrag_torch.config import CrystalConfig, override
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
    return _reciprocal(cell[..., :3], cell[..., 3:])


def _reciprocal(lengths: Tensor, angles: Tensor) -> Tensor:
    """B (..., 3, 3) of the lengths (..., 3) and the angles (..., 3) of a cell."""
    radians = angles * RADIANS_PER_DEGREE
    cos_al, cos_be, cos_ga = torch.cos(radians).unbind(-1)
    sin_ga = torch.sin(radians[..., 2])
    # c/|c| is (cos β, y, z)
    y = (cos_al - cos_be * cos_ga) / sin_ga
    z = torch.sqrt(1 - cos_be**2 - y**2)
    zero, one = torch.zeros_like(z), torch.ones_like(z)
    rows = [one, zero, zero, -cos_ga / sin_ga, 1 / sin_ga, zero]
    rows += [(cos_ga * y / sin_ga - cos_be) / z, -y / (sin_ga * z), 1 / z]
    return torch.stack(rows, -1).unflatten(-1, (3, 3)) / lengths[..., None, :]


def cell_tensor(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """The six cell parameters (6,): Å and degrees."""
    return torch.cat([_lengths(crystal, like), _angles(crystal, like)])


def _lengths(crystal: CrystalConfig, like: Tensor) -> Tensor:
    return as_tensor((crystal.cell_a, crystal.cell_b, crystal.cell_c), like)


def _angles(crystal: CrystalConfig, like: Tensor) -> Tensor:
    return as_tensor((crystal.cell_alpha, crystal.cell_beta, crystal.cell_gamma), like)


def orientation(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """R(misset) U (3, 3)."""
    U, misset = as_tensor(crystal.U, like), crystal.misset_deg
    if isinstance(misset, tuple) and all(isinstance(angle, float) and angle == 0 for angle in misset):
        return U
    return rotation_from_vector(as_tensor(misset, like) * RADIANS_PER_DEGREE) @ U


def without_misset(crystal: CrystalConfig, like: Tensor) -> CrystalConfig:
    """The same crystal with its misset in U, so that what asks for its orientation does not rotate it anew."""
    return override(crystal, {"U": orientation(crystal, like), "misset_deg": (0.0, 0.0, 0.0)})


def reciprocal_basis(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """A = R(misset) U B(cell) (3, 3), 1/Å: columns a*, b*, c* in the laboratory frame."""
    return orientation(crystal, like) @ _reciprocal(_lengths(crystal, like), _angles(crystal, like))


def fractional_hkl(q: Tensor, A: Tensor) -> Tensor:
    """Fractional indices h = A^-1 q of scattering vectors q (..., 3) in 1/Å: the Laue equations."""
    return torch.linalg.solve(A, q.unsqueeze(-1)).squeeze(-1) if A.ndim > 2 else q @ torch.linalg.inv(A).T
