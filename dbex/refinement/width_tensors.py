"""Widths of a crystal that differ with direction: covariances (3, 3) in its Cartesian frame, and what is reported of
them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanobrag_torch.config import CrystalConfig, Number
from nanobrag_torch.spread import GAUSS_VARIANCE
from nanobrag_torch.tensors import as_tensor

_LIKE = torch.zeros((), dtype=torch.float64)
DIAGONAL = ("xx", "yy", "zz")
PARTS = (*DIAGONAL, "xy", "xz", "yz")

#: Widths that can be tensors: the record's field, and the isotropic width from which a tensor starts.
TENSORS = {
    "mosaic": ("mosaic_covariance_deg2", lambda crystal: crystal.mosaicity_deg),
    "size": ("size_covariance", lambda crystal: GAUSS_VARIANCE**0.5 / crystal.domain_size_A),
}


def tensor_value(name: str, crystal: CrystalConfig) -> Tensor:
    """A tensor's component as it is reported: along an axis of the crystal's Cartesian frame the rms rotation about it
    (degrees) or the size along it (Å), between two axes their correlation."""
    kind, part = name.split("_")
    tensor = as_tensor(getattr(crystal, TENSORS[kind][0]), _LIKE)
    i, j = ("xyz".index(axis) for axis in part)
    if i != j:
        return tensor[i, j] / torch.sqrt(tensor[i, i] * tensor[j, j])
    width = torch.sqrt(tensor[i, i])
    return width if kind == "mosaic" else GAUSS_VARIANCE**0.5 / width


def mosaic_tensor(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """The covariance (3, 3), degrees², of the blocks' rotations, whichever way the record gives it."""
    if crystal.mosaic_covariance_deg2 is not None:
        return as_tensor(crystal.mosaic_covariance_deg2, like)
    return as_tensor(crystal.mosaicity_deg, like) ** 2 * torch.eye(3, dtype=like.dtype)


def isotropic_size(crystal: CrystalConfig) -> Number:
    """Domain size (Å) whose isotropic width has the trace of the tensor, where there is a tensor."""
    if crystal.size_covariance is not None:
        return (3 * GAUSS_VARIANCE / as_tensor(crystal.size_covariance, _LIKE).trace()) ** 0.5
    if crystal.domain_size_A is None:
        raise ValueError("the crystal has neither a domain size nor a tensor of sizes")
    return crystal.domain_size_A


def isotropic_widths(crystal: CrystalConfig) -> tuple[float, float]:
    """Domain size (Å) and mosaicity (degrees) whose isotropic widths have the traces of the tensors, where there are
    tensors."""
    mosaicity = crystal.mosaicity_deg
    if crystal.mosaic_covariance_deg2 is not None:
        mosaicity = (float(torch.as_tensor(crystal.mosaic_covariance_deg2).trace()) / 3) ** 0.5
    return float(isotropic_size(crystal)), float(mosaicity)


def log_cholesky(parts: Sequence[Tensor]) -> Tensor:
    """The positive definite matrix L Lᵀ (3, 3) of six free numbers: ln of the diagonal of L, then its xy, xz, yz."""
    xx, yy, zz, xy, xz, yz = parts
    zero = torch.zeros_like(xx)
    lower = torch.stack([torch.exp(xx), zero, zero, xy, torch.exp(yy), zero, xz, yz, torch.exp(zz)]).view(3, 3)
    return lower @ lower.T
