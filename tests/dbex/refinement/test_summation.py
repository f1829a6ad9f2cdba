"""Intensities by summation: drawn photons give them back."""

from dataclasses import replace

import numpy as np
import torch

from dbex.refinement.groups import DATA
from dbex.refinement.summation import summed
from tests.dbex.refinement.test_objective import crowded
from tests.tolerances import PULL_SQUARED_FOUR_SIGMA

__all__ = ["crowded"]
DRAWS = 300


def drawn(objective, local, variance, truth, rng):
    """The objective and its linear optimum with other data: spots of these intensities (m,) on 9 photons a pixel."""
    at_nodes = objective.at_nodes(torch.as_tensor(truth))[objective.boxes.box]
    bragg = (objective.profiles_of(local.columns) * at_nodes).sum(-1)
    data = bragg + 9.0 + torch.sqrt(variance) * torch.as_tensor(rng.normal(size=bragg.shape))
    boxes = replace(objective.boxes, data=data, others=torch.zeros_like(data))
    columns = [part.clone() for part in local.columns]
    for group, part in zip(objective.groups.groups, columns, strict=True):
        part[:, DATA] = group.of(data)
    objective = replace(objective, boxes=boxes)
    return objective, objective.solve_with(columns, variance)


def test_sums_of_drawn_photons_give_back_intensities_within_their_esds(crowded):
    """The light of neighbours is that of their prior."""
    objective, _, variance, local = crowded
    own = objective.boxes.node[:, 0].numpy()
    truth = objective.prior.mean.numpy() * 2.0
    mean = torch.as_tensor(truth)
    known = replace(objective, prior=replace(objective.prior, mean=mean, sd=1e-3 * mean))
    rng, pulls = np.random.default_rng(6), []
    for _ in range(DRAWS):
        found, solved = drawn(known, local, variance, truth, rng)
        value, spread = summed(found, variance, solved)
        pulls.append((value - truth[own]) / np.sqrt(spread))
    square = (np.array(pulls) ** 2).mean(0)
    square = square[np.isfinite(square)]
    assert len(square) > 0.9 * len(own)
    assert np.abs(square - 1).max() < PULL_SQUARED_FOUR_SIGMA


def test_a_spot_without_a_used_pixel_has_no_sum(crowded):
    objective, _, variance, local = crowded
    used = objective.boxes.used.clone()
    used[objective.boxes.box == 0] = False
    before, _ = summed(objective, variance, local)
    value, spread = summed(replace(objective, boxes=replace(objective.boxes, used=used)), variance, local)
    assert np.isfinite(before[0])
    assert np.isnan(value[0])
    assert np.isnan(spread[0])
    np.testing.assert_array_equal(value[1:], before[1:])
