"""Priors, a second solver, hot pixels and crystals of two orientations."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.errors import BadInput
from dbex.models import free_cell_parameters
from dbex.refinement.hot_pixels import LEFT_OUT
from dbex.refinement.parameters import parametrisation
from dbex.refinement.problem import HUBER_Z, huber_weight
from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings
from nanobrag_torch.rotation import rotation_from_vector, vector_from_rotation
from tests.tolerances import SAME_MINIMUM_ESDS

SETTINGS = Settings(detector=("distance", "shift"), terms=())


@pytest.fixture(scope="module")
def plain_fit(still):
    return refine_still(still, SETTINGS)


def moved_esds(one, other):
    """The largest difference of two fits' parameters, in the first one's esds."""
    return max(abs(a.after - b.after) / a.esd for a, b in zip(one.estimates, other.estimates, strict=True))


def test_both_solvers_find_the_same_minimum(still, plain_fit):
    other = refine_still(still, replace(SETTINGS, solver="lbfgs"))
    assert moved_esds(plain_fit, other) < SAME_MINIMUM_ESDS
    assert other.verdict.state == "good"


def test_a_narrow_prior_holds_a_parameter_and_a_wide_one_does_nothing(still, plain_fit):
    by_name = {e.name: e for e in plain_fit.estimates}
    narrow = refine_still(still, replace(SETTINGS, priors={"distance": 0.001}))
    distance = next(e for e in narrow.estimates if e.name == "distance")
    assert abs(distance.after - distance.before) < 0.02
    assert abs(by_name["distance"].after - by_name["distance"].before) > 0.1
    assert distance.esd_formal < 0.0011
    wide = refine_still(still, replace(SETTINGS, priors={"distance": 100.0}))
    assert moved_esds(plain_fit, wide) < SAME_MINIMUM_ESDS


def test_a_prior_of_a_parameter_that_is_held_is_refused(still):
    with pytest.raises(BadInput, match=r"tilt_fast.*expected a free parameter"):
        refine_still(still, replace(SETTINGS, priors={"tilt_fast": 1.0}))


def test_huber_counts_small_residuals_in_full_and_large_ones_as_far_as_its_limit():
    variance = torch.full((3,), 4.0, dtype=torch.float64)
    residual = torch.tensor([2.0, -2 * HUBER_Z, 20 * HUBER_Z], dtype=torch.float64)
    np.testing.assert_allclose(huber_weight(residual, variance), [1.0, 1.0, 0.1], rtol=1e-12)


def test_hot_pixels_move_nothing_inflate_no_esd_and_are_counted(still, plain_fit):
    """Seven pixels that the mask does not know, beside the brightest spots."""
    image = still.images_photons[0].copy()
    brightest = np.argsort(-plain_fit.boxes.signal_to_noise)[:7]
    for fast, slow in np.floor(plain_fit.boxes.xy_px[brightest]).astype(int):
        image[slow + 3, fast + 3] = 3000
    hot = refine_still(replace(still, images_photons=(image,)), SETTINGS)
    assert moved_esds(plain_fit, hot) < 1.0
    assert hot.left_out[LEFT_OUT] == 7
    assert hot.figures["esd_inflation"] < 1.1
    assert hot.verdict.state == "good"


def test_two_hot_pixels_side_by_side_and_a_block_that_could_be_a_spot(still, plain_fit):
    """A pair is left out; a block of nine could be light: it stays, pulls as little as Huber lets it, and is told."""
    image = still.images_photons[0].copy()
    fast, slow = np.floor(plain_fit.boxes.xy_px[np.argsort(-plain_fit.boxes.signal_to_noise)[0]]).astype(int)
    image[slow + 4, fast - 4 : fast - 2] = 3000
    pair = refine_still(replace(still, images_photons=(image,)), SETTINGS)
    assert pair.left_out[LEFT_OUT] == 2
    image[slow + 3 : slow + 6, fast - 5 : fast - 2] = 3000
    block = refine_still(replace(still, images_photons=(image,)), SETTINGS)
    assert moved_esds(plain_fit, block) < 1.0
    assert block.figures["down_weighted_pixels"] > 0
    assert block.figures["chi2_per_pixel"] > 2 * plain_fit.figures["chi2_per_pixel"]


def test_a_crystal_of_two_orientations_is_reported_by_its_mean(still):
    """The mean turns with the share of the second component; the spread between them is part of the mosaicity."""
    free_cell = free_cell_parameters(still.experiment.crystal.get_space_group())
    map = parametrisation(
        still.crystal, still.detector, still.beam, free_cell, ("orientation", "mosaic_tensor", "component"), (), ()
    )
    x = torch.zeros(len(map), dtype=torch.float64)
    turn = torch.tensor([0.002, -0.001, 0.003], dtype=torch.float64)
    for name, value in zip(("second_x", "second_y", "second_z"), turn, strict=True):
        x[map.place(name)] = value
    share = map.value("second_share", x)
    assert share == pytest.approx(0.5)
    mean = torch.deg2rad(torch.tensor([map.value(f"misset_{axis}", x) for axis in "xyz"], dtype=torch.float64))
    np.testing.assert_allclose(mean, share * turn, rtol=1e-9)
    np.testing.assert_allclose(vector_from_rotation(rotation_from_vector(mean)), mean, rtol=1e-9)
    spread = torch.as_tensor(map.mean_crystal(x).mosaic_covariance_deg2).trace()
    alone = 0.5 * 3 * still.crystal.mosaicity_deg**2 + 0.5 * 3 * map.second_width_deg**2
    expected = alone + 0.25 * float((torch.rad2deg(turn) ** 2).sum())
    assert float(spread) == pytest.approx(expected, rel=1e-9)
