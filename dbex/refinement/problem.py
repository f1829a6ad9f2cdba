"""A still's objective as the problem that the solver knows nothing of crystals about."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.objective import Local, Objective
from dbex.still import Floats

#: Variances and linear optimum are brought into agreement this often before anything moves.
FIRST_RENEWALS = 4
#: And so often after a step, until χ² follows them by less than this part of itself.
RENEWALS, SETTLED = 3, 1e-4

#: Residuals up to so many sigmas count in full; it acts on hot pixels and on spots that are no spots.
HUBER_Z = 6.0


def huber_weight(residual: Tensor, variance: Tensor) -> Tensor:
    """Huber's weight of each pixel: 1 up to HUBER_Z sigmas, then falling as 1/|Z|."""
    return (HUBER_Z * torch.sqrt(variance) / torch.abs(residual).clamp_min(1e-30)).clamp_max(1.0)


@dataclass(frozen=True)
class State:
    """The linear optimum at one x, the variances that it was found with, and the ln amplitudes (m,) of the reflections
    at which the errors of their |F|² are held."""

    variance: Tensor
    local: Local
    ln_captured: Tensor


@dataclass(frozen=True)
class StillProblem:
    """χ² of one still with frozen variances, renewed from the model once an iteration."""

    objective: Objective

    @property
    def max_step(self) -> Floats:
        """The largest step of each coordinate in one iteration."""
        return np.array([p.max_step for p in self.objective.map.parameters])

    def start(self, x: Floats) -> State:
        """Variances from a model that was fitted with variances from the data, which follow the noise."""
        variance = self.objective.first_variance()
        local = self.objective.solve_linear(torch.as_tensor(x), variance)
        for _ in range(FIRST_RENEWALS):
            variance = self.robust_variance(local)
            local = self.objective.renewed(local, variance)
        return self._frozen(x, variance, local)

    def renewed(self, x: Floats, state: State) -> State:
        """Variances in agreement with the model at x, their last step half-way: whole ones can swing for ever."""
        variance, local = state.variance, state.local
        for number in range(RENEWALS):
            before, variance = variance, self.robust_variance(local)
            settled = self._change_of_chi2(local, before, variance) < SETTLED
            if settled or number == RENEWALS - 1:
                variance = torch.sqrt(before * variance)
            local = self.objective.renewed(local, variance)
            if settled:
                break
        return self._frozen(x, variance, local)

    def _change_of_chi2(self, local: Local, before: Tensor, after: Tensor) -> float:
        """By which part of itself χ² would follow the variances, rises and falls both counted."""
        boxes = self.objective.boxes
        squares = (boxes.data - local.background - local.bragg) ** 2 * boxes.used
        first, then = squares / before, squares / after
        return float((first - then).abs().sum() / first.sum())

    def robust_variance(self, local: Local) -> Tensor:
        """Variances of the model over Huber's weights: a residual beyond `HUBER_Z` pulls no harder than there."""
        variance = self.objective.variance(local)
        return variance / huber_weight(self.objective.boxes.data - local.background - local.bragg, variance)

    def trial(self, x: Floats, state: State) -> State:
        """Another x with the same variances."""
        return self.at(x, state.variance, state.ln_captured)

    def at(self, x: Floats, variance: Tensor, ln_captured: Tensor) -> State:
        """The state at x with these variances and errors of |F|² held at these amplitudes."""
        local = self.objective.solve_linear(torch.as_tensor(x), variance, ln_captured)
        return State(variance, self._raised(x, local), ln_captured)

    def _frozen(self, x: Floats, variance: Tensor, local: Local) -> State:
        """The state whose errors of |F|² are held from here on."""
        ln_captured = self.objective.ln_captured(local.at or self.objective.at(torch.as_tensor(x)))
        return State(variance, self._raised(x, replace(local, ln_captured=ln_captured)), ln_captured)

    def _raised(self, x: Floats, local: Local) -> Local:
        """The linear optimum with the priors of x in its merit."""
        widths = np.array([p.prior for p in self.objective.map.parameters])
        return local.raised(float(np.sum((x / widths) ** 2)))

    def normal(self, x: Floats, state: State) -> tuple[Floats, Floats]:
        """Gauss-Newton matrix and downhill gradient."""
        found = self.objective.normal_equations(torch.as_tensor(x), state.variance, state.local)
        return found.matrix, found.gradient

    def merit(self, state: State) -> float:
        """χ² and priors."""
        return state.local.merit

    def noise(self, state: State) -> float:
        """√χ² a pixel where it exceeds 1: how much larger than formal the real errors are."""
        pixels = float(self.objective.boxes.used.sum())
        return max(1.0, state.local.chi2 / pixels) ** 0.5
