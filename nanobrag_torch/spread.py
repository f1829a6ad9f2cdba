"""The covariance of every cause that broadens a reciprocal node (docs/physics.md, section 3), in 1/Å².

Widths are small compared with the distance between nodes; each acts on the offset q - A h linearly, so that
covariances add. All are symmetric (..., 3, 3) in the laboratory frame.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig, CrystalConfig
from nanobrag_torch.lattice import orientation, reciprocal_basis
from nanobrag_torch.rotation import cross_matrix
from nanobrag_torch.tensors import as_tensor, unit
from nanobrag_torch.units import RADIANS_PER_DEGREE

#: Variance of F_latt² of a Gaussian block in units of (1/N)² or (1/L)²: exp(-2 x²/0.63).
GAUSS_VARIANCE = 0.63 / 4


def outer(v: Tensor) -> Tensor:
    """v vᵀ (..., 3, 3)."""
    return v[..., :, None] * v[..., None, :]


def size_covariance(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """Broadening (3, 3) by the finite size of Gaussian blocks."""
    if crystal.size_covariance is not None:
        turn = orientation(crystal, like)
        return turn @ as_tensor(crystal.size_covariance, like) @ turn.T
    fudge = as_tensor(crystal.fudge, like)
    n_cells = as_tensor(crystal.N_cells, like)
    if crystal.shape == "gauss_isotropic" or crystal.domain_size_A is not None:
        size = n_cells.prod() if crystal.domain_size_A is None else as_tensor(crystal.domain_size_A, like)
        return GAUSS_VARIANCE / (fudge * size**2) * torch.eye(3, dtype=like.dtype, device=like.device)
    if crystal.shape != "gauss":
        raise ValueError(
            f"shape {crystal.shape!r} has no Gaussian closed form: use gauss, gauss_isotropic or simulate()"
        )
    A = reciprocal_basis(crystal, like)
    return A @ torch.diag(GAUSS_VARIANCE / (fudge * n_cells**2)) @ A.T


def mosaic_rotations(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """Covariance (3, 3), rad², of the blocks' rotations about the axes of the laboratory."""
    if crystal.mosaic_covariance_deg2 is None:
        eta = as_tensor(crystal.mosaicity_deg, like) * RADIANS_PER_DEGREE
        return eta**2 * torch.eye(3, dtype=like.dtype, device=like.device)
    turn = orientation(crystal, like)
    return turn @ (as_tensor(crystal.mosaic_covariance_deg2, like) * RADIANS_PER_DEGREE**2) @ turn.T


def turned(rotations: Tensor, q: Tensor) -> Tensor:
    """Covariance (..., 3, 3) of nodes q (..., 3) that small rotations with this covariance turn: across q."""
    lever = cross_matrix(q)
    return lever @ rotations @ lever.transpose(-1, -2)


def mosaic_covariance(crystal: CrystalConfig, q: Tensor) -> Tensor:
    """Broadening by the rotations of the blocks, at nodes q (..., 3): across q, growing with its length."""
    return turned(mosaic_rotations(crystal, q), q)


def radial_variance(crystal: CrystalConfig, beam: BeamConfig, like: Tensor) -> Tensor:
    """Relative variance () of |q| by a spread of the cell and of the wavelength: one term on a still."""
    return as_tensor(crystal.strain, like) ** 2 + as_tensor(beam.bandwidth, like) ** 2


def radial_covariance(crystal: CrystalConfig, beam: BeamConfig, q: Tensor) -> Tensor:
    """Broadening along q."""
    return radial_variance(crystal, beam, q) * outer(q)


def divergence_covariance(beam: BeamConfig, like: Tensor) -> Tensor:
    """Broadening (3, 3) by a divergent beam, along n x s0 (h) and n (v)."""
    if all(isinstance(width, float) and width == 0 for width in (beam.divergence_h_mrad, beam.divergence_v_mrad)):
        return torch.zeros(3, 3, dtype=like.dtype, device=like.device)
    s0 = unit(as_tensor(beam.direction, like))
    horizontal = unit(torch.linalg.cross(as_tensor(beam.polarization_normal, like), s0))
    vertical = torch.linalg.cross(s0, horizontal)
    across = (as_tensor(beam.divergence_h_mrad, like) * 1e-3) ** 2 * outer(horizontal)
    along = (as_tensor(beam.divergence_v_mrad, like) * 1e-3) ** 2 * outer(vertical)
    return (across + along) / as_tensor(beam.wavelength_A, like) ** 2


@dataclass(frozen=True)
class Spread:
    """What broadens nodes: covariances (..., 3, 3) by the size of blocks and by divergence, 1/Å², of the blocks'
    rotations, rad², and the relative variance (...) of |q|; leading axes are those of the nodes, or none."""

    size: Tensor
    rotations: Tensor
    divergence: Tensor
    radial: Tensor

    def at(self, q: Tensor) -> Tensor:
        """The covariance (n, 3, 3) of nodes q (n, 3)."""
        return self.size + turned(self.rotations, q) + self.radial[..., None, None] * outer(q) + self.divergence


def spread_of(crystal: CrystalConfig, beam: BeamConfig, like: Tensor) -> Spread:
    """What crystal and beam broaden nodes by."""
    return Spread(
        size_covariance(crystal, like),
        mosaic_rotations(crystal, like),
        divergence_covariance(beam, like),
        radial_variance(crystal, beam, like),
    )


def node_covariance(crystal: CrystalConfig, beam: BeamConfig, q: Tensor) -> Tensor:
    """What crystal and beam make of the nodes q (n, 3): (n, 3, 3)."""
    return spread_of(crystal, beam, q).at(q)


def footprint_covariance(
    s1: Tensor, fast: Tensor, slow: Tensor, normal: Tensor, scale: Tensor, variance_px: Tensor, variance_depth: Tensor
) -> Tensor:
    """What a detector adds to rays s1 (n, 3): `variance_px` (mm²) along both edges, `variance_depth` along the normal.

    `scale` (n,) is 1/(λ R), 1/(Å mm); the axes (n, 3) are those of the panel. A displacement d on the detector moves
    q by (1/λR)(1 - s1 s1ᵀ) d.
    """
    axes = torch.stack([fast, slow, normal], -2)
    along = (axes @ s1[..., None]) * s1[..., None, :]
    across = (axes - along) * scale[..., None, None]
    variances = torch.stack([variance_px, variance_px, variance_depth], -1)
    return across.transpose(-1, -2) @ (variances[..., None] * across)
