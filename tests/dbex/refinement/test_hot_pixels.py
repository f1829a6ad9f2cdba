"""Defects of the detector are left out and counted; light that the model lacks is not."""

from dataclasses import replace

import numpy as np
import pytest

from dbex.refinement.hot_pixels import LEFT_OUT
from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings

SETTINGS = Settings(detector=("distance", "shift"), terms=())
HOT = 7


@pytest.fixture(scope="module")
def plain_fit(still):
    return refine_still(still, SETTINGS)


def inner_places(fit, count):
    """Used pixels (slow, fast) of different boxes whose neighbours are used too, where the model has no light."""
    pixels = fit.pixels
    used = {(s, f) for s, f, u in zip(pixels.slow, pixels.fast, pixels.used, strict=True) if u}
    found = {}
    for box, s, f, light in zip(pixels.box, pixels.slow, pixels.fast, pixels.bragg, strict=True):
        if light < 0.1 and {(s, f), (s - 1, f), (s + 1, f), (s, f - 1), (s, f + 1)} <= used:
            found.setdefault(box, (s, f))
    places = np.array(list(found.values()))
    return tuple(places[np.random.default_rng(3).choice(len(places), count, replace=False)].T)


def test_hot_pixels_are_left_out_and_counted_and_the_fit_is_as_good_as_without(still, plain_fit):
    image = still.images_photons[0].copy()
    slow, fast = inner_places(plain_fit, HOT)
    image[slow, fast] = 3000
    hot = refine_still(replace(still, images_photons=(image,)), SETTINGS)
    assert hot.verdict.state == "good"
    assert hot.left_out[LEFT_OUT] == HOT
    assert LEFT_OUT not in plain_fit.left_out
    assert hot.figures["chi2_per_pixel"] == pytest.approx(plain_fit.figures["chi2_per_pixel"], abs=0.02)
    at = {(s, f): u for s, f, u in zip(hot.pixels.slow, hot.pixels.fast, hot.pixels.used, strict=True)}
    assert not any(at.get(place, False) for place in zip(slow, fast, strict=True)), "they stay in the table, unused"


def test_spots_that_the_model_lacks_are_no_defects_spoil_the_fit_and_are_told(still, plain_fit):
    """As many places, but the light has the width of the still's own spots."""
    image = still.images_photons[0].copy()
    up, along = np.mgrid[-2:3, -2:3]
    shape = np.exp(-(up**2 + along**2) / 2 / 0.9**2)
    for slow, fast in zip(*inner_places(plain_fit, HOT), strict=True):
        image[slow + up, fast + along] += np.round(3000 * shape)
    found = refine_still(replace(still, images_photons=(image,)), SETTINGS)
    assert LEFT_OUT not in found.left_out
    assert found.verdict.state == "poor"
    assert "another lattice" in " ".join(found.verdict.reasons)
