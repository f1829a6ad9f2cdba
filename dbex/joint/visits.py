"""Visits to single stills: whatever a joint refinement does to one of them, with all that it keeps between visits in a
folder on the disk.

A visit loads one still's part, works on it and puts it back, in any process and in any order; what it gives back is
small. So memory holds one still at a time, however many there are.
"""

import copyreg
import functools
import operator
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbex.errors import BadInput
from dbex.joint.amplitudes import SaidOfSquares
from dbex.joint.normal_equations import Reduced, own_places, reduced, with_others
from dbex.joint.outliers import pull
from dbex.joint.own_numbers import OwnNumbers
from dbex.joint.shared import Common, Sharing, on_detector
from dbex.refinement.hot_pixels import hot_pixels, without_pixels
from dbex.refinement.objective import Objective
from dbex.refinement.parameters import CELL, Parameter, Parametrisation
from dbex.refinement.predictions import Predictions
from dbex.refinement.prior import ModelError
from dbex.refinement.problem import State, StillProblem
from dbex.refinement.refine import rough_fit
from dbex.refinement.rounds import CONVERGED_ESDS, Round, fitted_model_error, predicted_objective, same_boxes
from dbex.refinement.search import moving_places, spot_equations
from dbex.refinement.settings import Settings
from dbex.refinement.solvers.levenberg_marquardt import minimise
from dbex.refinement.solvers.solution import Solution
from dbex.refinement.terms import choose_terms
from dbex.still import Floats, Ints, Iteration, Still
from nanobrag_torch.config import DetectorConfig

#: Steps of a still's own numbers in one visit: they follow the shared ones, which seldom takes more than three.
OWN_ITERATIONS = 15
#: Steps of a still's own numbers after its spots' centroids, in one visit.
SPOT_STEPS = 2


@dataclass(frozen=True)
class Begun:
    """A still after its refinement by itself: what it says of the shared parameters (g,), its cell, or the reason why
    it is left out."""

    index: int
    name: str
    shared: Floats | None = None
    cell: tuple[float, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Visited:
    """What is held of a still at the shared values of a visit: merit, χ² a pixel, by how much its esds exceed formal
    ones, how hard it pulls, the part of its boxes that it had before, and whether its own numbers converged."""

    index: int
    merit: float
    chi2_per_pixel: float
    noise: float
    pull: float
    same: float
    converged: bool


@dataclass(frozen=True)
class Said:
    """What stills say together of the shared numbers: weighted sums of their reduced matrices (g, g), of their
    gradients (g,), and of the squares (g, g) of these."""

    matrix: Floats
    gradient: Floats
    scatter: Floats

    def __add__(self, other: "Said") -> "Said":
        return Said(self.matrix + other.matrix, self.gradient + other.gradient, self.scatter + other.scatter)


@dataclass(frozen=True)
class Laid:
    """A still's boxes: their objective, the predictions and the error of F² that they were made with, and the hot
    pixels (panel, slow, fast) that were left out."""

    objective: Objective
    predictions: Predictions
    model_error: ModelError
    hot: tuple[Ints, Ints, Ints]


@dataclass(frozen=True)
class Standing:
    """Where a still stands: x, the variances and amplitudes that its merit was found with, and its normal matrix."""

    x: Floats
    variance: torch.Tensor
    ln_captured: torch.Tensor
    matrix: Floats
    converged: bool


#: The endings of the files that hold the parts of a still.
NAMES = {Begun: "begun", Laid: "boxes", Standing: "standing", Reduced: "said", SaidOfSquares: "squares"}


@dataclass(frozen=True)
class Visitor:
    """Who visits: it reads stills by their number, knows the settings, the detector that all begin from and what they
    share, and keeps their parts in `folder`."""

    read: Callable[[int], Still]
    settings: Settings
    sharing: Sharing
    detector: tuple[DetectorConfig, ...]
    folder: Path

    def still(self, index: int) -> Still:
        """A still as it is read, on the common detector. Raises BadInput."""
        return on_detector(self.read(index), self.detector)

    def begin(self, index: int) -> Begun:
        """Refine a still by itself, with what will be shared free; one that was begun before stands there again."""
        if (self.folder / f"{index:07d}.begun").is_file():
            return self._begun_before(index)
        begun = self._begun(index)
        if begun.reason is None:
            for part in ("boxes", "standing"):
                self._link(index, part, f"first-{part}")
        self.put(index, begun)
        return begun

    def _begun_before(self, index: int) -> Begun:
        begun: Begun = self.get(index, "begun")
        if begun.reason is None:
            for part in ("boxes", "standing"):
                self._link(index, f"first-{part}", part)
        return begun

    def _link(self, index: int, part: str, name: str) -> None:
        """Give a part a second name: what is put there later leaves the other as it was."""
        target = self.folder / f"{index:07d}.{name}"
        target.unlink(missing_ok=True)
        target.hardlink_to(self.folder / f"{index:07d}.{part}")

    def _begun(self, index: int) -> Begun:
        name = f"still {index}"
        try:
            still = self.still(index)
            name = still.name
            final = begun_fit(still, self.settings)
        except (BadInput, np.linalg.LinAlgError) as error:
            return Begun(index, name, reason=str(error))
        x, map = final.solution.x, final.objective.map
        crystal = map.models(torch.as_tensor(x)).crystal
        shared = self.sharing.of(map)
        state = final.state
        self.put(index, Laid(final.objective, final.predictions, final.model_error, hot_pixels(final)))
        solution = final.solution
        self.put(index, Standing(x, state.variance, state.ln_captured, solution.matrix, solution.converged))
        values = np.array([x[map.place(p.name)] for p in shared])
        return Begun(index, name, values, tuple(float(getattr(crystal, edge)) for edge in CELL))

    def shared_parameters(self, index: int) -> tuple[Parameter, ...]:
        """What is shared, in the words of a still that was begun."""
        return self.sharing.of(self.laid(index).objective.map)

    def lay_out(self, task: tuple[int, Common, Floats]) -> Visited | str:
        """Predict a still's boxes anew, about the common beginning with the shared values g of a task (index, common,
        g), and solve for its own numbers; or the reason why that cannot be done."""
        try:
            return self._laid_out(task)
        except (BadInput, np.linalg.LinAlgError) as error:
            return str(error)

    def _laid_out(self, task: tuple[int, Common, Floats]) -> Visited:
        index, common, g = task
        laid, standing = self.laid(index), self.standing(index)
        found = round_of(laid, standing)
        still = without_hot(self.still(index), laid.hot)
        error = self.settings.model_error
        model_error = fitted_model_error(still, found) if error is None else ModelError(error)
        map, x = carried(laid, standing, common, g)
        objective, predictions = predicted_objective(still, map, x, self.settings, model_error)
        again = Laid(objective, predictions, model_error, laid.hot)
        problem = StillProblem(objective)
        visited = self._solved(index, problem, x, problem.start(x), common)
        more = hot_pixels(round_of(again, self.standing(index)))
        self.put(index, replace(again, hot=_both(laid.hot, more)))
        return replace(visited, same=same_boxes(laid.objective, objective) if not len(more[0]) else 0.0)

    def trial(self, task: tuple[int, Common, Floats]) -> float:
        """The merit of a still at other shared values, its own numbers following them, with its weights as they were;
        nothing is kept."""
        index, common, g = task
        return self._moved(index, common, g)[2].local.merit

    def renew(self, task: tuple[int, Common, Floats]) -> Visited:
        """Go to other shared values: weights renewed, the still's own numbers solved for."""
        index, common, g = task
        problem, x, state = self._moved(index, common, g)
        return self._solved(index, problem, x, problem.renewed(x, state), common)

    def sought(self, task: tuple[int, Common, Floats]) -> Said | str:
        """What the centroids of a still's spots say of the shared numbers at g, its own brought to where the spots want
        them, or the reason why that cannot be told."""
        index, common, g = task
        try:
            still = self.still(index)
        except BadInput as error:
            return str(error)
        laid, standing = self.laid(index), self.standing(index)
        map, x = carried(laid, standing, common, g)
        moving = np.array(moving_places(map))
        shared = np.flatnonzero(np.isin(moving, common.places(map)))
        own = own_places(len(moving), shared)
        for _ in range(SPOT_STEPS):
            matrix, gradient = spot_equations(still, map, x)
            x[moving[own]] += np.linalg.solve(matrix[np.ix_(own, own)], gradient[own])
        matrix, gradient = spot_equations(still, map, x)
        there = {p.name: value for p, value in zip(map.parameters, x, strict=True)}
        kept = [there.get(p.name, value) for p, value in zip(laid.objective.map.parameters, standing.x, strict=True)]
        self.put(index, replace(standing, x=np.array(kept)))
        names = [p.name for p in common.parameters]
        place = np.array([names.index(map.parameters[i].name) for i in moving[shared]], dtype=np.int64)
        return said_of(spread_out(reduced(matrix, gradient, shared), place, len(names)), 1.0)

    def summed(self, task: tuple[tuple[int, ...], Floats]) -> Said:
        """The sum of what some stills say, each times its share."""
        return functools.reduce(operator.add, (said_of(self.said(i), by) for i, by in zip(*task, strict=True)))

    def said(self, index: int) -> Reduced:
        """What a still said of the shared numbers when it was last visited."""
        found: Reduced = self.get(index, "said")
        return found

    def ended(self, task: tuple[int, Common, Floats]) -> tuple[Still, Round]:
        """A still and its last round; `together` (g, g) of a task (index, common, together) is what all stills say of
        the shared parameters, in its formal units, and becomes part of its covariance."""
        index, common, together = task
        laid, standing = self.laid(index), self.standing(index)
        found = round_of(laid, standing)
        places = common.places(laid.objective.map)
        joint = with_others(standing.matrix, places, self.said(index).matrix, together)
        still = without_hot(self.still(index), laid.hot)
        return still, replace(found, solution=replace(found.solution, matrix=joint))

    def _moved(self, index: int, common: Common, g: Floats) -> tuple[StillProblem, Floats, State]:
        """The problem of a still, where it goes when the shared values become g, and its state there."""
        laid, standing = self.laid(index), self.standing(index)
        problem = StillProblem(laid.objective)
        x, shared = standing.x.copy(), common.places(laid.objective.map)
        own = own_places(len(x), shared)
        most = problem.max_step[own]
        x[own] += np.clip(self.said(index).own_change(g - x[shared]), -most, most)
        x[shared] = g
        return problem, x, problem.at(x, standing.variance, standing.ln_captured)

    def _solved(self, index: int, problem: StillProblem, x: Floats, state: State, common: Common) -> Visited:
        """Solve for a still's own numbers from a state at x, the shared ones held, and keep what it then says of
        these."""
        shared = common.places(problem.objective.map)
        own = OwnNumbers(problem, x, own_places(len(x), shared), state)
        solution = minimise(own, x[own.places], OWN_ITERATIONS, CONVERGED_ESDS)
        x, state = own.whole(solution.x), solution.state
        matrix, gradient = own.of_all(solution.x, state)
        left = reduced(matrix, gradient, shared)
        self.put(index, Standing(x, state.variance, state.ln_captured, matrix, solution.converged))
        self.put(index, left)
        noise, pixels = problem.noise(state), float(problem.objective.boxes.used.sum())
        hard = pull(left.matrix, left.gradient, noise)
        return Visited(index, state.local.merit, state.local.chi2 / pixels, noise, hard, 0.0, solution.converged)

    def laid(self, index: int) -> Laid:
        """A still's boxes."""
        laid: Laid = self.get(index, "boxes")
        return laid

    def standing(self, index: int) -> Standing:
        """Where a still stands."""
        standing: Standing = self.get(index, "standing")
        return standing

    def get(self, index: int, part: str) -> Any:
        """A part of a still, by the ending of its file."""
        with (self.folder / f"{index:07d}.{part}").open("rb") as stream:
            return pickle.load(stream)

    def put(self, index: int, part: Begun | Laid | Standing | Reduced | SaidOfSquares) -> None:
        """Keep a part of a still, whole or not at all."""
        name = NAMES[type(part)]
        file = self.folder / f"{index:07d}.{name}"
        unfinished = file.with_suffix(f"{file.suffix}.part")
        with unfinished.open("wb") as stream:
            Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(part)
        unfinished.replace(file)


class Pickler(pickle.Pickler):
    """Keeps tensors as arrays: torch's own way takes a third of a millisecond for each, however small, and keeps all
    of what a tensor is a part of."""

    dispatch_table = copyreg.dispatch_table | {Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}


def carried(laid: Laid, standing: Standing, common: Common, g: Floats) -> tuple[Parametrisation, Floats]:
    """A still's parametrisation about the common beginning, and its x there: its own numbers as they stand, g."""
    map = common.rebased(laid.objective.map)
    known = {p.name: value for p, value in zip(laid.objective.map.parameters, standing.x, strict=True)}
    x = np.array([known.get(p.name, 0.0) for p in map.parameters])
    x[common.places(map)] = g
    return map, x


def spread_out(found: Reduced, place: Ints, count: int) -> Reduced:
    """What is said of some shared numbers (k,), at these places of all."""
    matrix, gradient = np.zeros((count, count)), np.zeros(count)
    matrix[np.ix_(place, place)], gradient[place] = found.matrix, found.gradient
    return replace(found, matrix=matrix, gradient=gradient)


def said_of(still: Reduced, share: float) -> Said:
    """A still's word times its share."""
    pulled = share * still.gradient
    return Said(share * still.matrix, pulled, np.outer(pulled, pulled))


def round_of(laid: Laid, standing: Standing) -> Round:
    """What was kept of a still, as a round of a refinement."""
    problem = StillProblem(laid.objective)
    state = problem.at(standing.x, standing.variance, standing.ln_captured)
    solution = Solution(standing.x, standing.converged, "", (), standing.matrix, state)
    return Round(laid.objective, solution, laid.predictions, laid.model_error)


def without_hot(still: Still, hot: tuple[Ints, Ints, Ints]) -> Still:
    """The still with these pixels left out."""
    return without_pixels(still, *hot) if len(hot[0]) else still


def begun_fit(still: Still, settings: Settings) -> Round:
    """A still refined by itself, roughly, with the terms that its data pay for."""
    return choose_terms(rough_fit(still, settings, quietly, thin=True).final, settings, quietly)[0]


def quietly(iteration: Iteration) -> None:
    """Tell nothing of a step."""


def _both(one: tuple[Ints, Ints, Ints], other: tuple[Ints, Ints, Ints]) -> tuple[Ints, Ints, Ints]:
    panel, slow, fast = (np.append(a, b) for a, b in zip(one, other, strict=True))
    return panel, slow, fast
