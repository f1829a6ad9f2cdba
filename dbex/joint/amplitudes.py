"""|F|² of reflections as numbers that stills share: what a still says of them, and the steps that all say together.

A still's own intensities scatter about the shared |F|² by the error that its model leaves, and are eliminated as ever;
what they say of |F|² is a sparse matrix, nearly diagonal, less a low rank for the numbers of the still that are not
shared. Neither is ever made dense over the reflections: steps come from conjugate gradients (docs/physics.md, 8).
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.sparse.linalg import LinearOperator, cg

from dbex.refinement.objective import Local, NormalEquations
from dbex.still import Floats, Ints

#: Conjugate gradients stop where the residual is this part of the right-hand side, or after so many steps.
PRECISE, MOST_STEPS = 1e-12, 2000


@dataclass(frozen=True)
class SaidOfSquares:
    """What a still says, its own numbers eliminated, of the shared numbers g and of the |F|² of its reflections, which
    stand at `place` (m,) of all: `matrix` (g, g), `gradient` (g,), `cross` (g, m), and over its reflections `near`, a
    sparse (m, m), less lowᵀ low with `low` (l, m), and `pull` (m,), the downhill gradient. How its own numbers follow:
    `own_step` (l,), `own_by_g` (l, g), `own_by_F` (l, m)."""

    place: Ints
    matrix: Floats
    gradient: Floats
    cross: Floats
    near: sparse.csr_array
    low: Floats
    pull: Floats
    own_step: Floats
    own_by_g: Floats
    own_by_F: Floats

    def times(self, g: Floats, F: Floats) -> tuple[Floats, Floats]:
        """The matrix times a direction of g and all |F|² (r,): its parts over g and over its own |F|² (m,)."""
        mine = F[self.place]
        over_F = self.near @ mine - self.low.T @ (self.low @ mine) + self.cross.T @ g
        return self.matrix @ g + self.cross @ mine, over_F

    @property
    def diagonal(self) -> Floats:
        """The diagonal (m,) over its |F|²."""
        return np.asarray(self.near.diagonal() - (self.low**2).sum(0))

    def own_change(self, g: Floats, F: Floats) -> Floats:
        """The change (l,) of a still's own numbers that belongs to changes of g and of all |F|² (r,)."""
        return np.asarray(self.own_step + self.own_by_g @ g + self.own_by_F @ F[self.place])


def said_of_squares(found: NormalEquations, local: Local, mean: Floats, place: Ints, shared: Ints) -> SaidOfSquares:
    """What a still says whose normal equations over x and linear optimum these are; `mean` (m,) is the |F|² that its
    intensities scatter about, `shared` the places of g in x.

    With K the system of the intensities u in units of their scatter s, the |F|² have (1 - K⁻¹)/s² over themselves and,
    with the numbers x, -(du/dx)ᵀ/s² - bᵀ/s, b the derivatives of (u - |F|²)/s by what x does to s (Schur complement of
    the intensities).
    """
    sd = local.sd.numpy()
    inverse = local.factor.solve(np.eye(len(sd)))
    near = sparse.csr_array((np.eye(len(sd)) - inverse) / np.outer(sd, sd))
    pull = (local.intensity.numpy() - mean) / sd**2
    by_x = -found.sensitivity.T / sd**2 - found.by_prior.T / sd
    own = np.setdiff1d(np.arange(len(found.gradient)), shared)
    A, B, X = found.matrix[np.ix_(own, own)], found.matrix[np.ix_(own, shared)], by_x[own]
    scale = 1 / np.sqrt(np.diag(A))
    factor = cho_factor(A * np.outer(scale, scale), lower=True)
    solved = scale[:, None] * cho_solve(factor, scale[:, None] * np.column_stack([B, X, found.gradient[own]]))
    by_g, by_F, step = solved[:, : len(shared)], solved[:, len(shared) : -1], solved[:, -1]
    S = found.matrix[np.ix_(shared, shared)] - B.T @ by_g
    return SaidOfSquares(
        place,
        (S + S.T) / 2,
        found.gradient[shared] - B.T @ step,
        by_x[shared] - B.T @ by_F,
        near,
        solve_triangular(factor[0], scale[:, None] * X, lower=True),
        pull - X.T @ step,
        step,
        -by_g,
        -by_F,
    )


def solved(
    matrix: Floats,
    diagonal: Floats,
    right: tuple[Floats, Floats],
    times: Callable[[Floats, Floats], tuple[Floats, Floats]],
) -> tuple[Floats, Floats]:
    """The step (g,), (r,) of shared numbers and |F|² from a right-hand side, by conjugate gradients; `times`
    multiplies, `matrix` (g, g) and `diagonal` (r,) are its blocks, which precondition. Raises ValueError where it does
    not converge."""
    count, size = len(matrix), len(matrix) + len(diagonal)
    scale = 1 / np.sqrt(np.concatenate([np.diag(matrix), diagonal]))
    inverse = np.linalg.inv(matrix * np.outer(scale[:count], scale[:count])) if count else np.zeros((0, 0))

    def multiplied(v: Floats) -> Floats:
        both = times(scale[:count] * v[:count], scale[count:] * v[count:])
        return np.asarray(scale * np.concatenate(both))

    def preconditioned(v: Floats) -> Floats:
        return np.concatenate([inverse @ v[:count], v[count:]])

    operator = LinearOperator((size, size), matvec=multiplied, dtype=float)
    M = LinearOperator((size, size), matvec=preconditioned, dtype=float)
    relative = "rtol" if "rtol" in inspect.signature(cg).parameters else "tol"  # its name before SciPy 1.12
    found, failed = cg(
        operator, scale * np.concatenate(right), maxiter=MOST_STEPS, M=M, atol=0.0, **{relative: PRECISE}
    )
    if failed:
        raise ValueError(f"conjugate gradients did not converge in {MOST_STEPS} steps")
    return scale[:count] * found[:count], scale[count:] * found[count:]
