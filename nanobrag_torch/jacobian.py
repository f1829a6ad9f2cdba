"""Derivatives of many numbers by a few parameters, with nothing but reverse passes.

Forward mode (torch.func.jacfwd) does the same, but its rules for scalars are written in Python: ten times slower on
small tensors, and a second of imports.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def jacobian(function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of each of the function's results (..., n) by x (n,); zero where a result does not depend on x.

    Jᵀu is linear in u: its derivatives by u are the columns of J, all of them in one batched pass.
    """
    with torch.enable_grad():
        at = x.clone().requires_grad_()
        results = function(at)
        flat = torch.cat([result.flatten() for result in results])
        if not flat.requires_grad:
            return tuple(torch.zeros(*result.shape, len(x), dtype=x.dtype, device=x.device) for result in results)
        u = torch.zeros_like(flat, requires_grad=True)
        (transposed,) = torch.autograd.grad(flat, at, u, create_graph=True)
        directions = torch.eye(len(x), dtype=x.dtype, device=x.device)
        (columns,) = torch.autograd.grad(transposed, u, directions, is_grads_batched=True)
    parts = columns.T.split([result.numel() for result in results])
    return tuple(part.view(*result.shape, len(x)) for part, result in zip(parts, results, strict=True))
