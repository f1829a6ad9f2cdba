"""How numbers of many stills scatter."""

import numpy as np
import pytest

from dbex.scatter import OUTLIER_WIDTHS, distance_in_widths, outlying, poles, spread

NONE = float("nan")


def test_the_width_of_normal_deviates_is_their_sigma_whatever_a_few_do():
    rng = np.random.default_rng(1)
    values = rng.normal(5.0, 2.0, 10_000)
    values[:100] = 1e6
    values[100:200] = NONE
    found = spread(values, np.full(10_000, 0.5))
    assert found.stills == 9900
    assert found.median == pytest.approx(5.0, abs=0.1)
    assert found.width == pytest.approx(2.0, rel=0.05)
    assert found.esd == 0.5


def test_no_number_has_no_spread():
    found = spread(np.full(3, NONE), np.full(3, NONE))
    assert found.stills == 0
    assert np.isnan([found.median, found.width, found.esd]).all()


def test_an_outlier_is_far_in_widths_of_all_and_in_its_own_esd():
    values = np.array([1.0, 1.1, 0.9, 1.05, 0.95, 3.0, 3.0])
    esds = np.array([0.01] * 6 + [2.0])
    assert outlying(values, esds).tolist() == [False] * 5 + [True, False]
    assert distance_in_widths(values, esds)[5] > OUTLIER_WIDTHS
    assert not outlying(values[[0, 1, 5]], esds[[0, 1, 5]]).any(), "three stills have no outlier"
    assert not outlying(np.array([1.0, 1, 1, 1, 1, NONE]), np.zeros(6)).any()


def test_an_axis_along_the_beam_is_in_the_middle_and_one_across_it_on_the_rim():
    rotations = np.array([np.eye(3), np.eye(3)[:, [1, 2, 0]], np.eye(3)[:, [2, 0, 1]]])
    at = poles(rotations, 0)
    np.testing.assert_allclose(at, [[1, 0], [0, 1], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(poles(-rotations, 0)[2], at[2], atol=1e-12)


def test_random_orientations_fill_the_disc_evenly():
    rng = np.random.default_rng(2)
    q = np.linalg.qr(rng.normal(size=(20_000, 3, 3)))[0]
    radius = np.linalg.norm(poles(q, 2), axis=1)
    assert radius.max() <= 1 + 1e-12
    assert (radius < np.sqrt(0.5)).mean() == pytest.approx(0.5, abs=0.02), "half of the area has half of them"
