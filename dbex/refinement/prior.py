"""What is known of the intensities beforehand: the structure factors, their errors, and that of the model itself."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbex.still import Amplitudes, Floats, Ints

#: No prior is narrower than this fraction of the mean intensity: a list's sigma says nothing of an F that is nearly 0.
FLOOR = 1e-3


@dataclass(frozen=True)
class IntensityPrior:
    """Normal priors of |F|²: mean and standard deviation (m,)."""

    mean: Tensor
    sd: Tensor


def intensity_prior(amplitudes: Amplitudes, reflections: Ints, model_error: float) -> IntensityPrior:
    """The prior of the listed reflections: F² with 2 F σ_F and a relative error of the model in quadrature."""
    F, sigma = amplitudes.F[reflections], amplitudes.sigma_F[reflections]
    measured = np.sqrt((2 * F * sigma) ** 2 + 2 * sigma**4)
    sd = np.sqrt(measured**2 + (model_error * F**2) ** 2 + (FLOOR * np.mean(F**2)) ** 2)
    return IntensityPrior(torch.as_tensor(F**2), torch.as_tensor(sd))


def estimate_model_error(value: Floats, variance: Floats, amplitudes: Amplitudes, reflections: Ints) -> float:
    """The relative error of F² that makes free intensities `value` +- `variance` most likely, for these reflections.

    Maximises the marginal likelihood Π N(value; F², variance + prior variance) over a grid of 1 % to 300 %.
    """
    grid = np.exp(np.linspace(np.log(0.01), np.log(3.0), 60))
    usable = np.isfinite(value) & np.isfinite(variance) & (variance > 0)
    best = [_minus_ln_likelihood(tau, value[usable], variance[usable], amplitudes, reflections[usable]) for tau in grid]
    return float(grid[int(np.argmin(best))])


def _minus_ln_likelihood(
    tau: float, value: Floats, variance: Floats, amplitudes: Amplitudes, reflections: Ints
) -> float:
    prior = intensity_prior(amplitudes, reflections, tau)
    total = variance + prior.sd.numpy() ** 2
    return float(0.5 * np.sum(np.log(total) + (value - prior.mean.numpy()) ** 2 / total))
