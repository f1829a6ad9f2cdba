"""Visits to single stills: whatever a joint refinement does to one of them, with all that it keeps between visits in a
folder on the disk.

A visit loads one still's part, works on it and puts it back, in any process and in any order; what it gives back is
small. So memory holds one still at a time, however many there are.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dbex.errors import BadInput
from dbex.joint.normal_equations import Reduced, own_places, reduced, with_others
from dbex.joint.own_numbers import OwnNumbers
from dbex.joint.shared import Common, Sharing, on_detector
from dbex.refinement.hot_pixels import hot_pixels, without_pixels
from dbex.refinement.objective import Objective
from dbex.refinement.parameters import CELL, Parameter
from dbex.refinement.prior import ModelError
from dbex.refinement.problem import State, StillProblem
from dbex.refinement.refine import rough_fit
from dbex.refinement.rounds import CONVERGED_ESDS, Round, fitted_model_error, predicted_objective, same_boxes
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import Predictions
from dbex.refinement.solvers.levenberg_marquardt import minimise
from dbex.refinement.solvers.solution import Solution
from dbex.refinement.terms import choose_terms
from dbex.still import Floats, Ints, Iteration, Still
from nanobrag_torch.config import DetectorConfig

#: Steps of a still's own numbers in one visit: they follow the shared ones, which seldom takes more than three.
OWN_ITERATIONS = 15


@dataclass(frozen=True)
class Begun:
    """A still after its refinement by itself: what it says of the shared parameters (g,), its cell, or the reason why
    it is left out."""

    index: int
    name: str
    parameters: tuple[Parameter, ...] = ()
    shared: Floats | None = None
    cell: tuple[float, ...] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Visited:
    """What a still says at the shared values of a visit: merit, χ² a pixel, by how much its esds exceed formal ones,
    its reduced normal equations, the part of its boxes that it had before, and whether its own numbers converged."""

    index: int
    merit: float
    chi2_per_pixel: float
    noise: float
    reduced: Reduced
    same: float
    converged: bool
    reason: str | None = None


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
    """Where a still stands: x, the variances and amplitudes that its merit was found with, its normal matrix, and
    what was eliminated from it."""

    x: Floats
    variance: torch.Tensor
    ln_captured: torch.Tensor
    matrix: Floats
    reduced: Reduced | None
    converged: bool


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
        """Refine a still by itself, with what will be shared free."""
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
        self._put(index, Laid(final.objective, final.predictions, final.model_error, hot_pixels(final)))
        self._put(
            index, Standing(x, state.variance, state.ln_captured, final.solution.matrix, None, final.solution.converged)
        )
        values = np.array([x[map.place(p.name)] for p in shared])
        return Begun(index, name, shared, values, tuple(float(getattr(crystal, edge)) for edge in CELL))

    def lay_out(self, task: tuple[int, Common, Floats]) -> Visited | str:
        """Predict a still's boxes anew, about the common beginning with the shared values g of a task (index, common,
        g), and solve for its own numbers; or the reason why that cannot be done."""
        try:
            return self._laid_out(task)
        except (BadInput, np.linalg.LinAlgError) as error:
            return str(error)

    def _laid_out(self, task: tuple[int, Common, Floats]) -> Visited:
        index, common, g = task
        laid, standing = self._laid(index), self._standing(index)
        found = round_of(laid, standing)
        still = without_hot(self.still(index), laid.hot)
        error = self.settings.model_error
        model_error = fitted_model_error(still, found) if error is None else ModelError(error)
        map = common.rebased(laid.objective.map)
        x = standing.x.copy()
        if common.cell is not None and laid.objective.map.crystal != map.crystal:
            x[[i for i, p in enumerate(map.parameters) if p.group == "cell"]] = 0.0
        x[common.places(map)] = g
        objective, predictions = predicted_objective(still, map, x, self.settings, model_error)
        again = Laid(objective, predictions, model_error, laid.hot)
        problem = StillProblem(objective)
        visited, standing = solved(index, problem, x, problem.start(x), common)
        more = hot_pixels(round_of(again, standing))
        again = replace(again, hot=_both(laid.hot, more))
        self._put(index, again)
        self._put(index, standing)
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
        visited, standing = solved(index, problem, x, problem.renewed(x, state), common)
        self._put(index, standing)
        return visited

    def ended(self, task: tuple[int, Common, Floats]) -> tuple[Still, Round]:
        """A still and its last round; `together` (g, g) of a task (index, common, together) is what all stills say of
        the shared parameters, in its formal units, and becomes part of its covariance."""
        index, common, together = task
        laid, standing = self._laid(index), self._standing(index)
        found = round_of(laid, standing)
        assert standing.reduced is not None
        places = common.places(laid.objective.map)
        joint = with_others(standing.matrix, places, standing.reduced.matrix, together)
        still = without_hot(self.still(index), laid.hot)
        return still, replace(found, solution=replace(found.solution, matrix=joint))

    def _moved(self, index: int, common: Common, g: Floats) -> tuple[StillProblem, Floats, State]:
        """The problem of a still, where it goes when the shared values become g, and its state there."""
        laid, standing = self._laid(index), self._standing(index)
        problem = StillProblem(laid.objective)
        x, shared = standing.x.copy(), common.places(laid.objective.map)
        own = own_places(len(x), shared)
        assert standing.reduced is not None
        most = problem.max_step[own]
        x[own] += np.clip(standing.reduced.own_change(g - x[shared]), -most, most)
        x[shared] = g
        return problem, x, problem.at(x, standing.variance, standing.ln_captured)

    def _laid(self, index: int) -> Laid:
        laid: Laid = self._get(index, "boxes")
        return laid

    def _standing(self, index: int) -> Standing:
        standing: Standing = self._get(index, "standing")
        return standing

    def _get(self, index: int, part: str) -> Any:
        with (self.folder / f"{index:07d}.{part}").open("rb") as stream:
            return pickle.load(stream)

    def _put(self, index: int, part: Laid | Standing) -> None:
        name = "boxes" if isinstance(part, Laid) else "standing"
        with (self.folder / f"{index:07d}.{name}").open("wb") as stream:
            pickle.dump(part, stream, protocol=pickle.HIGHEST_PROTOCOL)


def solved(index: int, problem: StillProblem, x: Floats, state: State, common: Common) -> tuple[Visited, Standing]:
    """A still solved for its own numbers from a state at x, the shared ones held, and what it then says of these."""
    shared = common.places(problem.objective.map)
    own = OwnNumbers(problem, x, own_places(len(x), shared), state)
    solution = minimise(own, x[own.places], OWN_ITERATIONS, CONVERGED_ESDS)
    x, state = own.whole(solution.x), solution.state
    matrix, gradient = problem.normal(x, state)
    left = reduced(matrix, gradient, shared)
    pixels = float(problem.objective.boxes.used.sum())
    noise = problem.noise(state)
    visited = Visited(index, state.local.merit, state.local.chi2 / pixels, noise, left, 0.0, solution.converged)
    return visited, Standing(x, state.variance, state.ln_captured, matrix, left, solution.converged)


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
