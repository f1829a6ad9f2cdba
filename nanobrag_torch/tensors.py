"""Numbers and vectors of a record as tensors, without leaving the autograd graph."""

import torch
from torch import Tensor


def as_tensor(value: object, like: Tensor) -> Tensor:
    """`value` (a number, nested tuples or lists that may hold tensors, an array or a tensor) as a tensor of the
    dtype and device of `like`, on its graph."""
    if isinstance(value, Tensor):
        return value.to(dtype=like.dtype, device=like.device)
    if isinstance(value, tuple | list) and _holds_tensor(value):
        return torch.stack([as_tensor(item, like) for item in value])
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _holds_tensor(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


def unit(vector: Tensor) -> Tensor:
    """`vector` (..., 3) scaled to length 1."""
    return vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product over the last axis."""
    return (a * b).sum(-1)
