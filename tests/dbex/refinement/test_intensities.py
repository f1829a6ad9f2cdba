"""Intensities without prior where spots overlap: against the dense problem, against drawn photons, and blind to F²."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sparse
import torch

from dbex.refinement import intensities
from dbex.refinement.groups import DATA, FIRST_NODE
from dbex.refinement.intensities import inverse_diagonal, solved_without_prior
from tests.dbex.refinement.test_objective import crowded, dense
from tests.tolerances import DENSE_RELATIVE, PULL_SQUARED_FOUR_SIGMA

__all__ = ["crowded"]
DRAWS = 300


def own_and_boxed(objective):
    """The reflections of the boxes (n,), and for each reflection whether it has a box (m,)."""
    own = objective.boxes.node[:, 0].numpy()
    boxed = np.zeros(len(objective.prior.mean), bool)
    boxed[own] = True
    return own, boxed


def test_overlapping_intensities_and_their_variances_are_those_of_the_dense_problem(crowded):
    """Without the priors' rows of what has a box; a neighbour without one keeps its own."""
    objective, x, variance, local = crowded
    own, boxed = own_and_boxed(objective)
    assert not boxed.all()
    rows, right = dense(objective, x, variance)
    rows[len(rows) - len(boxed) :][boxed] = 0.0
    right[len(right) - len(boxed) :][boxed] = 0.0
    length = np.linalg.norm(rows, axis=0)
    triangle = np.linalg.inv(np.linalg.qr(rows / length, mode="r"))
    expected = np.linalg.lstsq(rows / length, right, rcond=None)[0] / length
    spread = np.diag(triangle @ triangle.T) / length**2
    planes = 3 * len(objective.boxes)
    value, found = solved_without_prior(objective, variance, local)
    np.testing.assert_allclose(found, spread[planes:][own], rtol=DENSE_RELATIVE)
    assert np.abs((value - expected[planes:][own]) / np.sqrt(found)).max() < DENSE_RELATIVE
    # overlap costs: a box's own pixels alone, neighbours taken as known, would seem to tell more
    matrix, _ = intensities._without_planes(objective, variance, local)
    assert (found * matrix.diagonal()[own]).max() > 1.05


def test_drawn_photons_give_back_overlapping_intensities_within_their_esds(crowded):
    """Spots of which each is in the boxes of others, neighbours without a box as the prior says."""
    objective, _, variance, local = crowded
    own, boxed = own_and_boxed(objective)
    rng = np.random.default_rng(5)
    mean, sd = objective.prior.mean.numpy(), objective.prior.sd.numpy()
    truth = mean * np.exp(rng.normal(0, 0.5, len(mean)))
    at = objective.profiles_of(local.columns)
    pulls = []
    for _ in range(DRAWS):
        truth[~boxed] = (mean + sd * rng.normal(size=len(mean)))[~boxed]
        bragg = (at * objective.at_nodes(torch.as_tensor(truth))[objective.boxes.box]).sum(-1)
        data = bragg + 9.0 + torch.sqrt(variance) * torch.as_tensor(rng.normal(size=bragg.shape))
        columns = [part.clone() for part in local.columns]
        for group, part in zip(objective.groups.groups, columns, strict=True):
            part[:, DATA] = group.of(data)
        value, found = solved_without_prior(objective, variance, replace(local, columns=columns))
        pulls.append((value - truth[own]) / np.sqrt(found))
    overlapped = (objective.boxes.node >= 0).sum(1).numpy() > 1
    assert overlapped.sum() > 5
    square = (np.array(pulls)[:, overlapped] ** 2).mean(0)
    assert np.abs(square - 1).max() < PULL_SQUARED_FOUR_SIGMA


def test_no_intensity_of_a_box_follows_the_prior_of_a_boxed_one(crowded):
    """Priors of everything that has a box are moved: nothing changes, overlapping or not."""
    objective, _, variance, local = crowded
    _, boxed = own_and_boxed(objective)
    mean = torch.where(torch.as_tensor(boxed), 3 * objective.prior.mean, objective.prior.mean)
    other = replace(objective, prior=replace(objective.prior, mean=mean))
    for before, after in zip(
        solved_without_prior(objective, variance, local), solved_without_prior(other, variance, local), strict=True
    ):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("light", [0.0, 1e-160, 1e-30])
def test_what_no_pixel_determines_has_no_intensity(crowded, light):
    """A reflection without light in its box and in no other, or with so little that its square is no number."""
    objective, _, variance, local = crowded
    node = objective.boxes.node
    dark = next(i for i in range(len(node)) if (node == node[i, 0]).sum() == 1)
    columns = [part.clone() for part in local.columns]
    for group, part in zip(objective.groups.groups, columns, strict=True):
        if group.reach:
            part[group.box == dark, FIRST_NODE] *= light
    value, found = solved_without_prior(objective, variance, replace(local, columns=columns))
    assert np.flatnonzero(np.isnan(value)).tolist() == np.flatnonzero(np.isnan(found)).tolist() == [dark]


def test_two_spots_in_one_place_have_no_intensity_each(crowded):
    """Wherever a neighbour's light was, the own reflection's is put: only their sum is determined."""
    objective, _, variance, local = crowded
    node = objective.boxes.node.tolist()
    own = [row[0] for row in node]
    here, there = next((i, own.index(j)) for i, row in enumerate(node) for j in row[1:] if j in own)
    pair = {own[here], own[there]}
    columns = [part.clone() for part in local.columns]
    for group, part in zip(objective.groups.groups, columns, strict=True):
        for row, box in enumerate(group.box.tolist()):
            places = [FIRST_NODE + k for k, name in enumerate(node[box][: group.reach]) if name in pair]
            part[row, places] = part[row, places].sum(0) if len(places) == 2 else 0.0
    value, _ = solved_without_prior(objective, variance, replace(local, columns=columns))
    assert np.isnan(value[[here, there]]).all()


@pytest.mark.parametrize("dense_limit", [200, 0])
def test_the_diagonal_of_an_inverse_is_found_block_by_block_in_any_order(dense_limit, monkeypatch):
    monkeypatch.setattr(intensities, "DENSE", dense_limit)
    rng = np.random.default_rng(1)
    blocks = [(a := rng.normal(size=(size, size))) @ a.T + np.eye(size) for size in (1, 3, 2, 3, 1, 5)]
    whole = sparse.block_diag(blocks).toarray()
    order = rng.permutation(len(whole))
    whole = whole[np.ix_(order, order)]
    found = inverse_diagonal(sparse.csr_matrix(whole))
    np.testing.assert_allclose(found, np.diag(np.linalg.inv(whole)), rtol=DENSE_RELATIVE)
