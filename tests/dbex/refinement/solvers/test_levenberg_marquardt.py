"""Levenberg-Marquardt on problems whose answers are known, without a crystal."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from dbex.refinement.solvers import levenberg_marquardt
from dbex.refinement.solvers.levenberg_marquardt import Problem, _learnt, _stalled, minimise
from tests.tolerances import REORDERED_SUM, SOLVER_ABSOLUTE

TOLERANCE_ESDS = 1e-6


@dataclass
class LeastSquares:
    """Σ w r(x)² with weights that stay, unless `weights` says how they follow the model."""

    residuals: object
    jacobian: object
    max_step: np.ndarray
    weights: object = None
    visited: list = field(default_factory=list)

    def weights_at(self, x):
        return np.ones(len(self.residuals(x))) if self.weights is None else self.weights(x)

    def start(self, x):
        return x, self.weights_at(x)

    def renewed(self, x, state):
        return x, self.weights_at(x)

    def trial(self, x, state):
        self.visited.append(x)
        return x, state[1]

    def normal(self, x, state):
        J, w = self.jacobian(x), state[1]
        return J.T @ (w[:, None] * J), -J.T @ (w * self.residuals(x))

    def merit(self, state):
        x, w = state
        return float((w * self.residuals(x) ** 2).sum())

    def noise(self, state):
        return 1.0


def rosenbrock(max_step=(10.0, 10.0)):
    return LeastSquares(
        lambda x: np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]]),
        lambda x: np.array([[-20 * x[0], 10.0], [-1.0, 0.0]]),
        np.array(max_step),
    )


def line(seed=0, weights=None):
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(30, 3))
    data = design @ [1.0, -2.0, 0.5] + rng.normal(size=30)
    return LeastSquares(lambda x: design @ x - data, lambda x: design, np.full(3, 100.0), weights), design, data


def test_what_the_tests_solve_is_a_problem_as_the_solver_means_it():
    assert isinstance(rosenbrock(), Problem)


def test_a_bent_valley_is_followed_to_its_end():
    found = minimise(rosenbrock(), np.array([-1.2, 1.0]), 200, TOLERANCE_ESDS)
    assert found.converged
    assert np.abs(found.x - 1).max() < SOLVER_ABSOLUTE


def misfit(seed=3):
    """Two decays fitted by one: what is left bends the merit as much as the model does."""
    t, rng = np.linspace(0.0, 4.0, 60), np.random.default_rng(seed)
    data = np.exp(-3.0 * t) + 0.9 * np.sin(2 * t) + 0.02 * rng.normal(size=len(t))

    def jacobian(x):
        decay = np.exp(-x[1] * t)
        return np.stack([decay, -x[0] * t * decay], 1)

    return LeastSquares(lambda x: x[0] * np.exp(-x[1] * t) - data, jacobian, np.full(2, 10.0))


def test_the_curvature_of_what_a_model_leaves_is_learnt_near_the_end(monkeypatch):
    start, found = np.array([0.7, 0.5]), []
    for below in (levenberg_marquardt.LEARNT_BELOW_ESDS, 0.0):
        monkeypatch.setattr(levenberg_marquardt, "LEARNT_BELOW_ESDS", below)
        found.append(minimise(misfit(), start, 200, TOLERANCE_ESDS))
    learnt, plain = found
    assert learnt.converged
    assert plain.converged
    assert np.abs(misfit().normal(learnt.x, misfit().start(learnt.x))[1]).max() < SOLVER_ABSOLUTE
    assert len(learnt.history) < 0.7 * len(plain.history)
    # what is told of the solution is the Gauss-Newton matrix
    np.testing.assert_array_equal(learnt.matrix, misfit().normal(learnt.x, misfit().start(learnt.x))[0])


def test_what_was_learnt_is_forgotten_where_it_misleads(monkeypatch):
    """A step that goes uphill is tried again as Gauss-Newton has it, with the damping that there was."""
    monkeypatch.setattr(levenberg_marquardt, "LEARNT_BELOW_ESDS", 1e9)
    # steps are ten times too long
    monkeypatch.setattr(levenberg_marquardt, "_learnt", lambda lacking, matrix, *_: -0.9 * matrix)
    found = minimise(misfit(), np.array([0.7, 0.5]), 200, 1e-3)
    steps = [(step, after) for step, after in zip(found.history, found.history[1:], strict=False) if not step.accepted]
    misled = [(step, after) for step, after in steps if after.damping == step.damping]
    assert misled
    # Gauss-Newton has another step there
    assert all(after.step_in_esds < step.step_in_esds for step, after in misled)
    assert found.converged


def test_no_curvature_is_learnt_from_a_gradient_that_grows_along_the_step():
    matrix, step = np.diag([1.0, 4.0]), np.array([0.1, -0.2])
    assert not _learnt(np.eye(2), matrix, step, -step).any()
    # nor where it would leave hardly any
    assert not _learnt(np.zeros((2, 2)), matrix, step, 0.1 * matrix @ step).any()
    learnt = _learnt(np.zeros((2, 2)), matrix, step, 0.5 * matrix @ step)
    np.testing.assert_allclose((matrix + learnt) @ step, 0.5 * matrix @ step, rtol=REORDERED_SUM)
    np.testing.assert_array_equal(learnt, learnt.T)


def test_a_linear_problem_is_solved_by_its_normal_equations_and_its_curvature_is_theirs():
    problem, design, data = line()
    found = minimise(problem, np.zeros(3), 20, TOLERANCE_ESDS)
    assert found.converged
    assert np.abs(found.x - np.linalg.lstsq(design, data, rcond=None)[0]).max() < SOLVER_ABSOLUTE
    np.testing.assert_allclose(found.matrix, design.T @ design)
    # the first step is damped by a thousandth, the next by less
    assert abs(found.history[0].merit / problem.merit(problem.start(found.x)) - 1) < 1e-4
    assert len(found.history) <= 4


def test_weights_that_follow_the_model_are_those_of_the_result():
    """A constant through Poisson counts: weights of the data give the harmonic mean, of the model the mean."""
    data = np.random.default_rng(1).poisson(5.0, 400).astype(float)
    problem = LeastSquares(
        lambda x: x[0] - data, lambda x: np.ones((400, 1)), np.array([10.0]), lambda x: np.full(400, 1 / x[0])
    )
    problem.start = lambda x: (x, 1 / (data + 1))
    found = minimise(problem, np.array([1.0]), 50, TOLERANCE_ESDS)
    assert found.converged
    assert abs(found.x[0] - data.mean()) < SOLVER_ABSOLUTE * data.mean()
    assert abs(1 / found.matrix[0, 0] / (data.mean() / 400) - 1) < SOLVER_ABSOLUTE


def test_no_step_is_longer_than_the_largest_of_its_parameter():
    limits = np.array([0.05, 0.3])
    problem = rosenbrock(limits)
    found = minimise(problem, np.array([-1.2, 1.0]), 500, TOLERANCE_ESDS)
    assert found.converged
    accepted, at = [np.array([-1.2, 1.0])], 0
    for step, tried in zip(found.history, problem.visited, strict=True):
        assert (np.abs(tried - accepted[at]) <= limits * (1 + 1e-12)).all()
        if step.accepted:
            accepted.append(tried)
            at += 1
    longest = np.max(np.abs(np.diff(accepted, axis=0)), axis=0)
    assert (longest / limits).max() == pytest.approx(1.0)


def test_the_history_tells_what_happened():
    """Merits fall with every accepted step and stay with every other, and the last is that of the solution."""
    problem = rosenbrock()
    seen = []
    found = minimise(problem, np.array([-1.2, 1.0]), 200, TOLERANCE_ESDS, lambda step, state: seen.append(step))
    assert tuple(seen) == found.history
    assert [step.number for step in found.history] == list(range(1, len(found.history) + 1))
    before = problem.merit(problem.start(np.array([-1.2, 1.0])))
    for step in found.history:
        assert step.merit < before if step.accepted else step.merit == before
        before = step.merit
    assert before == problem.merit(found.state)
    assert not all(step.accepted for step in found.history)
    np.testing.assert_array_equal(found.x, found.state[0])


def test_too_few_iterations_are_not_called_a_solution():
    found = minimise(rosenbrock(), np.array([-1.2, 1.0]), 3, TOLERANCE_ESDS)
    assert not found.converged
    assert found.message == "no convergence in 3 iterations"
    assert len(found.history) == 3


def test_a_gradient_of_the_wrong_sign_ends_without_a_solution():
    problem, *_ = line()
    right = problem.normal
    problem.normal = lambda x, state: (right(x, state)[0], -right(x, state)[1])
    found = minimise(problem, np.zeros(3), 100, TOLERANCE_ESDS)
    assert not found.converged
    assert not any(step.accepted for step in found.history)
    np.testing.assert_array_equal(found.x, np.zeros(3))


def test_a_merit_that_is_no_number_is_never_accepted():
    problem, *_ = line()
    problem.merit = lambda state: (
        float("nan") if np.abs(state[0]).max() > 0.1 else float((problem.residuals(state[0]) ** 2).sum())
    )
    found = minimise(problem, np.zeros(3), 30, TOLERANCE_ESDS)
    assert np.abs(found.x).max() <= 0.1


def test_a_direction_that_only_a_weak_prior_determines_stays_where_it_started():
    """Two parameters of which the data see the sum: it is found, their difference keeps the prior's zero."""
    width = 100.0
    problem = LeastSquares(
        lambda x: np.array([x[0] + x[1] - 3.0, 2 * (x[0] + x[1] - 3.0), x[0] / width, x[1] / width]),
        lambda x: np.array([[1.0, 1.0], [2.0, 2.0], [1 / width, 0.0], [0.0, 1 / width]]),
        np.array([10.0, 10.0]),
    )
    found = minimise(problem, np.array([0.3, -0.1]), 100, TOLERANCE_ESDS)
    assert found.converged
    assert found.x.sum() == pytest.approx(3.0, abs=1e-3)
    covariance = np.linalg.inv(found.matrix)
    assert covariance[0, 0] == pytest.approx(width**2 / 2, rel=1e-2)
    assert np.ones(2) @ covariance @ np.ones(2) == pytest.approx(0.2, rel=1e-2)


def test_weights_that_swing_about_their_optimum_end_as_steps_that_repeat():
    """The weight of one of two contradicting data depends on which of them the model is nearer to."""

    def weights(x):
        return np.array([1.0, 10.0]) if x[0] < 0.5 else np.array([10.0, 1.0])

    problem = LeastSquares(
        lambda x: 100 * np.array([x[0], x[0] - 1.0]), lambda x: np.full((2, 1), 100.0), np.array([10.0]), weights
    )
    found = minimise(problem, np.array([0.2]), 100, TOLERANCE_ESDS)
    assert not found.converged
    assert "repeat" in found.message
    assert len(found.history) < 12


def test_steps_are_judged_by_real_errors():
    """Errors twice as large as formal ones end the search at twice the distance."""
    sizes = {}
    for noise in (1.0, 1e3):
        problem, *_ = line()
        problem.noise = lambda state, noise=noise: noise
        found = minimise(problem, np.zeros(3), 20, 0.01)
        assert found.converged
        sizes[noise] = len(found.history)
    assert sizes[1e3] < sizes[1.0]


def test_steps_repeat_where_the_latest_few_are_no_smaller_than_those_before_and_win_nothing():
    flat = [7.0] * 20
    shrinking = [0.5**n for n in range(20)]
    assert not any(_stalled(shrinking[:n], flat[:n]) for n in range(1, 20))
    assert not _stalled([1.0] * 5, flat[:5])
    assert _stalled([1.0] * 6, flat[:6])
    assert _stalled([5.0, 1.0, 0.9, 1.1, 0.95, 1.0, 0.9], flat[:7])
    assert not _stalled([5.0, 1.0, 0.9, 1.1, 0.95, 1.0, 0.1], flat[:7])
    assert not _stalled([1.0] * 6, [7.0, 6.9, 6.8, 6.7, 6.6, 6.5])
    assert _stalled([1.0] * 6, [7.0, 7.5, 6.95, 7.5, 6.95, 7.5])
