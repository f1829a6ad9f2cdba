"""A still's own numbers as a problem for the solver, while those that it shares are held."""

from dataclasses import dataclass, field

import numpy as np

from dbex.refinement.problem import State, StillProblem
from dbex.still import Floats, Ints


@dataclass(frozen=True)
class OwnNumbers:
    """The problem of a still with all of x (n,) held but the numbers at `places`; it begins with `first`, its state at
    x. `told` are the last state that normal equations were asked for, and these, over all of x."""

    problem: StillProblem
    x: Floats
    places: Ints
    first: State
    told: list[tuple[State, Floats, Floats]] = field(default_factory=list)

    @property
    def max_step(self) -> Floats:
        """The largest step of each own number in one iteration."""
        return self.problem.max_step[self.places]

    def whole(self, own: Floats) -> Floats:
        """All of x (n,) with these own numbers."""
        x = self.x.copy()
        x[self.places] = own
        return x

    def start(self, own: Floats) -> State:
        """The state that was there."""
        return self.first

    def renewed(self, own: Floats, state: State) -> State:
        """The state with weights from its model."""
        return self.problem.renewed(self.whole(own), state)

    def trial(self, own: Floats, state: State) -> State:
        """The state at other own numbers with the same weights."""
        return self.problem.trial(self.whole(own), state)

    def normal(self, own: Floats, state: State) -> tuple[Floats, Floats]:
        """Gauss-Newton matrix and downhill gradient of the own numbers."""
        matrix, gradient = self.of_all(own, state)
        return matrix[np.ix_(self.places, self.places)], gradient[self.places]

    def of_all(self, own: Floats, state: State) -> tuple[Floats, Floats]:
        """Gauss-Newton matrix (n, n) and downhill gradient (n,) of all numbers, formed once for a state."""
        if not self.told or self.told[0][0] is not state:
            self.told[:] = [(state, *self.problem.normal(self.whole(own), state))]
        _, matrix, gradient = self.told[0]
        return matrix, gradient

    def merit(self, state: State) -> float:
        """χ² and priors."""
        return self.problem.merit(state)

    def noise(self, state: State) -> float:
        """How much larger than formal the real errors are."""
        return self.problem.noise(state)
