"""How much a still's word counts: stills that pull the shared numbers much harder than the others do are held back.

The pull of a still is the distance, in its own esds, between the common numbers and those that it would choose. On real
stills it exceeds 1 for all of them, because formal esds know only of noise: what tells an outlier is its pull over the
median one.
"""

from collections.abc import Sequence

import numpy as np

from dbex.still import Floats

#: Stills count in full up to so many median pulls.
PULL_LIMIT = 3.0
OUTLIER_RULE = f"Huber: a still that pulls more than {PULL_LIMIT:g} times as hard as the median one pulls no harder"
#: Directions in which a still knows less than this part of what it knows best do not count.
BLIND = 1e-9


def pull(matrix: Floats, gradient: Floats, noise: float) -> float:
    """The rms over the shared numbers, in a still's own esds, of its distance from the common optimum; `matrix` and
    `gradient` are its reduced normal equations there, `noise` by how much its esds exceed the formal ones."""
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(matrix * np.outer(scale, scale))
    seen = values > BLIND * values[-1]
    along = vectors.T @ (scale * gradient)
    return float(np.sqrt(np.mean(along[seen] ** 2 / values[seen])) / noise)


def weights(pulls: Sequence[float] | Floats) -> Floats:
    """Weights (n,) of stills that pull so hard; 0 for one whose pull is no number."""
    hard = np.asarray(pulls, dtype=float)
    finite = np.isfinite(hard)
    if not finite.any():
        return np.zeros(len(hard))
    limit = PULL_LIMIT * max(1.0, float(np.median(hard[finite])))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, np.minimum(1.0, limit / hard), 0.0)
