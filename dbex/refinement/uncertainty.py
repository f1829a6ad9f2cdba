"""How well the data determine what was refined, and what they ask for beyond it."""

from dataclasses import dataclass

import numpy as np

from dbex.refinement.parameters import Parametrisation
from dbex.still import Floats

#: A direction whose curvature is below this fraction of the largest, in units of the priors, is not determined.
SINGULAR = 1e-10


@dataclass(frozen=True)
class Curvature:
    """Covariance (n, n) of x, the condition number of the correlation matrix, and its worst direction in words."""

    covariance: Floats
    condition_number: float
    worst_direction: str


def curvature(matrix: Floats, map: Parametrisation) -> Curvature:
    """What the normal matrix says: parameters are scaled to unit curvature before conditions are compared."""
    covariance, values, vectors = _inverse(matrix)
    return Curvature(covariance, float(values[-1] / values[0]), _in_words(vectors[:, 0], map))


def _inverse(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    """The inverse of a normal matrix, positive also where rounding left it singular, and the eigenvalues and vectors
    of the matrix scaled to a unit diagonal."""
    diagonal = np.diag(matrix)
    scale = 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(matrix * np.outer(scale, scale))
    values = np.maximum(values, SINGULAR * values[-1])
    return (vectors / values) @ vectors.T * np.outer(scale, scale), values, vectors


def _in_words(direction: Floats, map: Parametrisation) -> str:
    """The parameters that make up a direction, largest first, with their signs."""
    order = np.argsort(-np.abs(direction))
    large = [i for i in order if abs(direction[i]) > 0.3 * abs(direction[order[0]])][:5]
    sign = np.sign(direction[large[0]])
    return ", ".join(f"{'+' if direction[i] * sign > 0 else '-'}{map.parameters[i].name}" for i in large)
