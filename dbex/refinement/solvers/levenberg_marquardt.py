"""Gauss-Newton with Levenberg-Marquardt damping for a merit whose weights follow the model.

A problem gives, at x: its state with weights frozen as they were (`trial`), its state with weights renewed
(`renewed`), and the normal equations there. A step is judged with the weights that it was computed with: renewing them
moves the merit by itself. Predicted against actual reduction decides the damping (Nielsen 1999).

Where a model leaves misfit, Gauss-Newton lacks the curvature of what is left and of weights that follow: steps then
only halve. Near the end it is learnt from how the gradient changes from step to step (Dennis, Gay & Welsch 1981).
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dbex.refinement.solvers.solution import Solution, Step
from dbex.still import Floats

#: Steps that repeat are a solution where they are below this fraction of the esds; so many are looked at.
STALLED_ESDS, WINDOW = 0.1, 5
#: They repeat where so many won less than this part of what a single one promises: in a bent valley, or where the
#: largest step holds them, equal steps lead on.
STALLED_GAIN = 0.1
#: Damping: to begin with, at least, and where the solver gives up.
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-9, 1e8
#: The lacking curvature is learnt from steps below so many esds, as long as it leaves so much of the least curvature.
LEARNT_BELOW_ESDS, LEAST_LEFT = 3.0, 0.2
#: Where no step lowers the merit, however short, the last whole step must have been below this.
LOWEST_ESDS = 0.5


@runtime_checkable
class Problem(Protocol):
    """What the solver asks: states are opaque but for their merit."""

    @property
    def max_step(self) -> Floats:
        """The largest step of each coordinate in one iteration."""

    def start(self, x: Floats) -> Any:
        """The state at x with weights from the data."""

    def renewed(self, x: Floats, state: Any) -> Any:
        """The state at the x of `state` with weights from its model."""

    def trial(self, x: Floats, state: Any) -> Any:
        """The state at x with the weights of `state`."""

    def normal(self, x: Floats, state: Any) -> tuple[Floats, Floats]:
        """Gauss-Newton matrix (n, n) and downhill gradient (n,) of half the merit at `state`."""

    def merit(self, state: Any) -> float:
        """χ² and priors of a state."""

    def noise(self, state: Any) -> float:
        """The factor, 1 or more, by which real errors exceed formal ones: steps are judged by real ones."""


def minimise(
    problem: Problem,
    x: Floats,
    max_iterations: int,
    tolerance_esds: float,
    progress: Callable[[Step, Any], None] | None = None,
    state: Any = None,
    damping: float = FIRST_DAMPING,
) -> Solution:
    """Minimise from x until an undamped step is below `tolerance_esds` of every esd, or no step lowers the merit;
    `state` is that at x where it is known, `damping` that of the first step."""
    growth = 2.0
    state = problem.start(x) if state is None else state
    history: list[Step] = []
    sizes: list[float] = []
    merits: list[float] = []
    matrix, gradient = problem.normal(x, state)
    lacking = np.zeros_like(matrix)
    message, converged = f"no convergence in {max_iterations} iterations", False
    for number in range(1, max_iterations + 1):
        size = whole_step_in_esds(matrix, gradient, lacking) / problem.noise(state)
        if size < tolerance_esds:
            message, converged = f"the next step is {size:.2g} esds", True
            break
        if not history or history[-1].accepted:
            sizes.append(size)
            merits.append(problem.merit(state) / problem.noise(state) ** 2)
        if _stalled(sizes, merits):
            message, converged = f"steps of {size:.2g} esds repeat", size < STALLED_ESDS
            break
        curvature = matrix + lacking
        step = _damped_step(curvature, gradient, damping, problem.max_step)
        expected = float(2 * step @ gradient - step @ curvature @ step)
        trial = problem.trial(x + step, state)
        fall = problem.merit(state) - problem.merit(trial)
        # a step that its limits bend may promise nothing: then it only has to lower the merit
        gain = fall / expected if expected > 0 else float(np.sign(fall))
        accepted = bool(np.isfinite(gain) and gain > 1e-3)
        record = Step(number, problem.merit(trial if accepted else state), damping, size, accepted)
        history.append(record)
        if accepted:
            x, state, before = x + step, problem.renewed(x + step, trial), gradient
            matrix, gradient = problem.normal(x, state)
            if size < LEARNT_BELOW_ESDS:
                lacking = _learnt(lacking, matrix, step, before - gradient)
            damping, growth = max(LEAST_DAMPING, damping * max(0.1, 1 - (2 * min(gain, 1.0) - 1) ** 3)), 2.0
        elif lacking.any():
            # what was learnt elsewhere misleads here
            lacking = np.zeros_like(matrix)
        else:
            damping, growth = damping * growth, growth * 2
        if progress is not None:
            progress(record, state)
        if damping > MOST_DAMPING:
            message, converged = "no step lowers the merit any more", size < LOWEST_ESDS
            break
    return Solution(x, converged, message, tuple(history), matrix, state)


def _stalled(sizes: list[float], merits: list[float]) -> bool:
    """Whether steps (esds) no longer become smaller and win nothing either: weights that follow the model can make it
    swing about its optimum. A whole step promises to lower the merit by at least its square."""
    if len(sizes) <= WINDOW:
        return False
    shortest = min(sizes[-WINDOW:])
    won = min(merits[:-WINDOW]) - min(merits[-WINDOW:])
    return shortest > 0.7 * min(sizes[:-WINDOW]) and won < STALLED_GAIN * shortest**2


def _damped_step(matrix: Floats, gradient: Floats, damping: float, max_step: Floats) -> Floats:
    """The damped step; where it exceeds the largest step of a parameter that one goes so far, the others as is best
    then."""
    damped = matrix + damping * np.diag(np.diag(matrix))
    step, held = np.linalg.solve(damped, gradient), np.zeros(len(gradient), bool)
    while (beyond := ~held & (np.abs(step) > max_step)).any():
        held |= beyond
        step[held] = np.clip(step, -max_step, max_step)[held]
        right = gradient[~held] - damped[np.ix_(~held, held)] @ step[held]
        step[~held] = np.linalg.solve(damped[np.ix_(~held, ~held)], right)
    return step


def _learnt(lacking: Floats, matrix: Floats, step: Floats, change: Floats) -> Floats:
    """The curvature (n, n) that a Gauss-Newton matrix lacks, from what was known of it and the change of the downhill
    gradient over a step; nothing where that would leave hardly any curvature."""
    along = float(step @ change)
    if along <= 0:
        return np.zeros_like(matrix)
    missed = change - (matrix + lacking) @ step
    both = np.outer(missed, change)
    lacking = lacking + (both + both.T) / along - float(missed @ step) * np.outer(change, change) / along**2
    scale = 1 / np.sqrt(np.diag(matrix))
    least, left = (np.linalg.eigvalsh(m * np.outer(scale, scale))[0] for m in (matrix, matrix + lacking))
    return lacking if left > LEAST_LEFT * least else np.zeros_like(matrix)


def whole_step_in_esds(matrix: Floats, gradient: Floats, lacking: Floats | None = None) -> float:
    """The largest component of the undamped step, in units of its parameter's esd; with the curvature (n, n) that the
    Gauss-Newton matrix lacks."""
    covariance = np.linalg.inv(matrix)
    step = covariance @ gradient if lacking is None else np.linalg.solve(matrix + lacking, gradient)
    return float(np.max(np.abs(step) / np.sqrt(np.abs(np.diag(covariance)))))
