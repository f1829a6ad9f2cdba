"""Stills that pull what is shared much harder than the others are held back."""

import numpy as np
import pytest

from dbex.joint.outliers import PULL_LIMIT, pull, weights


def test_stills_that_scatter_by_their_esds_count_in_full():
    assert (weights([0.5, 1.0, 1.4, 2.9]) == 1).all()


def test_a_still_that_pulls_hard_pulls_no_harder_than_the_limit():
    pulls = np.array([0.8, 1.0, 1.2, 12.0])
    assert (weights(pulls) * pulls)[-1] == pytest.approx(PULL_LIMIT * 1.1)


def test_what_all_stills_do_is_no_outlier():
    assert (weights([14.0, 15.0, 17.0]) == 1).all()


def test_a_pull_that_is_no_number_does_not_count():
    assert weights([1.0, np.nan, 1.0]).tolist() == [1.0, 0.0, 1.0]


def test_a_pull_is_the_distance_in_esds():
    matrix = np.diag([4.0, 100.0])
    away = np.array([3 / 2, 0.0])  # three esds along the first number
    assert pull(matrix, matrix @ away, 1.0) == pytest.approx(3 / 2**0.5)
    assert pull(matrix, matrix @ away, 3.0) == pytest.approx(1 / 2**0.5)


def test_a_direction_that_a_still_does_not_see_does_not_pull():
    matrix = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert pull(matrix, np.array([2.0, 2.0]), 1.0) == pytest.approx(2.0)
