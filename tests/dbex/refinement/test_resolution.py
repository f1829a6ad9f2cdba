"""The resolution to which a still diffracts is found in its pixels."""

from dataclasses import replace

import numpy as np
import pytest

from dbex.refinement.refine import refine_still, rough_fit
from dbex.refinement.resolution import MOST_SIGNIFICANT, SIGNIFICANT, end_of, limit_from_data
from dbex.refinement.rounds import reach_of_spots, resolution_limit
from dbex.refinement.settings import Settings
from tests.dbex.refinement.closed_form import drawn_still, truth_of
from tests.tolerances import RESOLUTION_RELATIVE

#: Drawn to this spacing, where the shipped amplitudes are still strong, and no further.
ENDS_A = 1.6
SETTINGS = Settings(terms=())


@pytest.fixture(scope="module")
def short(still):
    """A crystal that stops diffracting at 1.6 Å, of whose spots only the coarse ones were indexed."""
    found = drawn_still(still, truth_of(still), d_min=ENDS_A)
    s = np.linalg.norm(found.observed.hkl @ np.asarray(still.experiment.crystal.get_A()).reshape(3, 3).T, axis=1)
    return rows_to(found, s < 1 / 2.2)


def rows_to(still, chosen):
    """The still with some of its spots."""
    spots = still.observed
    return replace(still, observed=replace(spots, **{name: column[chosen] for name, column in vars(spots).items()}))


def test_reflections_end_where_their_mean_significance_falls_below_two():
    s = np.linspace(0.1, 1.0, 1000)
    falling = 8 * (1 - s)
    assert 1 / end_of(s, falling, 0.5) == pytest.approx(1 - SIGNIFICANT / 8, abs=1e-3)
    order = np.random.default_rng(1).permutation(1000)
    noisy = (falling + np.random.default_rng(2).normal(size=1000))[order]
    assert 1 / end_of(s[order], noisy, 0.5) == pytest.approx(1 - SIGNIFICANT / 8, abs=0.03)


def test_one_bright_pixel_beyond_the_end_is_no_diffraction():
    s, significance = np.linspace(0.1, 1.0, 100), np.where(np.arange(100) < 50, 5.0, 0.0)
    significance[80] = 1e4
    assert MOST_SIGNIFICANT < 31 * SIGNIFICANT
    assert 1 / end_of(s, significance, 0.5) == pytest.approx(s[49])


def test_what_does_not_end_goes_on_to_the_last_amplitude():
    assert end_of(np.linspace(0.1, 1.0, 100), np.full(100, 5.0), 0.8) == 0.8
    assert end_of(np.zeros(0), np.zeros(0), 0.8) == 0.8


def test_the_end_of_a_crystal_that_diffracts_farther_than_its_spots_were_indexed_is_found(short):
    fit = rough_fit(short, SETTINGS, lambda _: None)
    assert reach_of_spots(short) > 2.0
    # where the first rounds looked, before any pixel was asked
    assert resolution_limit(short, SETTINGS) > 1.1 * ENDS_A
    found = limit_from_data(short, fit.final)
    assert found == pytest.approx(ENDS_A, rel=RESOLUTION_RELATIVE)
    assert found > short.finest_A


def test_the_rounds_that_follow_go_to_that_end_unless_another_was_asked_for(short):
    refined = refine_still(short, SETTINGS)
    q = refined.boxes.hkl @ np.asarray(short.experiment.crystal.get_A()).reshape(3, 3).T
    assert 1 / np.linalg.norm(q, axis=1).max() == pytest.approx(refined.figures["d_min_A"], rel=RESOLUTION_RELATIVE)
    assert refined.figures["d_min_A"] == pytest.approx(ENDS_A, rel=RESOLUTION_RELATIVE)
    assert refined.verdict.state == "good"
    asked = refine_still(short, replace(SETTINGS, d_min=2.0))
    assert asked.figures["d_min_A"] == 2.0
    assert asked.still.d_min_A is None
    q = asked.boxes.hkl @ np.asarray(short.experiment.crystal.get_A()).reshape(3, 3).T
    assert 1 / np.linalg.norm(q, axis=1).max() > 1.99
