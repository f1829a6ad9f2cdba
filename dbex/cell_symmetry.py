"""Which numbers of a unit cell are free under a space group."""

from typing import Any

import numpy as np
from cctbx import sgtbx
from numpy.typing import NDArray

CELL_NAMES = ("cell_a", "cell_b", "cell_c", "cell_alpha", "cell_beta", "cell_gamma")

#: The elements of a metric tensor in the order in which they are stacked here.
_PAIRS = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def free_cell_parameters(
    space_group: Any, unit_cell: tuple[float, ...] | None = None
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """The independent cell parameters under a space group, and the map (6, k) from their changes to those of all six.

    The map is the tangent, at the symmetrised `unit_cell`, of the cells whose metric tensor the group leaves alone;
    in every conventional setting it is made of zeros and ones and does not depend on the cell. Changes of lengths are
    in Å and of angles in degrees.
    """
    projector = _metric_projector(space_group)
    cell = np.asarray(unit_cell if unit_cell is not None else (50.0, 60.0, 70.0, 85.0, 95.0, 105.0))
    cell = _cell_of_metric(projector @ _metric(cell))
    tangent = np.linalg.solve(_metric_derivative(cell), projector @ _metric_derivative(cell))
    rows = _row_echelon(tangent.T)
    pivots = [int(np.flatnonzero(row)[0]) for row in rows]
    return tuple(CELL_NAMES[i] for i in pivots), rows.T


def _metric_projector(space_group: Any) -> NDArray[np.float64]:
    """The average of Rᵀ G R over the group, as a map (6, 6) of the elements 11, 22, 33, 23, 13, 12 of G."""
    group = space_group.group() if isinstance(space_group, sgtbx.space_group_info) else space_group
    rotations = [np.asarray(op.r().as_double()).reshape(3, 3) for op in group.smx()]
    columns = []
    for i, j in _PAIRS:
        G = np.zeros((3, 3))
        G[i, j] = G[j, i] = 1.0
        average = np.mean([R.T @ G @ R for R in rotations], axis=0)
        columns.append([average[p] for p in _PAIRS])
    return np.array(columns).T


def _metric(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = cell[:3]
    cos = np.cos(np.radians(cell[3:]))
    return np.array([a * a, b * b, c * c, b * c * cos[0], a * c * cos[1], a * b * cos[2]])


def _cell_of_metric(metric: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = np.sqrt(metric[:3])
    cos = metric[3:] / np.array([b * c, a * c, a * b])
    return np.array([a, b, c, *np.degrees(np.arccos(cos))])


def _metric_derivative(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """d metric / d cell (6, 6), angles in degrees."""
    a, b, c = cell[:3]
    cos, sin = np.cos(np.radians(cell[3:])), np.sin(np.radians(cell[3:]))
    lengths = [
        [2 * a, 0, 0], [0, 2 * b, 0], [0, 0, 2 * c],
        [0, c * cos[0], b * cos[0]], [c * cos[1], 0, a * cos[1]], [b * cos[2], a * cos[2], 0],
    ]  # fmt: skip
    angles = np.zeros((6, 3))
    angles[[3, 4, 5], [0, 1, 2]] = -np.radians(np.array([b * c, a * c, a * b]) * sin)
    return np.hstack([np.array(lengths), angles])


def _row_echelon(matrix: NDArray[np.float64], tolerance: float = 1e-9) -> NDArray[np.float64]:
    """The reduced row echelon form without its empty rows; what is within `tolerance` of a whole number becomes it."""
    m, row = matrix.copy(), 0
    for column in range(m.shape[1]):
        pivot = row + int(np.argmax(np.abs(m[row:, column]))) if row < len(m) else row
        if row >= len(m) or abs(m[pivot, column]) < tolerance:
            continue
        m[[row, pivot]] = m[[pivot, row]]
        m[row] /= m[row, column]
        others = np.arange(len(m)) != row
        m[others] -= np.outer(m[others, column], m[row])
        row += 1
    m = m[:row]
    whole = np.round(m)
    return np.where(np.abs(m - whole) < 1e-7, whole, m)
