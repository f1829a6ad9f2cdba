"""Derivatives of many numbers by a few parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanobrag_torch.varying import Varying, plain, slopes_of


def with_jacobian(
    function: Callable[[Any], tuple[Tensor, ...]], x: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The function's results (...) at x (n,), and the derivatives (..., n) of each; zero where it does not depend on x.

    The function is called once, with an x that carries its derivatives along (varying.py).
    """
    n = len(x)
    results = function(Varying(x, torch.eye(n, dtype=x.dtype, device=x.device)))
    slopes = tuple(slopes_of(result, n).expand(*plain(result).shape, n) for result in results)
    return tuple(plain(result) for result in results), slopes


def jacobian(function: Callable[[Any], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """The derivatives alone."""
    return with_jacobian(function, x)[1]
