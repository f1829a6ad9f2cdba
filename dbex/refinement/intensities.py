"""Intensities without prior: reflections whose spots overlap are solved together, each with the variance that the
others leave it.

A neighbour that has no box of its own shows only its tail, which does not determine it: it alone keeps the prior of the
structure factors, whose variance then is part of the result.
"""

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from torch import Tensor

from dbex.refinement.groups import DATA, FIRST_NODE
from dbex.refinement.objective import Local, Objective
from dbex.still import Bools, Floats, Ints

#: Of a reflection's own curvature: keeps two spots in one place from a singular system, and moves nothing else.
RIDGE = 1e-12
#: A reflection is determined where the ridge carries less than this part of it.
LEAST_OWN = 0.01
#: And where its esd, alone, is below so many times the largest F²: a vanishing profile has a square beyond all numbers.
MOST_ESD = 1e10
#: Overlapping reflections up to so many are inverted at once; larger sets column by column, so many at a time.
DENSE, COLUMNS = 200, 256


def solved_without_prior(objective: Objective, variance: Tensor, local: Local) -> tuple[Floats, Floats]:
    """The intensity of each box's own reflection (n,) and its variance, for variances (N,) of pixels; NaN where no
    pixel determines it. Planes are eliminated."""
    node, m = objective.boxes.node, len(objective.prior.mean)
    matrix, right = _without_planes(objective, variance, local)
    curvature = matrix.diagonal()
    boxed = np.zeros(m, dtype=bool)
    boxed[node[:, 0].numpy()] = True
    seen = boxed & (curvature * (MOST_ESD * float(objective.prior.mean.max())) ** 2 > 1)
    known = objective.prior.sd.numpy() ** -2.0
    extra = np.where(boxed, np.where(seen, RIDGE * curvature, 1.0), known)
    told = np.where(boxed, 0.0, known * objective.prior.mean.numpy())
    value, spread = _solved(matrix, extra, right + told, apart=node.shape[1] == 1)
    own = node[:, 0].numpy()
    determined = (seen & (RIDGE * curvature * spread < LEAST_OWN))[own]
    return np.where(determined, value[own], np.nan), np.where(determined, spread[own], np.nan)


def _solved(matrix: sparse.csr_matrix, extra: Floats, right: Floats, apart: bool) -> tuple[Floats, Floats]:
    """Solution (m,) and diagonal of the inverse (m,) of a matrix with `extra` (m,) on its diagonal; where unknowns are
    `apart` it has nothing else."""
    diagonal = np.maximum(matrix.diagonal(), 0.0) + extra
    if apart:
        return right / diagonal, 1 / diagonal
    scale = 1 / np.sqrt(diagonal)
    scaled = sparse.diags(scale) @ (matrix + sparse.diags(extra)) @ sparse.diags(scale)
    return splu(scaled.tocsc()).solve(right * scale) * scale, inverse_diagonal(scaled.tocsr()) * scale**2


def _without_planes(objective: Objective, variance: Tensor, local: Local) -> tuple[sparse.csr_matrix, Floats]:
    """Normal matrix (m, m) and right-hand side (m,) of all intensities once every box's plane follows them."""
    node, m = objective.boxes.node, len(objective.prior.mean)
    gram = objective.gram(local.columns, objective.weights(variance))
    left = torch.linalg.solve(gram[:, :DATA, :DATA], gram[:, :DATA, DATA:])
    reduced = gram[:, FIRST_NODE:, DATA:] - gram[:, FIRST_NODE:, :DATA] @ left
    real, place = node >= 0, node.clamp_min(0)
    both = real[:, :, None] & real[:, None, :]
    rows, cols = (a.expand_as(both)[both].numpy() for a in (place[:, :, None], place[:, None, :]))
    right = np.zeros(m)
    np.add.at(right, place[real].numpy(), reduced[..., 0][real].numpy())
    return sparse.coo_matrix((reduced[..., 1:][both].numpy(), (rows, cols)), shape=(m, m)).tocsr(), right


def inverse_diagonal(matrix: sparse.csr_matrix) -> Floats:
    """The diagonal (m,) of the inverse of a symmetric matrix that falls into many blocks, whatever their order."""
    matrix.eliminate_zeros()
    label = connected_components(matrix, directed=False)[1].astype(np.int64)
    size = np.bincount(label)
    result = np.empty(len(label))
    for s in np.unique(size):
        mine = size[label] == s
        if s <= DENSE:
            result[mine] = _small_blocks(matrix, label, mine, int(s))
        else:
            result[mine] = _large_blocks(matrix[mine][:, mine].tocsc())
    return result


def _small_blocks(matrix: sparse.csr_matrix, label: Ints, mine: Bools, size: int) -> Floats:
    """The diagonal of the inverse over the rows that are `mine`, in blocks of one size."""
    rows = np.flatnonzero(mine)
    order = np.argsort(label[rows], kind="stable")
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    part = matrix[rows][:, rows].tocoo()
    blocks = np.zeros((len(rows) // size, size, size))
    blocks[rank[part.row] // size, rank[part.row] % size, rank[part.col] % size] = part.data
    return np.asarray(np.linalg.inv(blocks).diagonal(axis1=1, axis2=2).ravel()[rank])


def _large_blocks(matrix: sparse.csc_matrix) -> Floats:
    """The same, one column of the inverse after another."""
    factor, m = splu(matrix), matrix.shape[0]
    result = np.empty(m)
    for first in range(0, m, COLUMNS):
        last = min(first + COLUMNS, m)
        unit = np.zeros((m, last - first))
        unit[np.arange(first, last), np.arange(last - first)] = 1.0
        result[first:last] = factor.solve(unit)[np.arange(first, last), np.arange(last - first)]
    return result
