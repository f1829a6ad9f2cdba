"""Figures of merit, against what they are by definition."""

from dataclasses import replace

import numpy as np
import pytest

from dbex import scoring
from dbex.io.finished import result_of
from dbex.io.record import Run, record
from dbex.refinement.settings import Settings
from tests.dbex.refined_example import example_refined

RUN = Run("dbex.refine still.expt", "", Settings(), "2026-01-01T00:00:00+00:00")
BEAM = (0.0, 0.0, -1.0)


@pytest.fixture(scope="module")
def result():
    refined = example_refined()
    return result_of(refined, record(refined, RUN))


def test_means_over_bins_hold_every_member_once():
    rng = np.random.default_rng(3)
    x, values = rng.uniform(0, 1, 1000), rng.normal(2, 1, 1000)
    values[::10] = np.nan
    found = scoring.means(x, values, 10)
    assert found.count.sum() == 900
    assert (found.count * found.mean).sum() == pytest.approx(np.nansum(values))
    assert len(found) == 10
    assert (np.diff(found.x) > 0).all()
    np.testing.assert_allclose(found.esd, 1 / np.sqrt(90), rtol=0.3)


def test_means_over_one_value_none_or_few_are_one_bin_or_none():
    assert scoring.means(np.ones(50), np.arange(50.0), 8).mean == pytest.approx([24.5])
    assert scoring.means(np.arange(5.0), np.arange(5.0), 8).mean == pytest.approx([2.0])
    assert len(scoring.means(np.zeros(0), np.zeros(0), 8)) == 0


def test_means_by_number_leave_out_numbers_that_do_not_occur():
    found = scoring.means_by_number(np.array([3, 3, 7]), np.array([1.0, 3.0, 5.0]))
    assert found.x.tolist() == [3, 7]
    assert found.mean.tolist() == [2, 5]
    assert found.count.tolist() == [2, 1]


def test_the_percentiles_of_a_normal_deviate_are_its_sigmas():
    rng = np.random.default_rng(4)
    found = scoring.percentiles(rng.uniform(0, 1, 400_000), rng.normal(size=400_000), 4)
    np.testing.assert_allclose(found.values, np.tile([-2, -1, 0, 1, 2], (4, 1)), atol=0.03)


def test_resolution_is_braggs(result):
    wavelength, two_theta = 0.977, 0.4
    s1 = np.array([[np.sin(two_theta), 0, -np.cos(two_theta)]]) / wavelength
    boxes = replace(result.boxes, s1=s1)
    d = wavelength / (2 * np.sin(two_theta / 2))
    np.testing.assert_allclose(scoring.resolution_A(boxes, BEAM), d, rtol=1e-12)


def test_the_worst_pair_is_named_whatever_its_sign():
    covariance = np.array([[4.0, 0.2, -1.9], [0.2, 1.0, 0.1], [-1.9, 0.1, 1.0]])
    found = scoring.correlations(covariance)
    assert scoring.worst_pair(found) == (0, 2)
    assert found[0, 2] == pytest.approx(-0.95)
    assert scoring.worst_pair(np.ones((1, 1))) is None
    assert scoring.worst_pair(np.full((2, 2), np.nan)) is None


def test_positions_on_the_detector_are_dxtbx_s(result):
    panel = example_refined().still.experiment.detector[0]
    still = example_refined().still
    xy = np.array([[0.0, 0.0], [100.5, 2000.25]])
    found = scoring.lab_mm(still.detector, np.zeros(2, int), xy)
    expected = [panel.get_lab_coord(tuple(p * panel.get_pixel_size()[0] for p in each)) for each in xy]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_seen_along_the_beam_the_laboratory_s_x_is_right_and_y_up():
    points = np.array([[1.0, 2.0, -100.0], [3.0, -4.0, -50.0]])
    np.testing.assert_allclose(scoring.seen_along_beam(points, BEAM), points[:, :2])


def test_a_detector_too_far_away_moves_all_predictions_outward(result):
    """A shift of the panel away from the crystal: radial offsets only, in proportion to the radius."""
    detector = result.detector
    boxes = result.boxes
    xy = boxes.xy_observed_px
    middle = np.array([-detector[0].origin_fast_mm, -detector[0].origin_slow_mm]) / detector[0].pixel_size_mm
    found = scoring.offsets(boxes, middle + 1.001 * (xy - middle), detector, result.beam_direction)
    seen = np.isfinite(xy).all(1)
    assert found.box.tolist() == np.flatnonzero(seen).tolist()
    np.testing.assert_allclose(found.radial, 0.001 * np.linalg.norm(xy[seen] - middle, axis=1), rtol=0.05)
    assert np.abs(found.tangential).max() < 0.05 * found.radial.max()
    np.testing.assert_allclose(found.length**2, found.radial**2 + found.tangential**2)


def test_an_offset_is_predicted_minus_observed(result):
    found = scoring.offsets(result.boxes, result.boxes.xy_observed_px + np.array([1.0, 0.0]), result.detector, BEAM)
    along_fast = np.array(result.detector[0].fast_axis)[:2]
    np.testing.assert_allclose(found.on_plane, np.tile(along_fast, (len(found.box), 1)), atol=1e-6)


def test_the_rocking_curve_of_a_perfect_model_is_its_partiality(result):
    full = result.boxes.prior_intensity
    boxes = replace(result.boxes, intensity=full.copy(), variance=(full / 20) ** 2, partiality=np.full(len(full), 0.3))
    found = scoring.rocking_curve(boxes, least_snr=3)
    assert len(found.box) == len(full)
    np.testing.assert_allclose(found.observed, 0.3)
    np.testing.assert_allclose(found.esd, 0.015)
    noisy = replace(boxes, variance=(full * 2) ** 2)
    assert len(scoring.rocking_curve(noisy, least_snr=3).box) == 0
