"""Visits to stills whose |F|² are shared: each still's intensities scatter about them."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dbex.joint.amplitudes import SaidOfSquares, said_of_squares
from dbex.joint.normal_equations import Reduced, own_places
from dbex.joint.own_numbers import OwnNumbers
from dbex.joint.shared import Common
from dbex.joint.visits import Laid, Standing, Visitor, round_of
from dbex.refinement.objective import Objective
from dbex.refinement.prior import IntensityPrior
from dbex.refinement.problem import State, StillProblem
from dbex.refinement.rounds import CONVERGED_ESDS, solved_round
from dbex.refinement.solvers.levenberg_marquardt import minimise
from dbex.refinement.tables import free_intensities
from dbex.still import Floats, Ints

OWN_ITERATIONS = 10


@dataclass(frozen=True)
class Told:
    """What is held of a still: its merit, and by how much its esds exceed formal ones."""

    index: int
    merit: float
    noise: float


@dataclass(frozen=True)
class Summed:
    """Weighted sums over stills: matrix and gradient of g, gradient and diagonal (r,) of the |F|², and how many stills
    have each."""

    matrix: Floats
    gradient: Floats
    pull: Floats
    diagonal: Floats
    count: Ints

    def __add__(self, other: "Summed") -> "Summed":
        return Summed(
            self.matrix + other.matrix,
            self.gradient + other.gradient,
            self.pull + other.pull,
            self.diagonal + other.diagonal,
            self.count + other.count,
        )


@dataclass(frozen=True)
class AmplitudeVisitor:
    """Visits stills that `visitor` has brought to their joint solution. Every process finds in its folder which |F|²
    each reflection of the list has (`classes.npy`), what scatter is relative to (`reference.npy`) and the values of
    each step; intensities scatter by `spread` times the reference."""

    visitor: Visitor
    spread: float

    def keep(self, name: str, values: NDArray[Any]) -> None:
        """Write an array for all processes to find."""
        np.save(self.visitor.folder / f"{name}.npy", values)

    def found(self, name: str) -> Any:
        """An array that was written."""
        return np.load(self.visitor.folder / f"{name}.npy")

    def free(self, index: int) -> tuple[Ints, Floats, Floats]:
        """What the pixels alone say: which |F|² (n,), its value and variance, those of the whole still's misfit."""
        found = round_of(self.visitor.laid(index), self.visitor.standing(index))
        value, variance = free_intensities(solved_round(found))
        boxes = found.objective.boxes
        own = self.found("classes")[boxes.reflections[boxes.node[:, 0].numpy()]]
        good = np.isfinite(value) & np.isfinite(variance) & (variance > 0)
        return own[good], value[good], variance[good] * found.problem.noise(found.state) ** 2

    def objective(self, laid: Laid, step: int) -> tuple[Objective, Ints]:
        """A still's objective about the |F|² of a step, and which they are (m,)."""
        place = self.found("classes")[laid.objective.boxes.reflections]
        mean, sd = self.found(f"values-{step}")[place], self.spread * self.found("reference")[place]
        prior = IntensityPrior(torch.as_tensor(mean), torch.as_tensor(sd))
        return replace(laid.objective, prior=prior), place

    def visit(self, task: tuple[int, Common, Floats, int]) -> Told:
        """Bring a still's own numbers to the shared ones g and the |F|² of a step, and keep what it then says."""
        index, common, g, step = task
        problem, x, state, place = self._moved(index, common, g, step)
        shared = common.places(problem.objective.map)
        own = OwnNumbers(problem, x, own_places(len(x), shared), problem.renewed(x, state))
        solution = minimise(own, x[own.places], OWN_ITERATIONS, CONVERGED_ESDS)
        x, state = own.whole(solution.x), solution.state
        normal = problem.objective.normal_equations(torch.as_tensor(x), state.variance, state.local)
        said = said_of_squares(normal, state.local, problem.objective.prior.mean.numpy(), place, shared)
        standing = Standing(x, state.variance, state.ln_captured, normal.matrix, solution.converged)
        for part in (replace(self.visitor.laid(index), objective=problem.objective), standing, said):
            self.visitor.put(index, part)
        self.visitor.put(index, Reduced(said.matrix, said.gradient, said.own_by_g, said.own_step))
        return Told(index, state.local.merit, problem.noise(state))

    def trial(self, task: tuple[int, Common, Floats, int]) -> float:
        """The merit of a still elsewhere, its own numbers following, with its weights as they were."""
        return self._moved(*task)[2].local.merit

    def summed(self, task: tuple[Sequence[int], Floats, int]) -> Summed:
        """What some stills say, each times its share, of g and of r |F|²."""
        indices, shares, count = task
        parts = [(self.said(index), share) for index, share in zip(indices, shares, strict=True)]
        pull, diagonal, times = np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.int64)
        for said, share in parts:
            np.add.at(pull, said.place, share * said.pull)
            np.add.at(diagonal, said.place, share * said.diagonal)
            np.add.at(times, np.unique(said.place), 1)
        matrix = sum(share * said.matrix for said, share in parts)
        gradient = sum(share * said.gradient for said, share in parts)
        return Summed(np.asarray(matrix), np.asarray(gradient), pull, diagonal, times)

    def multiplied(self, task: tuple[Sequence[int], Floats, int]) -> tuple[Floats, Floats]:
        """Some stills' matrices, each times its share, times the direction that was kept, of g numbers and the |F|²."""
        indices, shares, count = task
        direction = self.found("direction")
        g, F = direction[:count], direction[count:]
        over_g, over_F = np.zeros(count), np.zeros(len(F))
        for index, share in zip(indices, shares, strict=True):
            said = self.said(index)
            by_g, by_F = said.times(g, F)
            over_g += share * by_g
            np.add.at(over_F, said.place, share * by_F)
        return over_g, over_F

    def said(self, index: int) -> SaidOfSquares:
        """What a still said when it was last visited."""
        file = self.visitor.folder / f"{index:07d}.squares"
        return _said(file, file.stat().st_mtime_ns)

    def _moved(self, index: int, common: Common, g: Floats, step: int) -> tuple[StillProblem, Floats, State, Ints]:
        laid, standing = self.visitor.laid(index), self.visitor.standing(index)
        objective, place = self.objective(laid, step)
        problem, x = StillProblem(objective), standing.x.copy()
        shared = common.places(objective.map)
        own = own_places(len(x), shared)
        if step > 0:
            change = self.found(f"values-{step}") - self.found("values-stood")
            most = problem.max_step[own]
            x[own] += np.clip(self.said(index).own_change(g - x[shared], change), -most, most)
        x[shared] = g
        return problem, x, problem.at(x, standing.variance, standing.ln_captured), place


@lru_cache(maxsize=256)
def _said(file: Path, written: int) -> SaidOfSquares:
    with file.open("rb") as stream:
        found: SaidOfSquares = pickle.load(stream)
    return found
