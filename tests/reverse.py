"""Derivatives of many numbers by torch's reverse mode: what other ways are compared with."""

import torch


def reverse_jacobian(function, x):
    """Derivatives of each of the function's results (..., n) by x (n,); zero where a result does not depend on x.

    Jᵀu is linear in u: its derivatives by u are the columns of J, all of them in one batched pass.
    """
    at = x.clone().requires_grad_()
    results = function(at)
    flat = torch.cat([result.flatten() for result in results])
    if not flat.requires_grad:
        return tuple(x.new_zeros(*result.shape, len(x)) for result in results)
    u = torch.zeros_like(flat, requires_grad=True)
    (transposed,) = torch.autograd.grad(flat, at, u, create_graph=True)
    directions = torch.eye(len(x), dtype=x.dtype)
    (columns,) = torch.autograd.grad(transposed, u, directions, is_grads_batched=True)
    parts = columns.T.split([result.numel() for result in results])
    return tuple(part.view(*result.shape, len(x)) for part, result in zip(parts, results, strict=True))


def largest_difference(found, expected):
    """The largest difference of results in parts of the largest number of each; shapes have to be the same."""
    assert [a.shape for a in found] == [b.shape for b in expected]
    return max(
        float((a - b).abs().max() / b.abs().max()) if bool((b != 0).any()) else float(a.abs().max())
        for a, b in zip(found, expected, strict=True)
    )
