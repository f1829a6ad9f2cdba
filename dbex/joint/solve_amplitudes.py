"""The |F|² of all reflections together with what stills share: Gauss-Newton steps by conjugate gradients."""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.linalg import splu

from dbex.errors import BadInput
from dbex.joint.amplitude_visits import AmplitudeVisitor, Summed
from dbex.joint.amplitudes import solved
from dbex.joint.merging import extra_error
from dbex.joint.solve import SUMMED_AT_ONCE, Joint, Visits
from dbex.joint.visits import Visitor
from dbex.observations import Means
from dbex.refinement.intensities import inverse_diagonal
from dbex.still import Floats, Ints

#: Steps at most; a solution is one whose next step is below this part of every esd; a step is halved so often.
MOST_STEPS, CONVERGED_ESDS, HALVINGS = 25, 0.02, 6
#: Stills that tell how far intensities scatter about their |F|², and the least scatter.
TELLING, LEAST_SPREAD = 500, 0.01
#: The reference of that scatter is no smaller than this part of the mean |F|².
LEAST_REFERENCE = 0.1
#: Numbers of all stills together up to which esds are those with all of them free.
MOST_DENSE = 4000
#: Without a prior the overall scale and B of the |F|² are held to this.
HELD = 1e-4
HELD_WORDS = ("scale of all |F|²: that of every still", "B of all |F|²: that of every still")


@dataclass(frozen=True)
class Known:
    """What is known of the |F|² (r,) beforehand: values, the standard deviations of their prior or None where there is
    none, s² (1/Å²), and which of them each reflection of the list has."""

    squares: Floats
    sd: Floats | None
    s2: Floats
    classes: Ints


@dataclass(frozen=True)
class Squares:
    """The solution: |F|² (r,) with standard deviations (see _Problem.variances), and counts of stills; the scatter
    of intensities about them; what was held; steps in esds."""

    means: Means
    spread: float
    held: tuple[str, ...]
    steps: tuple[float, ...]


@dataclass(frozen=True)
class _Problem:
    """The system of g and |F|² at one step."""

    visitor: AmplitudeVisitor
    visits: Visits
    known: Known
    joint: Joint
    start: Floats
    shares: Floats

    @property
    def chunks(self) -> list[tuple[tuple[int, ...], Floats]]:
        """Stills that a task adds up, with their shares."""
        indices = [told.index for told in self.joint.state.visited]
        parts = [slice(first, first + SUMMED_AT_ONCE) for first in range(0, len(indices), SUMMED_AT_ONCE)]
        return [(tuple(indices[part]), self.shares[part]) for part in parts]

    @property
    def functionals(self) -> Floats:
        """The held directions over the |F|² (h, r)."""
        if self.known.sd is not None:
            return np.zeros((0, len(self.start)))
        weight = self.visitor.found("reference")
        rows = np.stack([weight, weight * (self.known.s2 - np.average(self.known.s2, weights=weight**2))])
        return np.asarray(rows / (rows * [self.start, self.start * rows[1] / weight]).sum(1, keepdims=True))

    def priors(self, g: Floats, F: Floats) -> tuple[Floats, Floats, Floats, Floats, float]:
        """Of all that is known without the stills: matrix and gradient of g, diagonal and gradient of |F|², merit."""
        prior = np.array([p.prior for p in self.joint.common.parameters])
        matrix, gradient, merit = np.diag(prior**-2.0), -g / prior**2, float(np.sum((g / prior) ** 2))
        for gauge in self.joint.gauges:
            matrix, gradient, merit = matrix + gauge.matrix, gradient + gauge.gradient(g), merit + gauge.merit(g)
        diagonal, pull = np.zeros(len(F)), np.zeros(len(F))
        if self.known.sd is not None:
            diagonal = self.known.sd**-2.0
            pull = -(F - self.known.squares) * diagonal
            merit += float(np.sum((F - self.known.squares) ** 2 * diagonal))
        gone = self.functionals @ (F - self.start)
        return (
            matrix,
            gradient,
            diagonal,
            pull - self.functionals.T @ gone / HELD**2,
            merit + float(gone @ gone) / HELD**2,
        )

    def merit(self, g: Floats, F: Floats, merits: Sequence[float]) -> float:
        """The weighted sum of the stills' merits, and the priors."""
        return float(self.shares @ np.asarray(merits)) + self.priors(g, F)[-1]

    def step(self, g: Floats, F: Floats) -> tuple[Floats, Floats, float, Summed, Floats]:
        """The step of g and |F|², its size in esds, the sums over stills, and the diagonal (r,) of the matrix."""
        tasks = [(indices, shares, len(F)) for indices, shares in self.chunks]
        said = functools.reduce(operator.add, self.visits(self.visitor.summed, tasks))
        matrix, gradient, diagonal, pull, _ = self.priors(g, F)
        matrix, diagonal = matrix + said.matrix, np.maximum(diagonal + said.diagonal, np.finfo(float).tiny)
        seen = (said.count > 0) | (self.known.sd is not None)

        def times(by_g: Floats, by_F: Floats) -> tuple[Floats, Floats]:
            self.visitor.keep("direction", np.concatenate([by_g, by_F]))
            parts = list(self.visits(self.visitor.multiplied, [(i, shares, len(g)) for i, shares in self.chunks]))
            over_g, over_F = (np.sum([part[place] for part in parts], 0) for place in (0, 1))
            prior_g, _, prior_F, _, _ = self.priors(g, F)
            held = self.functionals.T @ (self.functionals @ by_F) / HELD**2
            return over_g + prior_g @ by_g, over_F + np.where(seen, prior_F, 1.0) * by_F + held * seen

        diagonal = np.where(seen, diagonal, 1.0)
        right = (gradient + said.gradient, (pull + said.pull) * seen)
        step_g, step_F = solved(matrix, diagonal, right, times)
        esds = np.sqrt(np.diag(np.linalg.inv(matrix)))
        size = max(float(np.max(np.abs(step_g) / esds)), float(np.max(np.abs(step_F) * np.sqrt(diagonal) * seen)))
        return step_g, step_F, size, said, diagonal

    def variances(self, g: Floats, F: Floats, said: Summed, diagonal: Floats) -> tuple[Floats, Floats | None]:
        """Variances (r,) of the |F|² and the covariance (g, g) of the shared numbers, all else free; where the numbers
        of all stills are too many for one dense system of them, the variances at fixed values of all else, and None.

        The |F|² are eliminated, sparse; what is left is over the stills' own numbers and g (Woodbury).
        """
        indices = [told.index for told in self.joint.state.visited]
        few = [self.visitor.said(i) for i in indices] if len(indices) * len(said.matrix) < MOST_DENSE else []
        if not few or sum(len(one.low) for one in few) + len(g) > MOST_DENSE:
            return 1 / diagonal, None
        matrix, _, prior, _, _ = self.priors(g, F)
        rows, low, near = len(g), [], sparse.diags(np.where(said.count > 0, prior, 1.0)).tocsr()
        cross = np.zeros((len(g), len(F)))
        for one, share in zip(few, self.shares, strict=True):
            put = sparse.csr_array(
                (np.ones(len(one.place)), (np.arange(len(one.place)), one.place)), (len(one.place), len(F))
            )
            near = near + share * (put.T @ one.near @ put)
            low.append(share**0.5 * (put.T @ one.low.T).T)
            cross += share * (put.T @ one.cross.T).T
        held = self.functionals / HELD
        X = np.concatenate([cross, *low, held])
        T = np.diag(np.concatenate([np.zeros(rows), np.ones(sum(map(len, low))), -np.ones(len(held))]))
        T[:rows, :rows] = said.matrix + matrix
        Z = splu(near.tocsc()).solve(X.T)
        inverse = np.linalg.inv(T - X @ Z)
        own = inverse_diagonal(sparse.csr_matrix(near))
        return own + np.einsum("ij,ij->i", Z @ inverse, Z), inverse[:rows, :rows]


def refine_squares(
    joint: Joint, visitor: Visitor, visits: Visits, known: Known, tell: Callable[[str], None]
) -> tuple[Joint, Squares]:
    """The |F|² and the joint solution with them, from a solution that took them for known. Raises BadInput."""
    reference = np.maximum(known.squares, LEAST_REFERENCE * float(np.mean(known.squares)))
    with_squares = AmplitudeVisitor(visitor, LEAST_SPREAD)
    with_squares.keep("classes", known.classes)
    with_squares.keep("reference", reference)
    indices = [told.index for told in joint.state.visited]
    spread = spread_of(list(visits(with_squares.free, indices[:TELLING])), reference)
    with_squares = replace(with_squares, spread=spread)
    shares = joint.state.weights / np.array([told.noise for told in joint.state.visited]) ** 2
    problem = _Problem(with_squares, visits, known, joint, known.squares, shares)
    g, F, part, sizes = joint.g, known.squares.astype(float), 1.0, []
    for number in range(MOST_STEPS):
        with_squares.keep(f"values-{number}", F)
        told = list(visits(with_squares.visit, [(i, joint.common, g, number) for i in indices]))
        with_squares.keep("values-stood", F)
        merit = problem.merit(g, F, [t.merit for t in told])
        step_g, step_F, size, said, diagonal = problem.step(g, F)
        sizes.append(size)
        tell(f"  structure factors, step {number + 1}: {size:.3g} esds")
        if size < CONVERGED_ESDS:
            break
        part = min(2.0, 4 * part)  # halved before it is tried
        for _ in range(HALVINGS + 1):
            part /= 2
            to_g, to_F = g + part * step_g, F + part * step_F
            with_squares.keep(f"values-{number + 1}", to_F)
            merits = list(visits(with_squares.trial, [(i, joint.common, to_g, number + 1) for i in indices]))
            if problem.merit(to_g, to_F, merits) < merit:
                break
        else:
            break
        g, F = to_g, to_F
    variances, covariance = problem.variances(g, F, said, diagonal)
    means = Means(F, np.where(said.count > 0, np.sqrt(variances), np.nan), said.count)
    held = HELD_WORDS if known.sd is None else ()
    state = replace(joint.state, merit=merit)
    joint = replace(joint, solution=replace(joint.solution, x=g, state=state))
    if covariance is not None:
        joint = replace(joint, covariance=covariance)
    return joint, Squares(means, spread, held, tuple(sizes))


def spread_of(free: Sequence[tuple[Ints, Floats, Floats]], reference: Floats) -> float:
    """How far intensities that several stills have of one |F|² scatter about it, over its reference (r,)."""
    place, value, variance = (np.concatenate(column) for column in zip(*free, strict=True))
    if not len(place):
        raise BadInput("no still tells an intensity: structure factors cannot be refined; leave them out")
    order = np.argsort(place, kind="stable")
    first = np.flatnonzero(np.diff(place[order], prepend=-1))
    paired = first[np.diff(np.append(first, len(order))) > 1]
    one, other = order[paired], order[paired + 1]
    squares, scale = (value[one] - value[other]) ** 2, 2**0.5 * reference[place[one]]
    return max(extra_error(squares, variance[one] + variance[other], scale), LEAST_SPREAD)


def told_of(squares: Squares) -> dict[str, Any]:
    """What joint.json tells of them."""
    seen = squares.means.count > 0
    return {
        "reflections": int(seen.sum()),
        "on_several_stills": int((squares.means.count > 1).sum()),
        "spread_of_intensities": squares.spread,
        "held": list(squares.held),
        "steps_in_esds": list(squares.steps),
    }
