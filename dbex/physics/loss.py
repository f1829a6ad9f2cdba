"""The loss of a predicted image against a background-subtracted one."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Smallest variance of a pixel in photons², so that empty pixels do not weigh without bound.
VARIANCE_FLOOR = 1e-2


def pixel_variance(background: Tensor, bragg: Tensor, sigma_squared: Tensor) -> Tensor:
    """Variance of pixels under a model, photons²: its photons plus the read-out noise, above VARIANCE_FLOOR."""
    return (background.clamp_min(0) + bragg.clamp_min(0) + sigma_squared).clamp_min(VARIANCE_FLOOR)


def compute_masked_mse_loss(
    prediction: Tensor,
    target: Any,
    mask: Any,
    sigma_readout: Any = None,
    *,
    variance: Any = None,
) -> Tensor:
    """Mean over the mask of (target - prediction)² / V, docs/physics.md, section 4; all [panel, slow, fast], photons.

    With `variance` V is constant, as a fit needs it. Without it V = prediction + sigma_readout² is part of the
    function and is differentiated. With neither, V = 1. `sigma_readout` and `variance` may be single numbers. Pixels
    outside the mask enter neither value nor gradient, whatever they hold. Raises ValueError for an empty mask, for
    shapes that differ, and for σ or V that are not positive inside the mask.
    """
    inside = _like(mask, prediction, "mask", torch.bool)
    if not inside.any():
        raise ValueError("the mask is empty: expected at least one pixel; check trusted pixels and boxes")
    # Selected before any arithmetic, so that a NaN outside the mask never meets a gradient.
    predicted = prediction[inside]
    residual = _like(target, prediction, "target", prediction.dtype)[inside] - predicted
    if variance is not None:
        weight = _positive(variance, prediction, inside, "variance")
        return (residual**2 / weight).mean()
    if sigma_readout is not None:
        sigma = _positive(sigma_readout, prediction, inside, "sigma_readout")
        return (residual**2 / (predicted + sigma**2)).mean()
    return (residual**2).mean()


def _like(value: Any, prediction: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    tensor = torch.as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value)
    if tensor.shape != prediction.shape:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} but the prediction is {tuple(prediction.shape)}: "
            "give both as [panel, slow, fast]"
        )
    return tensor.to(dtype=dtype, device=prediction.device)


def _positive(value: Any, prediction: Tensor, inside: Tensor, name: str) -> Tensor:
    """`value` inside the mask, checked to be finite and above zero; a single number counts everywhere."""
    if isinstance(value, int | float) or np.ndim(value) == 0:
        chosen = torch.as_tensor(value, dtype=prediction.dtype, device=prediction.device).reshape(1)
    else:
        chosen = _like(value, prediction, name, prediction.dtype)[inside]
    if not bool((torch.isfinite(chosen) & (chosen > 0)).all()):
        raise ValueError(f"{name} is zero, negative or NaN inside the mask: expected positive numbers everywhere in it")
    return chosen
