"""When a fit is called good."""

import numpy as np
import pytest

from dbex.refinement.demands import Demand
from dbex.refinement.rounds import start
from dbex.refinement.settings import Settings
from dbex.refinement.tables import rank_correlation
from dbex.refinement.uncertainty import Curvature, curvature
from dbex.refinement.verdict import judge

GOOD = {
    "boxes_cc": 60.0,
    "median_cc": 0.99,
    "chi2_per_pixel": 1.0,
    "chi2_core": 1.0,
    "relative_model_error": 0.02,
    "intensity_cc": 0.98,
    "sigma_z": 1.0,
    "sigma_z_esd": 0.005,
    "indexed_spots": 100.0,
    "spots_median_px": 0.3,
}


@pytest.fixture(scope="module")
def map(still):
    return start(still, Settings())


def verdict(map, converged=True, wanted=(), condition=1e3, **changed):
    bend = Curvature(np.eye(len(map)), condition, "+cell_a, -cell_b")
    return judge(converged, GOOD | changed, list(wanted), bend, map)


def test_what_agrees_with_the_pixels_within_the_noise_is_good(map):
    assert verdict(map).state == "good"
    assert verdict(map).advice == ()


FOREIGN = {"chi2_per_pixel": 115.0, "chi2_reduced": 1.05, "pixels": 35000.0, "down_weighted_pixels": 120.0}


def test_light_of_something_else_in_a_few_pixels_is_named(map):
    found = verdict(map, **FOREIGN)
    assert found.state == "poor"
    assert "120 pixels more than 6 sigma off carry it" in found.reasons[1]


@pytest.mark.parametrize(
    "changed",
    [{"chi2_reduced": 2.5}, {"down_weighted_pixels": 400.0}, {"chi2_core": 2.5}, {"intensity_cc": 0.1}],
)
def test_misfit_in_many_pixels_or_of_the_spots_is_poor_whatever_else_is_on_the_image(map, changed):
    found = verdict(map, **FOREIGN | changed)
    assert found.state == "poor"
    assert ("carry it" in " ".join(found.reasons)) == ("intensity_cc" in changed)


def test_indices_that_lead_nowhere_are_told(map):
    assert "45 of 100 indexed spots are not where" in verdict(map, explained_spots=0.55).advice[0]
    assert verdict(map, explained_spots=float("nan")).advice == ()


def test_structure_factors_that_correlate_with_the_spots_are_the_crystals_however_large_their_error(map):
    assert verdict(map, relative_model_error=1.5, intensity_cc=0.7).state == "good"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"chi2_per_pixel": 2.5}, "chi2 per pixel is 2.50"),
        ({"chi2_core": 2.5}, "chi2 per core pixel is 2.50"),
        ({"chi2_core": float("nan")}, "chi2 per core pixel is nan"),
    ],
)
def test_a_fit_that_misses_the_noise_of_bright_spots_alone_is_fair(map, changed, reason):
    found = verdict(map, **changed)
    assert found.state == "fair"
    assert reason in found.reasons[0]
    assert "intensities can be used" in found.reasons[1]
    assert verdict(map, **changed, intensity_cc=0.1).state == "poor"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"boxes_cc": 9.0}, "only 9 boxes stand out from their background by 10 sigma, of 100 indexed spots"),
        ({"median_cc": 0.5}, "correlate with 0.50"),
        ({"median_cc": float("nan")}, "correlate with nan"),
        ({"chi2_per_pixel": 3.5}, "chi2 per pixel is 3.50"),
        ({"chi2_per_pixel": float("nan")}, "chi2 per pixel is nan"),
        (
            {"relative_model_error": 1.5, "intensity_cc": 0.4},
            "differ from F^2 by 150 %: are these the structure factors",
        ),
        ({"intensity_cc": 0.1}, "rank correlation of 0.10 with F^2"),
        ({"intensity_cc": float("nan")}, "rank correlation of nan"),
        ({"spots_median_px": 3.5}, "indexed spots lie 3.5 pixels (median) from where the model puts them"),
        ({"spots_under_mask": 0.06}, "the mask hides 6 of 100 indexed spots: is it the mask of this run?"),
        ({"dead_pixels_trusted": 0.12}, "the mask trusts 12 % of the pixels that the image marks as dead"),
    ],
)
def test_each_figure_alone_can_spoil_a_fit(map, changed, reason):
    found = verdict(map, **changed)
    assert found.state == "poor"
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]


def test_a_mask_that_hides_a_spot_or_knows_nothing_of_dead_pixels_spoils_nothing(map):
    assert verdict(map, spots_under_mask=0.02).state == "good"
    found = verdict(map, dead_pixels_trusted=1.0)
    assert found.state == "good"
    assert found.advice == ("the mask trusts what the image marks as dead, which was left out all the same",)


def test_a_background_that_scatters_otherwise_than_its_noise_is_told_with_the_words_that_set_it(map):
    (line,) = verdict(map, sigma_z=1.08).advice
    assert line == (
        "the background scatters 1.08 times as much as gain and read-out noise say: look at gain= and sigma_readout=, "
        "which dbex.estimate_noise measures"
    )
    assert "0.90 times" in verdict(map, sigma_z=0.9).advice[0]
    assert verdict(map, sigma_z=0.9).state == "good"
    assert verdict(map, sigma_z=1.08, sigma_z_esd=0.03).advice == (), "chance explains it"


def test_what_did_not_converge_is_not_called_poor_or_good(map):
    assert verdict(map, converged=False, median_cc=0.1).state == "not converged"


def test_what_agrees_with_the_pixels_but_contradicts_what_was_held_is_not_good(map):
    found = verdict(map, wanted=[Demand("distance", "detector", 0.15, "mm", 15.0)])
    assert found.state == "incomplete"
    assert found.reasons == (
        "what was held is wrong by more than 5 esds, and what moved makes up for it: distance by 15 esds",
    )
    assert verdict(map, wanted=[Demand("distance", "detector", 0.15, "mm", 15.0)], median_cc=0.1).state == "poor"


def test_what_is_asked_for_is_told_with_its_size_and_the_words_that_free_it(map):
    direction = Demand("direction_h", "beam", -1.5, "mrad", 18.0)
    tilt = Demand("tilt_fast", "detector", 2.0, "mrad", 20.0, (direction,))
    (line,) = verdict(map, wanted=[Demand("distance", "detector", 0.15, "mm", 15.0), tilt]).advice
    assert line == (
        "the data ask for another distance (+0.150 mm, 15 esds), tilt fast (+2.000 mrad, 20 esds) or else direction h "
        "(-1.500 mrad, 18 esds): refine.detector=distance,tilt or refine.beam=direction would find out"
    )


def test_a_combination_that_is_hardly_determined_is_named(map):
    assert verdict(map, condition=1e9).advice == ("this still hardly determines the combination +cell_a, -cell_b",)


def test_the_worst_direction_is_told_by_the_parameters_that_make_it_up(map):
    """Two parameters of which the data see only the sum."""
    matrix = np.eye(len(map))
    i, j = map.place("cell_a"), map.place("cell_b")
    matrix[i, j] = matrix[j, i] = 1 - 1e-6
    bend = curvature(matrix, map)
    assert set(bend.worst_direction.split(", ")) in ({"+cell_a", "-cell_b"}, {"+cell_b", "-cell_a"})
    assert bend.condition_number == pytest.approx(2e6, rel=1e-3)
    np.testing.assert_allclose(bend.covariance @ matrix, np.eye(len(map)), atol=1e-8)


def test_ranks_correlate_whatever_the_scale():
    x = np.array([1.0, 5.0, 2.0, 9.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1.0)
    assert rank_correlation(x, -x) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(x[:2], x[:2]))
