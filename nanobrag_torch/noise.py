"""Counting noise and read-out noise of an expected image, drawn from a seed."""

import torch
from torch import Tensor


def noisy(expected: Tensor, seed: int, sigma_readout: float = 0.0) -> Tensor:
    """Poisson counts of `expected` photons (...,), not below zero, and normal read-out noise of that rms in photons.

    The same image and seed give the same bits. There is no gradient: a draw is data.
    """
    generator = torch.Generator(device=expected.device).manual_seed(seed)
    with torch.no_grad():
        counts = torch.poisson(expected, generator=generator)
        if sigma_readout == 0:
            return counts
        return counts + sigma_readout * torch.randn(
            expected.shape, generator=generator, dtype=expected.dtype, device=expected.device
        )
