"""All stills jointly: Levenberg-Marquardt over what they share, with each still's own numbers eliminated.

The solver is that of one still (dbex.refinement.solvers); its problem here visits the stills. Between two visits only
small matrices of each are held.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from dbex.errors import BadInput
from dbex.joint.gauges import Gauge, gauges_of
from dbex.joint.outliers import weights
from dbex.joint.shared import Common, middle
from dbex.joint.visits import Begun, Said, Visited, Visitor
from dbex.refinement.detector_motion import detector_frame
from dbex.refinement.rounds import CONVERGED_ESDS, ROUGH_ESDS, SAME_BOXES
from dbex.refinement.solvers.levenberg_marquardt import minimise
from dbex.refinement.solvers.solution import Solution, Step
from dbex.still import Floats
from nanobrag_torch.config import BeamConfig
from nanobrag_torch.panel import stack_panels

Task = TypeVar("Task")
Told = TypeVar("Told")

#: Boxes are predicted anew, at most so often, until they stay and the last round moved nothing by more esds.
MAX_ROUNDS, STAYED_ESDS = 4, 0.5
#: And so often for the detector as a whole, from which its units start.
WHOLE_ROUNDS = 1
#: Steps of the units after the spots' centroids, before any pixel is looked at again.
SPOT_ROUNDS = 3
#: Damping to begin with: each still follows by itself, which leaves the shared numbers a nearly linear problem.
JOINT_DAMPING = 1e-6
#: Stills of which a visit adds up what they say.
SUMMED_AT_ONCE = 100
#: A number whose esd exceeds this part of its prior's width is known by its prior.
BY_PRIOR = 0.5


@runtime_checkable
class Visits(Protocol):
    """How tasks reach their worker: results in the order of the tasks, one after the other or side by side."""

    def __call__(self, work: Callable[[Task], Told], tasks: Iterable[Task], /) -> Iterable[Told]:
        """The results of `work` for the tasks."""


@dataclass(frozen=True)
class JointState:
    """What all stills say at one g: what is held of each, their weights, the weighted sum, and the weighted merit."""

    visited: tuple[Visited, ...]
    weights: Floats
    said: Said
    merit: float

    @property
    def pulls(self) -> Floats:
        """How hard each still pulls."""
        return np.array([told.pull for told in self.visited])


@dataclass(frozen=True)
class JointProblem:
    """χ² of all stills as a function of the shared numbers g, each still optimal in its own; stills count by the noise
    that their fit leaves and by their weight against outliers."""

    visitor: Visitor
    common: Common
    visits: Visits
    first: tuple[Visited, ...]
    gauges: tuple[Gauge, ...] = ()

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
        """Matrix and downhill gradient: the weighted sums of those of the stills, the priors and the gauges."""
        matrix, gradient = state.said.matrix + np.diag(self.prior**-2.0), state.said.gradient - g / self.prior**2
        for gauge in self.gauges:
            matrix, gradient = matrix + gauge.matrix, gradient + gauge.gradient(g)
        return matrix, gradient

    def merit(self, state: JointState) -> float:
        """The weighted sum of the stills' merits, the priors and the gauges."""
        return state.merit

    def noise(self, state: JointState) -> float:
        """1: stills count by their noise already."""
        return 1.0

    def _weighted(self, g: Floats, visited: tuple[Visited, ...]) -> JointState:
        weight = weights([told.pull for told in visited])
        shares = weight / np.array([told.noise for told in visited]) ** 2
        indices = [told.index for told in visited]
        parts = [slice(first, first + SUMMED_AT_ONCE) for first in range(0, len(visited), SUMMED_AT_ONCE)]
        tasks = [(tuple(indices[part]), shares[part]) for part in parts]
        said = functools.reduce(operator.add, self.visits(self.visitor.summed, tasks))
        return JointState(visited, weight, said, self._merit(g, visited, weight))

    def _merit(self, g: Floats, visited: Sequence[Visited], weight: Floats) -> float:
        terms = [w * told.merit / told.noise**2 for w, told in zip(weight, visited, strict=True) if w > 0]
        return float(np.sum(terms) + np.sum((g / self.prior) ** 2) + sum(gauge.merit(g) for gauge in self.gauges))


@dataclass(frozen=True)
class Joint:
    """The joint solution: shared numbers and their covariance, formal and from the scatter of the stills, the open
    directions that were held, the stills that took part with their weights, those left out and why, and the steps."""

    common: Common
    solution: Solution
    covariance: Floats
    scatter: Floats
    gauges: tuple[Gauge, ...]
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

    @property
    def undetermined(self) -> tuple[str, ...]:
        """The shared numbers that are known by their prior rather than by the stills."""
        esds = np.sqrt(np.diag(self.covariance))
        return tuple(p.name for p, esd in zip(self.common.parameters, esds, strict=True) if esd > BY_PRIOR * p.prior)

    def task(self, place: int) -> tuple[int, Common, Floats]:
        """The task of ending the still at a place: what all say, in the formal units of that still."""
        told = self.state.visited[place]
        return told.index, self.common, self.solution.matrix * told.noise**2


@dataclass
class Course:
    """The way to the joint solution: the stills still on it, those left behind, the steps so far, and the damping that
    the next begins with: directions that hardly anything determines would creep if every round began with the most."""

    visitor: Visitor
    visits: Visits
    max_iterations: int
    tell: Callable[[str], None]
    used: list[Begun]
    left_out: list[Begun]
    steps: list[tuple[int, Step]] = field(default_factory=list)
    rounds: int = 0
    damping: float = JOINT_DAMPING

    def solved(self, common: Common, g: Floats, gauges: tuple[Gauge, ...], rounds: int, tolerance: float) -> Solution:
        """The shared numbers from g on: boxes are predicted anew until they stay, at most so often. Raises BadInput."""
        for number in range(1, rounds + 1):
            self.rounds += 1
            laid = self.laid_out(common, g)
            problem = JointProblem(self.visitor, common, self.visits, laid, gauges)
            last = number > 1 and float(np.mean([still.same for still in laid])) > SAME_BOXES
            fine = tolerance if last or number == rounds else ROUGH_ESDS
            solution = minimise(problem, g, self.max_iterations, fine, self.show, damping=self.damping)
            self.damping = solution.history[-1].damping if solution.history else self.damping
            moved = np.max(np.abs(solution.x - g) / np.sqrt(np.diag(np.linalg.inv(solution.matrix))))
            g = solution.x
            if last and moved < STAYED_ESDS:
                break
        return solution

    def sought(self, common: Common, g: Floats, gauges: tuple[Gauge, ...]) -> tuple[Floats, Floats]:
        """The shared numbers after a few steps on the spots' centroids, which know the way from however far, and how
        well these tell the places of the detector's units (u,): 1 for as well as the unit in the middle, or better."""
        prior, most = np.array([[p.prior, p.max_step] for p in common.parameters]).T
        for _ in range(SPOT_ROUNDS):
            told = self.visits(self.visitor.sought, [(b.index, common, g) for b in self.used])
            said = functools.reduce(operator.add, [part for part in told if not isinstance(part, str)])
            matrix, gradient = said.matrix + np.diag(prior**-2.0), said.gradient - g / prior**2
            for gauge in gauges:
                matrix, gradient = matrix + gauge.matrix, gradient + gauge.gradient(g)
            g = g + np.clip(np.linalg.solve(matrix, gradient), -most, most)
        names = [p.name for p in common.parameters]
        told_of = [[i for i, name in enumerate(names) if name in unit] for unit in common.frame.names]
        known = np.array([float(np.diag(said.matrix)[mine] @ prior[mine] ** 2) for mine in told_of])
        return g, np.minimum(1.0, known / max(float(np.median(known)), np.finfo(float).tiny))

    def laid_out(self, common: Common, g: Floats) -> tuple[Visited, ...]:
        """All stills with boxes predicted at g; those that cannot be are left behind."""
        told = list(self.visits(self.visitor.lay_out, [(b.index, common, g) for b in self.used]))
        self.left_out += [replace(b, reason=t) for b, t in zip(self.used, told, strict=True) if isinstance(t, str)]
        self.used = [b for b, t in zip(self.used, told, strict=True) if not isinstance(t, str)]
        if not self.used:
            raise BadInput(f"no still is left; the last: {self.left_out[-1].reason}")
        return tuple(t for t in told if not isinstance(t, str))

    def show(self, step: Step, state: Any) -> None:
        """Keep and tell a step."""
        self.steps.append((self.rounds, step))
        refused = "" if step.accepted else ", refused"
        self.tell(f"  jointly, round {self.rounds}, step {step.number}: {step.step_in_esds:.3g} esds{refused}")


def solve(
    visitor: Visitor,
    indices: Sequence[int],
    beam: BeamConfig,
    visits: Visits,
    max_iterations: int,
    tell: Callable[[str], None],
) -> Joint:
    """Refine the stills, first each by itself, then jointly, until boxes and shared numbers stay; where the detector
    moves in units, first as a whole.

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
    course = Course(visitor, visits, max_iterations, tell, used, left_out)
    seen = None
    direction, moves = tuple(float(n) for n in beam.direction), "direction" in visitor.settings.beam
    if visitor.sharing.units is not None:
        whole = course.solved(common, g, gauges_of(common, direction, moves), WHOLE_ROUNDS, ROUGH_ESDS)
        common, g = common.in_units(visitor.sharing, whole.x)
        g, seen = course.sought(common, g, gauges_of(common, direction, moves))
        course.damping = JOINT_DAMPING
        tell(f"  each of {len(common.frame)} units of the detector by itself")
    gauges = gauges_of(common, direction, moves, seen)
    solution = course.solved(common, g, gauges, MAX_ROUNDS, CONVERGED_ESDS)
    return Joint(
        common, solution, *covariances(solution, len(course.used)), gauges, tuple(course.used), tuple(course.left_out),
        tuple(course.steps),
    )  # fmt: skip


def beginning(visitor: Visitor, begun: Sequence[Begun], beam: BeamConfig) -> Common:
    """What the stills share, and where it starts: the detector as it was read, the median cell of the stills."""
    panels = stack_panels(visitor.detector, torch.zeros((), dtype=torch.float64))
    cell = tuple(middle([np.array(b.cell) for b in begun]).tolist()) if visitor.sharing.cell else None
    shared = visitor.shared_parameters(begun[0].index)
    return Common(visitor.detector, panels, detector_frame(panels, beam), cell, shared)


def covariances(solution: Solution, count: int) -> tuple[Floats, Floats]:
    """The covariance (g, g) of the shared numbers: the inverse of the normal matrix, and that which the scatter of what
    the stills say implies, which knows of misfit that neighbouring pixels of one still share (White 1982)."""
    state: JointState = solution.state
    formal = np.linalg.inv(solution.matrix)
    return formal, formal @ state.said.scatter @ formal * (count / max(count - 1, 1))
