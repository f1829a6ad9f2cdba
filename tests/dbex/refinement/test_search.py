"""The way in from starts at which no pixel of a spot is where the model puts it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.refinement import search as searching
from dbex.refinement.rounds import start
from dbex.refinement.search import search
from dbex.refinement.settings import Settings
from nanobrag_torch.rotation import rotation_from_vector
from tests.tolerances import SEARCH_MEDIAN_PX

AXIS = torch.tensor([0.6, -0.64, 0.48], dtype=torch.float64)


def displaced(still, turn_deg=0.0, cell=(0.0, 0.0, 0.0), distance_mm=0.0):
    """The still with a model turned about an oblique axis, its cell edges and its distance changed."""
    turn = rotation_from_vector(torch.deg2rad(torch.tensor(turn_deg, dtype=torch.float64)) * AXIS)
    U = turn @ torch.as_tensor(still.crystal.U, dtype=torch.float64)
    edges = {
        f"cell_{name}": getattr(still.crystal, f"cell_{name}") * (1 + part)
        for name, part in zip("abc", cell, strict=True)
    }
    (panel,) = still.detector
    panel = replace(panel, distance_mm=panel.distance_mm + np.sign(panel.distance_mm) * distance_mm)
    return replace(still, crystal=replace(still.crystal, U=tuple(map(tuple, U.tolist())), **edges), detector=(panel,))


STARTS = {
    "1.5 degrees": {"turn_deg": 1.5},
    "a longer by 2 %": {"cell": (0.02, 0.0, 0.0)},
    "b longer by 2 %": {"cell": (0.0, 0.02, 0.0)},
    "c shorter by 2 %": {"cell": (0.0, 0.0, -0.02)},
    "a, b, c longer by 2, 1, 1 % and 1.5 degrees": {"turn_deg": 1.5, "cell": (0.02, 0.01, 0.01)},
    "2 mm farther": {"distance_mm": 2.0},
    "2 mm nearer": {"distance_mm": -2.0},
}


@pytest.fixture(scope="module")
def near(still):
    """What the search finds from the start that was shipped."""
    settings = Settings(detector=("distance", "shift"))
    return searched(still, settings)


def searched(still, settings):
    map = start(still, settings)
    return map, search(still, map, np.zeros(len(map)))


@pytest.mark.parametrize("moved", STARTS.values(), ids=STARTS.keys())
def test_a_start_far_off_is_brought_back_to_the_spots(still, near, moved):
    settings = Settings(detector=("distance", "shift"))
    map, found = searched(displaced(still, **moved), settings)
    assert found.median_px_before > 3
    assert found.median_px_after < SEARCH_MEDIAN_PX
    assert found.explained == 1.0
    for name in ("cell_a", "cell_b", "cell_c", "cell_alpha", "cell_beta", "cell_gamma", "distance"):
        base, usual = near
        expected = usual_value(base, usual, name)
        # the weak priors are about the start: what they hold back is small beside what centroids leave open
        assert map.value(name, torch.as_tensor(found.x)) == pytest.approx(expected, rel=2e-3), name


def usual_value(map, found, name):
    return map.value(name, torch.as_tensor(found.x))


def test_a_detector_that_is_held_leaves_a_wrong_distance_to_the_cell(still):
    """The test above can fail: without the distance the spots are explained by another cell."""
    map, found = searched(displaced(still, distance_mm=2.0), Settings())
    assert abs(map.value("cell_a", torch.as_tensor(found.x)) / 27.44 - 1) > 4e-3


@pytest.mark.parametrize("part", [0.1, 0.2])
def test_spots_with_wrong_indices_do_not_spoil_it(still, near, part):
    rng = np.random.default_rng(7)
    moved = displaced(still, turn_deg=1.5, cell=(0.02, 0.01, 0.01))
    hkl = still.observed.hkl.copy()
    wrong = rng.choice(len(hkl), int(part * len(hkl)), replace=False)
    hkl[wrong] = rng.integers(-15, 16, (len(wrong), 3))
    settings = Settings(detector=("distance", "shift"))
    map, found = searched(replace(moved, observed=replace(still.observed, hkl=hkl)), settings)
    assert abs(found.explained - (1 - part)) < 0.03
    right = np.ones(len(hkl), bool)
    right[wrong] = False
    assert found.median_px_after < 3 * SEARCH_MEDIAN_PX
    base, usual = near
    for name in ("cell_a", "cell_b", "cell_c"):
        assert map.value(name, torch.as_tensor(found.x)) == pytest.approx(usual_value(base, usual, name), rel=2e-3)


def test_the_angle_to_the_ewald_sphere_is_a_width_and_not_the_worst_of_the_spots(still, near):
    """Half of a normal distribution lies within 0.67 of its rms: a few nodes far off do not widen it."""
    _, found = near
    assert 0.01 < found.excitation_deg < 0.1
    hkl = still.observed.hkl.copy()
    hkl[::10] += 3
    _, spoiled = searched(
        replace(still, observed=replace(still.observed, hkl=hkl)), Settings(detector=("distance", "shift"))
    )
    assert spoiled.excitation_deg < 2 * found.excitation_deg


def test_residuals_are_the_same_whoever_scaled_those_that_were_told(still, monkeypatch):
    """scipy divides residuals and derivatives by their robust weights where they are."""
    map, solve, told = start(still, Settings()), searching.least_squares, []

    def twice(residuals, first, jac, **options):
        found = solve(residuals, first, jac=jac, **options)
        for function in (residuals, jac):
            expected = function(found.x).copy()
            scaled = function(found.x)
            scaled *= 0.5
            told.append((expected, function(found.x)))
        return found

    monkeypatch.setattr(searching, "least_squares", twice)
    search(still, map, np.zeros(len(map)))
    assert len(told) == 2
    for expected, again in told:
        np.testing.assert_array_equal(again, expected)
