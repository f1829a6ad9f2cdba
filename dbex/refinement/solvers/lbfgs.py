"""Limited-memory BFGS behind the same interface: for problems whose normal matrix is too dear, and as a check.

Within a round the weights are frozen and scipy's L-BFGS-B follows the gradient, in coordinates scaled by the curvature
at its start; between rounds the weights are renewed. It needs many more evaluations than Levenberg-Marquardt.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize

from dbex.refinement.solvers.levenberg_marquardt import Problem, whole_step_in_esds
from dbex.refinement.solvers.solution import Solution, Step
from dbex.still import Floats


def minimise(
    problem: Problem,
    x: Floats,
    max_iterations: int,
    tolerance_esds: float,
    progress: Callable[[Step, Any], None] | None = None,
    state: Any = None,
) -> Solution:
    """Minimise from x in rounds of frozen weights until an undamped Gauss-Newton step is below `tolerance_esds`;
    `state` is that at x where it is known."""
    state = problem.start(x) if state is None else state
    history: list[Step] = []
    message, converged = f"no convergence in {max_iterations} rounds", False
    for number in range(1, max_iterations + 1):
        matrix, gradient = problem.normal(x, state)
        size = whole_step_in_esds(matrix, gradient) / problem.noise(state)
        if size < tolerance_esds:
            message, converged = f"the next step is {size:.2g} esds", True
            break
        found = _round(problem, x, state, matrix)
        accepted = found.merit_after < problem.merit(state)
        history.append(Step(number, min(found.merit_after, problem.merit(state)), 0.0, size, accepted))
        if not accepted:
            message, converged = "no step lowers the merit any more", size < 10 * tolerance_esds
            break
        x, state = found.x, problem.renewed(found.x, problem.trial(found.x, state))
        if progress is not None:
            progress(history[-1], state)
    matrix, _ = problem.normal(x, state)
    return Solution(x, converged, message, tuple(history), matrix, state)


class _Round:
    """Where one round of frozen weights ended."""

    def __init__(self, x: Floats, merit_after: float) -> None:
        self.x, self.merit_after = x, merit_after


def _round(problem: Problem, x: Floats, state: Any, matrix: Floats) -> _Round:
    """L-BFGS-B with the weights of `state`; no coordinate leaves the reach of its largest step."""
    scale = 1 / np.sqrt(np.diag(matrix))

    def value_and_slope(y: Floats) -> tuple[float, Floats]:
        trial = problem.trial(x + scale * y, state)
        _, downhill = problem.normal(x + scale * y, trial)
        return 0.5 * problem.merit(trial), -downhill * scale

    reach = problem.max_step / scale
    found = minimize(
        value_and_slope,
        np.zeros_like(x),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(-reach, reach, strict=True)),
        options={"maxiter": 60, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-6},
    )
    return _Round(x + scale * found.x, 2 * float(found.fun))
