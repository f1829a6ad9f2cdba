"""A still's objective as the problem that the solver knows nothing of crystals about."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.objective import Local, Objective
from dbex.still import Floats

#: Variances and linear optimum are brought into agreement this often before anything moves.
FIRST_RENEWALS = 4


#: Residuals up to so many sigmas count in full; it acts on hot pixels and on spots that are no spots.
HUBER_Z = 6.0


def huber_weight(residual: Tensor, variance: Tensor) -> Tensor:
    """Huber's weight of each pixel: 1 up to HUBER_Z sigmas, then falling as 1/|Z|."""
    return (HUBER_Z * torch.sqrt(variance) / torch.abs(residual).clamp_min(1e-30)).clamp_max(1.0)


@dataclass(frozen=True)
class State:
    """The linear optimum at one x and the variances that it was found with."""

    variance: Tensor
    local: Local


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
        local = self.objective.solve_linear(torch.as_tensor(x), self.objective.first_variance())
        for _ in range(FIRST_RENEWALS):
            variance = self.robust_variance(local)
            local = self.objective.solve_with(local.columns, variance)
        return self._state(x, variance, local)

    def renewed(self, x: Floats, state: State) -> State:
        """Variances half-way, in the logarithm, to those of the model of `state`: whole ways can swing for ever."""
        variance = torch.sqrt(state.variance * self.robust_variance(state.local))
        return self._state(x, variance, self.objective.solve_with(state.local.columns, variance))

    def robust_variance(self, local: Local) -> Tensor:
        """Variances of the model over Huber's weights: a residual beyond `HUBER_Z` pulls no harder than there."""
        variance = self.objective.variance(local)
        return variance / huber_weight(self.objective.boxes.data - local.background - local.bragg, variance)

    def trial(self, x: Floats, state: State) -> State:
        """Another x with the same variances."""
        return self._state(x, state.variance, self.objective.solve_linear(torch.as_tensor(x), state.variance))

    def _state(self, x: Floats, variance: Tensor, local: Local) -> State:
        widths = np.array([p.prior for p in self.objective.map.parameters])
        return State(variance, local.raised(float(np.sum((x / widths) ** 2))))

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
