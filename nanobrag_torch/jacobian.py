"""Derivatives of many numbers by a few parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanobrag_torch.varying import Varying, plain, slopes_of


def jacobian(function: Callable[[Any], tuple[Tensor, ...]], x: Tensor) -> tuple[Tensor, ...]:
    """Derivatives of each of the function's results (..., n) by x (n,); zero where a result does not depend on x.

    The function is called once, with an x that carries its derivatives along (varying.py).
    """
    n = len(x)
    results = function(Varying(x, torch.eye(n, dtype=x.dtype, device=x.device)))
    return tuple(slopes_of(result, n).expand(*plain(result).shape, n) for result in results)
