"""Normal equations of one still over what is its own and what is shared, with its own eliminated.

With A over the own numbers, C over the shared and B between them, what a still says of the shared is
S = C - Bᵀ A⁻¹ B and s = c - Bᵀ A⁻¹ a; the own follow by A⁻¹ (a - B Δ). It is exact for the linearised problem
(docs/physics.md, section 8). Planes and intensities of the boxes are eliminated before (dbex.refinement.objective).
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from dbex.still import Floats, Ints


@dataclass(frozen=True)
class Reduced:
    """What is left of a still's normal equations: `matrix` (g, g) and `gradient` (g,) of the shared numbers; how its
    own follow these, `sensitivity` (l, g), and the step (l,) that they would make by themselves."""

    matrix: Floats
    gradient: Floats
    sensitivity: Floats
    own_step: Floats

    def own_change(self, shared_change: Floats) -> Floats:
        """The change (l,) of a still's own numbers that belongs to one of the shared (g,)."""
        return np.asarray(self.own_step + self.sensitivity @ shared_change)


def own_places(count: int, shared: Ints) -> Ints:
    """The places of x that are not shared."""
    return np.setdiff1d(np.arange(count), shared)


def reduced(matrix: Floats, gradient: Floats, shared: Ints) -> Reduced:
    """Eliminate from a Gauss-Newton matrix (n, n) and downhill gradient (n,) all but the `shared` places.

    Own numbers are scaled to unit curvature first: their units differ by many powers of ten.
    """
    own = own_places(len(gradient), shared)
    A, B, C = matrix[np.ix_(own, own)], matrix[np.ix_(own, shared)], matrix[np.ix_(shared, shared)]
    scale = 1 / np.sqrt(np.diag(A))
    factor = cho_factor(A * np.outer(scale, scale))
    solved = scale[:, None] * cho_solve(factor, scale[:, None] * np.column_stack([B, gradient[own]]))
    sensitivity, own_step = -solved[:, :-1], solved[:, -1]
    S = C + B.T @ sensitivity
    return Reduced((S + S.T) / 2, gradient[shared] - B.T @ own_step, sensitivity, own_step)


def with_others(matrix: Floats, shared: Ints, alone: Floats, together: Floats) -> Floats:
    """A still's matrix (n, n) with what all stills say of the shared numbers, `together` (g, g), in the place of what
    it says `alone`: its inverse is the covariance of the still's numbers in the joint solution."""
    joint = matrix.copy()
    joint[np.ix_(shared, shared)] += together - alone
    return joint
