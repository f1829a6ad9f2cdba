"""Gain, pedestal and read-out noise of panels that tell single photons apart, on images of known noise."""

import json
import time

import numpy as np
import pytest

from dbex.errors import BadInput
from dbex.io.images import RawImage, in_photons
from dbex.io.measured import read_noise
from dbex.io.results import plain
from dbex.physics.photon_peaks import photon_peaks
from dbex.physics.photon_transfer import estimate_noise
from tests.tolerances import NOISE_ESDS, PEAKS_PULL_RMS, UNEVEN_Z2

SIZE, TILE, REPEATS = 200, 8, 16


def hill(lowest, highest, shape=(SIZE, SIZE)):
    slow, fast = (axis / SIZE for axis in np.mgrid[: shape[0], : shape[1]])
    return lowest + (highest - lowest) * np.exp(-((fast - 0.3) ** 2 + (slow - 0.6) ** 2) / 0.15)


def peaks(image, tile_variance):
    slow, fast = np.indices(image.shape) // TILE
    return photon_peaks(image.ravel(), (slow * 1000 + fast).ravel(), tile_variance)


def drawn(rng, gain, sigma, pedestal, photons, whole):
    image = gain * rng.poisson(photons) + pedestal + sigma * rng.standard_normal(photons.shape)
    return np.rint(image) if whole else image


@pytest.mark.parametrize(
    ("gain", "sigma", "pedestal", "lowest", "highest", "whole"),
    [
        (9.8, 2.5, 12.0, 0.3, 2.0, True),
        (30.0, 6.0, -20.0, 0.1, 5.0, True),
        (0.5, 0.12, 3.0, 0.1, 2.0, False),
        (6.0, 1.5, 0.0, 0.5, 5.0, True),
        (20.0, 4.0, 0.0, 0.02, 0.1, True),
    ],
    ids=["integrating", "high gain below zero", "floats", "bright", "dark"],
)
def test_gain_pedestal_and_noise_are_found_within_esds_that_hold(gain, sigma, pedestal, lowest, highest, whole):
    rng = np.random.default_rng(1)
    photons = hill(lowest, highest)
    truth = np.array([gain, pedestal, sigma**2 + whole / 12])
    pulls = []
    for _ in range(REPEATS):
        found = peaks(drawn(rng, gain, sigma, pedestal, photons, whole), gain**2 * np.median(photons) + sigma**2)
        assert found is not None
        values = np.array([found.gain, found.pedestal, found.variance])
        pulls.append((values - truth) / np.sqrt(np.diag(found.covariance))[:3])
    assert np.abs(pulls).max() < NOISE_ESDS
    assert np.sqrt(np.mean(np.square(pulls), axis=0)).max() < PEAKS_PULL_RMS


@pytest.mark.parametrize(
    ("gain", "sigma", "lowest", "highest"),
    [(6.0, 4.5, 2.0, 30.0), (1.0, 0.0, 0.1, 3.0), (6.0, 1.5, 12.0, 50.0)],
    ids=["noise as large as a photon", "photon counter", "no dark pixel"],
)
def test_what_shows_no_peak_of_no_photon_tells_nothing(gain, sigma, lowest, highest):
    photons = hill(lowest, highest)
    image = drawn(np.random.default_rng(2), gain, sigma, 0.0, photons, True)
    assert peaks(image, gain**2 * np.median(photons) + sigma**2) is None


def test_a_panel_of_two_gains_is_none_of_one():
    rng = np.random.default_rng(3)
    gain = np.where(np.arange(SIZE) > 0.6 * SIZE, 16.0, 9.0)
    image = gain * rng.poisson(hill(0.3, 3.0)) + 2.0 * rng.standard_normal((SIZE, SIZE))
    assert peaks(image, 100.0) is None


def detector(panels, seed):
    """Panels of unequal sizes, gains and pedestals, with spots and hot pixels; truth (panel: gain, pedestal, σ)."""
    rng = np.random.default_rng(seed)
    truth = np.stack([rng.normal(9.8, 0.5, panels), rng.uniform(0, 25, panels), rng.uniform(2, 3, panels)], 1)
    images = []
    for gain, pedestal, sigma in truth:
        shape = tuple(rng.integers(90, 130, 2))
        photons = hill(0.2, rng.uniform(0.5, 2.0), shape)
        slow, fast = np.indices(shape)
        for _ in range(3):
            away = (slow - rng.uniform(0, shape[0])) ** 2 + (fast - rng.uniform(0, shape[1])) ** 2
            photons = photons + 30 * np.exp(-away / 4.5)
        image = drawn(rng, gain, sigma, pedestal, photons, True)
        image[tuple(rng.integers(0, 90, (2, 3)))] = 10_000
        images.append(image)
    return images, truth


def test_every_panel_of_a_detector_has_its_own_and_one_that_is_too_bright_takes_over_the_others(tmp_path):
    images, truth = detector(12, 4)
    bright = drawn(np.random.default_rng(5), 9.8, 2.5, 10.0, hill(12.0, 14.0), True)
    images.append(bright)
    found = estimate_noise(images, [np.ones(image.shape, dtype=bool) for image in images])
    assert found.resolved == 12
    for record, (gain, pedestal, sigma) in zip(found.panels, truth, strict=False):
        assert record.own_gain
        assert abs(record.gain.value - gain) < NOISE_ESDS * record.gain.esd
        assert abs(record.pedestal.value - pedestal) < NOISE_ESDS * record.pedestal.esd
        assert abs(record.sigma_readout.value - sigma) < NOISE_ESDS * record.sigma_readout.esd + 1 / 24 / sigma
    assert not found.panels[12].own_gain
    assert abs(found.panels[12].pedestal.value - 10.0) < NOISE_ESDS * found.panels[12].pedestal.esd
    check_file(found, images, truth, tmp_path / "noise.json")


def check_file(found, images, truth, path):
    """What is read from the file turns an image into photons."""
    path.write_text(json.dumps(plain({"panels": [vars(record) for record in found.panels]}), default=vars))
    noise = read_noise(path, len(images))
    assert noise.provenance == "measured"
    photons = in_photons(RawImage(path, tuple(images), True, None), noise)
    for image, values, (gain, pedestal, _) in zip(images, photons, truth, strict=False):
        assert np.median(values) == pytest.approx(np.median((image - pedestal) / gain), abs=0.1)
    with pytest.raises(BadInput, match="has 13 panels but the detector has 64"):
        read_noise(path, 64)


def test_pixels_of_a_panel_that_is_uneven_in_parts_are_weighed_as_they_scatter():
    rng = np.random.default_rng(3)
    gain, sigma = 10.0, 2.0
    uneven = np.where(np.arange(SIZE) < 0.4 * SIZE, 0.8, 0.0) * rng.uniform(-1, 1, (SIZE, SIZE))
    photons = hill(0.3, 2.0) * (1 + uneven)
    image = drawn(rng, gain, sigma, 12.0, photons, whole=True)
    record = estimate_noise([image], [np.ones(image.shape, dtype=bool)]).panels[0]
    z = (image - 12.0 - gain * hill(0.3, 2.0)) / np.sqrt(gain**2 * hill(0.3, 2.0) + record.sigma_dark**2)
    assert record.sigma_readout.value == pytest.approx(sigma, rel=0.05)
    assert np.mean(z**2) == pytest.approx(1, abs=UNEVEN_Z2)


def test_a_file_without_noise_is_refused_in_a_sentence(tmp_path):
    path = tmp_path / "noise.json"
    images = [np.zeros((40, 40))]
    found = estimate_noise(images, [np.ones((40, 40), dtype=bool)])
    path.write_text(json.dumps(plain({"panels": [vars(record) for record in found.panels]}), default=vars))
    with pytest.raises(BadInput, match="no gain and read-out noise for 1 of 1 panels, panel 0 the first"):
        read_noise(path, 1)
    path.write_text("[]")
    with pytest.raises(BadInput, match="cannot be read as what dbex"):
        read_noise(path, 1)


def test_a_detector_of_256_panels_takes_seconds():
    images, _ = detector(16, 6)
    began = time.process_time()
    found = estimate_noise(images * 16, [np.ones(image.shape, dtype=bool) for image in images * 16])
    assert time.process_time() - began < 60
    assert found.resolved == 256
