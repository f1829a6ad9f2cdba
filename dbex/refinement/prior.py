"""What is known of the intensities beforehand: the structure factors, their errors, and that of the model itself.

Amplitudes of another crystal, or calculated ones, differ from those of this crystal by something like a random
structure factor: an error of F that is a part of the rms F at that resolution, whatever F itself is. Strong reflections
are better known than weak ones in proportion, as they are in the σ_A statistics of refinement programs (Read 1986).
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from dbex.still import Amplitudes, Floats, Ints

#: No prior is narrower than this fraction of the mean intensity: a list's sigma says nothing of an F that is nearly 0.
FLOOR = 1e-3
#: The relative errors that are looked for, and the standard deviation of a prior of their change with resolution, Å².
RELATIVE_LIMITS, SLOPE_PRIOR_A2 = (0.01, 3.0), 5.0
#: ln of how much the relative error changes with resolution stays within these.
EXPONENT_LIMITS = (-3.0, 3.0)


@dataclass(frozen=True)
class ModelError:
    """The relative error of a mean F², τ = relative · exp(slope_A2 · (s² - s2)), s = 1/d: an error of F of τ/2 times
    the rms F of that resolution."""

    relative: float
    slope_A2: float = 0.0
    s2: float = 0.0


@dataclass(frozen=True)
class IntensityPrior:
    """Normal priors of |F|²: mean and standard deviation (m,)."""

    mean: Tensor
    sd: Tensor


@dataclass(frozen=True)
class Known:
    """What the list says of some reflections: F, sigma_F, s² (1/Å²), the mean F² of their resolution (m,), and that of
    all."""

    F: Floats
    sigma_F: Floats
    s2: Floats
    mean_square: Floats
    overall: float

    def prior_sd(self, error: ModelError) -> Floats:
        """Standard deviations (m,) of F²: those of the square of a normal number, F with both errors of F."""
        steepness = np.clip(error.slope_A2 * (self.s2 - error.s2), *EXPONENT_LIMITS)
        return np.asarray(np.sqrt(self.prior_variance(error.relative * np.exp(steepness))[0]))

    def prior_variance(self, tau: Floats) -> tuple[Floats, Floats]:
        """Variances (..., m) of F² for these relative errors τ of the model, and their derivatives by ln τ."""
        of_model = 0.25 * tau**2 * self.mean_square
        variance_F, squares = self.sigma_F**2 + of_model, 4 * self.F**2
        variance = (squares + 2 * variance_F) * variance_F + (FLOOR * self.overall) ** 2
        return variance, 2 * (squares + 4 * variance_F) * of_model


def known_of(amplitudes: Amplitudes, reflections: Ints) -> Known:
    """What the list says of the reflections at these places (m,)."""
    F, mean_square = amplitudes.F[reflections], amplitudes.mean_square[reflections]
    overall = float(np.mean(F**2)) if len(reflections) else float(np.mean(amplitudes.F**2))
    return Known(F, amplitudes.sigma_F[reflections], amplitudes.s_squared[reflections], mean_square, overall)


def intensity_prior(amplitudes: Amplitudes, reflections: Ints, error: ModelError) -> IntensityPrior:
    """The prior of the listed reflections: F², with the list's sigma and the error of the model."""
    known = known_of(amplitudes, reflections)
    return IntensityPrior(torch.as_tensor(known.F**2), torch.as_tensor(known.prior_sd(error)))


def estimate_model_error(value: Floats, variance: Floats, amplitudes: Amplitudes, reflections: Ints) -> ModelError:
    """The error of F² that makes free intensities `value` +- `variance` most likely, for these reflections.

    Maximises the marginal likelihood Π N(value; F², variance + prior variance) over the relative error at the mean s²,
    first on a grid, and its change with resolution.
    """
    usable = np.isfinite(value) & np.isfinite(variance) & (variance > 0)
    value, variance = value[usable], variance[usable]
    known = known_of(amplitudes, reflections[usable])
    s2 = float(known.s2.mean()) if len(value) else 0.0
    squares, away = (value - known.F**2) ** 2, known.s2 - s2
    low, high = np.log(RELATIVE_LIMITS)

    def minus_ln_likelihood(at: Floats) -> tuple[float, Floats]:
        """And its derivatives by ln relative and slope."""
        steepness = np.clip(at[1] * away, *EXPONENT_LIMITS)
        of_prior, slope = known.prior_variance(np.exp(at[0] + steepness))
        total = variance + of_prior
        z2 = squares / total
        by_ln_tau = 0.5 * (1 - z2) / total * slope
        by_slope = by_ln_tau @ (away * (steepness == at[1] * away))
        fit = 0.5 * float(np.sum(np.log(total) + z2)) + 0.5 * (at[1] / SLOPE_PRIOR_A2) ** 2
        return fit, np.array([by_ln_tau.sum(), by_slope + at[1] / SLOPE_PRIOR_A2**2])

    grid = np.linspace(low, high, 30)
    totals = variance + known.prior_variance(np.exp(grid[:, None]))[0]
    first = grid[int(np.argmin((np.log(totals) + squares / totals).sum(1)))]
    found = minimize(
        minus_ln_likelihood,
        [first, 0.0],
        method="L-BFGS-B",
        jac=True,
        bounds=[(low, high), (None, None)],
        options={"ftol": 1e-12, "gtol": 1e-6},
    )
    return ModelError(float(np.exp(found.x[0])), float(found.x[1]), s2)
