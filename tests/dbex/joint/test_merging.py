"""Means of many observations, and the agreement of halves."""

from dataclasses import replace

import numpy as np
import pytest

from dbex.joint.merging import half_shells, merged, with_model_error
from dbex.observations import Observations
from tests.tolerances import MERGED_BIAS, PULL_RMS

REFLECTIONS, TIMES = 400, 12
PIXEL_SD, PARTIALITY_ERROR = 30.0, 0.3


def drawn(seed=1):
    """Observations of known intensities, with noise of pixels and a relative error, and their groups."""
    rng = np.random.default_rng(seed)
    truth = rng.exponential(1000.0, REFLECTIONS)
    group = np.repeat(np.arange(REFLECTIONS), TIMES)
    relative = PARTIALITY_ERROR * rng.uniform(0.1, 1.0, len(group))
    value = truth[group] * (1 + relative * rng.normal(size=len(group))) + PIXEL_SD * rng.normal(size=len(group))
    n = len(group)
    zeros = np.zeros(n, dtype=np.int64)
    found = Observations(
        np.zeros((n, 3), dtype=np.int64), zeros, value, np.full(n, PIXEL_SD**2), relative, np.ones(n), np.zeros((n, 2)),
        zeros,
    )  # fmt: skip
    return found, group, truth


def test_means_are_not_pulled_down_by_observations_that_came_out_small():
    found, group, truth = drawn()
    means = merged(found, group, REFLECTIONS)
    assert means.value.sum() / truth.sum() == pytest.approx(1.0, abs=MERGED_BIAS)
    assert (means.count == TIMES).all()


def test_their_sigmas_are_those_of_their_errors():
    found, group, truth = drawn()
    means = merged(found, group, REFLECTIONS)
    pulls = (means.value - truth) / means.sigma
    assert np.sqrt(np.mean(pulls**2)) == pytest.approx(1.0, abs=PULL_RMS)


def test_halves_agree_as_well_as_their_noise_allows():
    found, group, truth = drawn()
    means = merged(found, group, REFLECTIONS)
    *shells, whole = half_shells(found, group, REFLECTIONS, np.linspace(10, 1.5, REFLECTIONS), truth)
    assert sum(shell.reflections for shell in shells) == whole.reflections == REFLECTIONS
    # a half has twice the variance of the whole
    noise = 2 * np.mean(means.sigma**2) / truth.var()
    assert whole.cc_half == pytest.approx(1 / (1 + noise), abs=0.01)
    assert 0 < whole.r_half < noise**0.5


def test_halves_of_noise_do_not_correlate():
    found, group, _ = drawn()
    mixed = found.select(np.random.default_rng(2).permutation(len(found)))
    whole = half_shells(mixed, group, REFLECTIONS, np.ones(REFLECTIONS), np.ones(REFLECTIONS) + np.arange(REFLECTIONS))[
        -1
    ]
    assert abs(whole.cc_half) < 4 / REFLECTIONS**0.5


def test_the_error_that_the_model_leaves_shows_in_repeated_observations():
    found, group, _ = drawn()
    unaware = replace(found, relative_error=np.zeros(len(found)))
    aware, error = with_model_error(unaware, group)
    # the median of a mixture of errors that are spread evenly from 0.1 to 1 of the largest
    assert error == pytest.approx(0.55 * PARTIALITY_ERROR, rel=0.15)
    assert (aware.relative_error == error).all()
    assert with_model_error(found, group)[1] < 0.2 * error
