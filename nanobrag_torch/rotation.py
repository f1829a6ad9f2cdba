"""Rotations of the laboratory: right-handed, 3 x 3 matrices that act on column vectors."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nanobrag_torch.varying import Varying


def cross_matrix(v: Tensor) -> Tensor:
    """The matrix [v]x (..., 3, 3) with [v]x w = v x w."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    return rows.unflatten(-1, (3, 3))


@cache
def _generators(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """What takes the numbers of v to those of [v]x (3, 9), and the identity (3, 3)."""
    identity = torch.eye(3, dtype=dtype, device=device)
    return cross_matrix(identity).flatten(1), identity


def sinc(x_squared: Tensor) -> Tensor:
    """sin(x)/x as a function of x², smooth through 0."""
    # products with 0 and 1, not `where`: batched derivatives take that one by one
    small = (x_squared < 1e-8).to(x_squared.dtype)
    x = torch.sqrt(x_squared + small)
    # the next term of the series, x⁴/120, is below rounding
    return small - small / 6 * x_squared + (1 - small) * (torch.sin(x) / x)


def versine_ratio(x_squared: Tensor) -> Tensor:
    """(1 - cos x)/x² as a function of x², smooth through 0."""
    return 0.5 * sinc(x_squared / 4) ** 2


@dataclass(frozen=True)
class _Turn:
    """What rotations by vectors v and their derivatives are made of: the identity, k = [v]x and k² (..., 3, 3), |v|²,
    and sinc and versine ratio of it (..., 1, 1)."""

    identity: Tensor
    k: Tensor
    k_squared: Tensor
    angle_squared: Tensor
    sinc: Tensor
    versine: Tensor

    @staticmethod
    def by(vector_rad: Tensor) -> "_Turn":
        """Those of vectors (..., 3), radians."""
        generators, identity = _generators(vector_rad.dtype, vector_rad.device)
        angle_squared = (vector_rad**2).sum(-1)[..., None, None]
        k = (vector_rad @ generators).unflatten(-1, (3, 3))
        return _Turn(identity, k, k @ k, angle_squared, sinc(angle_squared), versine_ratio(angle_squared))

    @property
    def matrix(self) -> Tensor:
        """The rotations (..., 3, 3), by Rodrigues."""
        return self.identity + self.sinc * self.k + self.versine * self.k_squared

    @property
    def left_jacobian(self) -> Tensor:
        """Their left Jacobians (..., 3, 3)."""
        small = (self.angle_squared < 1e-8).to(self.angle_squared.dtype)
        ratio = (1 - self.sinc) / (self.angle_squared + small)
        of_squares = small * (1 - self.angle_squared / 20) / 6 + (1 - small) * ratio
        return self.identity + self.versine * self.k + of_squares * self.k_squared


def rotation_from_vector(vector_rad: Tensor | Varying) -> Tensor:
    """The rotation (..., 3, 3) about `vector_rad` (..., 3) by its length in radians (Rodrigues), smooth at zero."""
    if isinstance(vector_rad, Varying):
        return _varying_rotation(vector_rad)
    return _Turn.by(vector_rad).matrix


def _varying_rotation(vector_rad: Varying) -> Any:
    """The same of a vector that varies: to first order a small rotation after that of its value."""
    turn = _Turn.by(vector_rad.value)
    small, matrix = turn.left_jacobian @ vector_rad.slopes, turn.matrix
    return Varying(matrix, torch.linalg.cross(small.unsqueeze(-2), matrix.unsqueeze(-1), dim=-3))


def left_jacobian(vector_rad: Tensor) -> Tensor:
    """J (..., 3, 3) with which a change d of `vector_rad` turns the laboratory by the small rotation J d, radians:
    R(v + d) = R(J d) R(v) to first order, smooth at zero."""
    return _Turn.by(vector_rad).left_jacobian


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
    squared = (axis**2).sum(-1)
    none = (squared == 0).to(squared.dtype)  # a root that has a derivative where there is no rotation
    sine = 0.5 * (1 - none) * torch.sqrt(squared + none)
    cosine = 0.5 * (matrix.diagonal(dim1=-2, dim2=-1).sum(-1) - 1)
    angle = torch.atan2(sine, cosine)
    return 0.5 * axis / sinc(angle**2)[..., None]
