"""All stills jointly: Levenberg-Marquardt over what they share, with each still's own numbers eliminated.

The solver is that of one still (dbex.refinement.solvers); its problem here visits the stills. Between two visits only
small matrices of each are held.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from dbex.errors import BadInput
from dbex.joint.outliers import pull, weights
from dbex.joint.shared import Common, middle
from dbex.joint.visits import Begun, Visited, Visitor
from dbex.refinement.parameters import detector_frame
from dbex.refinement.rounds import CONVERGED_ESDS, ROUGH_ESDS, SAME_BOXES, STAYED_ESDS
from dbex.refinement.solvers.levenberg_marquardt import minimise
from dbex.refinement.solvers.solution import Solution, Step
from dbex.still import Floats
from nanobrag_torch.config import BeamConfig
from nanobrag_torch.panel import stack_panels

Task = TypeVar("Task")
Told = TypeVar("Told")

#: Boxes are predicted anew until they stay, at most so often.
MAX_ROUNDS = 4


@runtime_checkable
class Visits(Protocol):
    """How tasks reach their worker: results in the order of the tasks, one after the other or side by side."""

    def __call__(self, work: Callable[[Task], Told], tasks: Iterable[Task], /) -> Iterable[Told]:
        """The results of `work` for the tasks."""


@dataclass(frozen=True)
class JointState:
    """What all stills say at one g: of each what its last visit told, its weight, and the weighted merit."""

    visited: tuple[Visited, ...]
    weights: Floats
    merit: float
    pulls: Floats


@dataclass(frozen=True)
class JointProblem:
    """χ² of all stills as a function of the shared numbers g, each still optimal in its own; stills count by the noise
    that their fit leaves and by their weight against outliers."""

    visitor: Visitor
    common: Common
    visits: Visits
    first: tuple[Visited, ...]

    @property
    def max_step(self) -> Floats:
        """The largest step of each shared number in one iteration."""
        return np.array([p.max_step for p in self.common.parameters])

    @property
    def prior(self) -> Floats:
        """The widths (g,) of the shared numbers' priors."""
        return np.array([p.prior for p in self.common.parameters])

    def start(self, g: Floats) -> JointState:
        """What the stills said when their boxes were laid out."""
        return self._weighted(g, self.first)

    def trial(self, g: Floats, state: JointState) -> JointState:
        """Other shared numbers, with the weights of stills and pixels as they were."""
        tasks = [(told.index, self.common, g) for told in state.visited]
        merits = self.visits(self.visitor.trial, tasks)
        visited = tuple(replace(told, merit=merit) for told, merit in zip(state.visited, merits, strict=True))
        return replace(state, visited=visited, merit=self._merit(g, visited, state.weights))

    def renewed(self, g: Floats, state: JointState) -> JointState:
        """The stills gone to g."""
        tasks = [(told.index, self.common, g) for told in state.visited]
        return self._weighted(g, tuple(self.visits(self.visitor.renew, tasks)))

    def normal(self, g: Floats, state: JointState) -> tuple[Floats, Floats]:
        """Matrix and downhill gradient: the weighted sums of those of the stills, and the priors."""
        matrix, gradient = np.diag(self.prior**-2.0), -g / self.prior**2
        for told, share in zip(state.visited, shares(state), strict=True):
            matrix = matrix + share * told.reduced.matrix
            gradient = gradient + share * told.reduced.gradient
        return matrix, gradient

    def merit(self, state: JointState) -> float:
        """The weighted sum of the stills' merits, and the priors."""
        return state.merit

    def noise(self, state: JointState) -> float:
        """1: stills count by their noise already."""
        return 1.0

    def _weighted(self, g: Floats, visited: tuple[Visited, ...]) -> JointState:
        pulls = np.array([pull(told.reduced.matrix, told.reduced.gradient, told.noise) for told in visited])
        weight = weights(pulls)
        return JointState(visited, weight, self._merit(g, visited, weight), pulls)

    def _merit(self, g: Floats, visited: Sequence[Visited], weight: Floats) -> float:
        terms = [w * told.merit / told.noise**2 for w, told in zip(weight, visited, strict=True) if w > 0]
        return float(np.sum(terms) + np.sum((g / self.prior) ** 2))


def shares(state: JointState) -> Floats:
    """By what each still's normal equations are multiplied in the sum."""
    return np.array([w / told.noise**2 for w, told in zip(state.weights, state.visited, strict=True)])


@dataclass(frozen=True)
class Joint:
    """The joint solution: shared numbers and their covariance, formal and from the scatter of the stills, the stills
    that took part with their weights, those left out and why, and the steps."""

    common: Common
    solution: Solution
    covariance: Floats
    scatter: Floats
    begun: tuple[Begun, ...]
    left_out: tuple[Begun, ...]
    steps: tuple[tuple[int, Step], ...]

    @property
    def g(self) -> Floats:
        """The shared numbers."""
        return self.solution.x

    @property
    def state(self) -> JointState:
        """What the stills say there."""
        found: JointState = self.solution.state
        return found

    def task(self, place: int) -> tuple[int, Common, Floats]:
        """The task of ending the still at a place: what all say, in the formal units of that still."""
        told = self.state.visited[place]
        return told.index, self.common, self.solution.matrix * told.noise**2


def solve(
    visitor: Visitor,
    indices: Sequence[int],
    beam: BeamConfig,
    visits: Visits,
    max_iterations: int,
    tell: Callable[[str], None],
) -> Joint:
    """Refine the stills, first each by itself, then jointly, until boxes and shared numbers stay.

    `beam` is where the common detector's frame has its pivot. Raises BadInput when no still is left.
    """
    begun = []
    for still in visits(visitor.begin, indices):
        tell(f"  {still.name}: {still.reason or 'refined by itself'}")
        begun.append(still)
    used, left_out = [b for b in begun if b.reason is None], [b for b in begun if b.reason is not None]
    if not used:
        raise BadInput(f"none of the {len(begun)} stills could be refined; the first: {begun[0].reason}")
    common = beginning(visitor, used, beam)
    g = middle([np.asarray(b.shared) for b in used])
    if common.cell is not None:
        g[[i for i, p in enumerate(common.parameters) if p.group == "cell"]] = 0.0
    steps: list[tuple[int, Step]] = []
    for number in range(1, MAX_ROUNDS + 1):
        told = list(visits(visitor.lay_out, [(b.index, common, g) for b in used]))
        left_out += [replace(b, reason=t) for b, t in zip(used, told, strict=True) if isinstance(t, str)]
        used = [b for b, t in zip(used, told, strict=True) if not isinstance(t, str)]
        laid = tuple(t for t in told if not isinstance(t, str))
        if not laid:
            raise BadInput(f"no still is left of {len(begun)}; the last: {left_out[-1].reason}")
        problem = JointProblem(visitor, common, visits, laid)
        last = number > 1 and float(np.mean([still.same for still in laid])) > SAME_BOXES

        def show(step: Step, state: Any, number: int = number) -> None:
            steps.append((number, step))
            refused = "" if step.accepted else ", refused"
            tell(f"  jointly, round {number}, step {step.number}: {step.step_in_esds:.3g} esds{refused}")

        tolerance = CONVERGED_ESDS if last or number == MAX_ROUNDS else ROUGH_ESDS
        solution = minimise(problem, g, max_iterations, tolerance, show)
        moved = np.max(np.abs(solution.x - g) / np.sqrt(np.diag(np.linalg.inv(solution.matrix))))
        g = solution.x
        if last and moved < STAYED_ESDS:
            break
    return Joint(common, solution, *covariances(solution), tuple(used), tuple(left_out), tuple(steps))


def beginning(visitor: Visitor, begun: Sequence[Begun], beam: BeamConfig) -> Common:
    """What the stills share, and where it starts: the detector as it was read, the median cell of the stills."""
    panels = stack_panels(visitor.detector, torch.zeros((), dtype=torch.float64))
    cell = tuple(middle([np.array(b.cell) for b in begun]).tolist()) if visitor.sharing.cell else None
    return Common(visitor.detector, panels, detector_frame(panels, beam), cell, begun[0].parameters)


def covariances(solution: Solution) -> tuple[Floats, Floats]:
    """The covariance (g, g) of the shared numbers: the inverse of the normal matrix, and that which the scatter of what
    the stills say implies, which knows of misfit that neighbouring pixels of one still share (White 1982)."""
    state: JointState = solution.state
    formal = np.linalg.inv(solution.matrix)
    pulled = np.array([share * told.reduced.gradient for told, share in zip(state.visited, shares(state), strict=True)])
    count = len(pulled)
    scatter = formal @ pulled.T @ pulled @ formal * (count / max(count - 1, 1))
    return formal, scatter
