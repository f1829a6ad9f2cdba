"""Rotations of the laboratory: right-handed, 3 x 3 matrices that act on column vectors."""

import torch
from torch import Tensor


def cross_matrix(v: Tensor) -> Tensor:
    """The matrix [v]x (..., 3, 3) with [v]x w = v x w."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    return rows.unflatten(-1, (3, 3))


def sinc(x_squared: Tensor) -> Tensor:
    """sin(x)/x as a function of x², smooth through 0."""
    small = x_squared < 1e-8
    x = torch.sqrt(torch.where(small, torch.ones_like(x_squared), x_squared))
    return torch.where(small, 1 - x_squared / 6 + x_squared**2 / 120, torch.sin(x) / x)


def versine_ratio(x_squared: Tensor) -> Tensor:
    """(1 - cos x)/x² as a function of x², smooth through 0."""
    return 0.5 * sinc(x_squared / 4) ** 2


def rotation_from_vector(vector_rad: Tensor) -> Tensor:
    """The rotation (..., 3, 3) about `vector_rad` (..., 3) by its length in radians (Rodrigues), smooth at zero."""
    angle_squared = (vector_rad**2).sum(-1)[..., None, None]
    k = cross_matrix(vector_rad)
    identity = torch.eye(3, dtype=vector_rad.dtype, device=vector_rad.device)
    return identity + sinc(angle_squared) * k + versine_ratio(angle_squared) * (k @ k)


def vector_from_rotation(matrix: Tensor) -> Tensor:
    """The rotation vector (..., 3), radians, of rotations (..., 3, 3) by less than pi."""
    axis = torch.stack(
        [
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ],
        dim=-1,
    )
    sine = 0.5 * torch.linalg.vector_norm(axis, dim=-1)
    cosine = 0.5 * (matrix.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
    angle = torch.atan2(sine, cosine)
    return 0.5 * axis / sinc(angle**2)[..., None]
