"""Gain, read-out noise and pedestal from the background: synthetic panels of known noise, real stills, the command."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

from dbex.errors import BadInput
from dbex.physics.photon_transfer import background_z, estimate_noise
from dbex.physics.sigma_z import sigma_z
from dbex.physics.tiles import TILE_PX, tiles_of
from tests.conftest import ROOT
from tests.dbex.conftest import SHIPPED
from tests.tolerances import (
    COUNTER_GAIN,
    GAIN_BIAS,
    HELP_SECONDS,
    NOISE_ESDS,
    PULL_MEAN,
    PULL_RMS,
    SIGMA_Z,
)

SIZE = 200
REPEATS = 120


@dataclass(frozen=True)
class Truth:
    """A detector and the photons of its background, which slope down from a maximum."""

    gain: float
    sigma: float
    pedestal: float = 0.0
    dimmest: float = 2.0
    brightest: float = 30.0

    def photons(self, size=SIZE):
        slow, fast = np.mgrid[:size, :size] / size
        hill = np.exp(-((fast - 0.3) ** 2 + (slow - 0.6) ** 2) / 0.15)
        return self.dimmest * (1 + 0.2 * fast) + (self.brightest - self.dimmest) * hill

    def image(self, seed, photons=None):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(self.photons() if photons is None else photons)
        return self.gain * counts + self.pedestal + self.sigma * rng.standard_normal(counts.shape)


COUNTER = Truth(gain=1.0, sigma=0.0)
CHARGE = Truth(gain=6.0, sigma=4.5)


def measured(*images):
    return estimate_noise(list(images), [np.ones(image.shape, dtype=bool) for image in images])


def agrees(estimate, truth):
    return abs(estimate.value - truth) < NOISE_ESDS * estimate.esd


@pytest.mark.parametrize(
    "truth",
    [
        COUNTER,
        Truth(gain=1.0, sigma=0.0, dimmest=0.02, brightest=0.3),
        Truth(gain=6.0, sigma=4.5),
        Truth(gain=2.5, sigma=3.0, pedestal=40.0),
        Truth(gain=0.5, sigma=0.8, pedestal=5.0, dimmest=0.1, brightest=3.0),
    ],
    ids=["counter", "counter in the dark", "charge", "charge on a pedestal", "noise above a photon"],
)
def test_esds_are_those_of_repeats_and_nothing_is_biased(truth):
    pulls, gains = [], []
    for seed in range(REPEATS):
        record = measured(truth.image(seed)).together
        estimates = {
            truth.gain: record.gain,
            truth.sigma**2 - truth.gain * truth.pedestal: record.variance_at_zero,
            truth.pedestal: record.pedestal,
            0.0: record.correlation,
        }
        gains.append(record.gain.value)
        pulls.append([(found.value - true) / found.esd for true, found in estimates.items()])
    assert np.mean(gains) == pytest.approx(truth.gain, rel=GAIN_BIAS)
    pulls = np.array(pulls)
    assert np.abs(pulls.mean(axis=0)).max() < PULL_MEAN
    assert np.sqrt((pulls**2).mean(axis=0)) == pytest.approx(np.ones(pulls.shape[1]), abs=PULL_RMS)


def test_read_out_noise_is_parted_from_the_pedestal_by_the_skewness():
    record = measured(Truth(gain=2.5, sigma=3.0, pedestal=40.0).image(3)).together
    assert agrees(record.pedestal, 40.0)
    assert agrees(record.sigma_readout, 3.0)
    assert record.variance_at_zero.value < 0


def test_whole_numbers_add_the_variance_of_their_rounding():
    image = np.rint(CHARGE.image(1)).astype(np.int32)
    record = measured(image).together
    assert agrees(record.gain, 6.0)
    assert agrees(record.variance_at_zero, 4.5**2 + 1 / 12)


def test_the_slope_of_the_background_is_no_noise():
    slope = 40 * np.mgrid[:SIZE, :SIZE][1]
    flat, steep = CHARGE.image(2), CHARGE.image(2) + slope
    assert tiles_of([steep], [np.ones(steep.shape, dtype=bool)], None).variance == pytest.approx(
        tiles_of([flat], [np.ones(flat.shape, dtype=bool)], None).variance
    )


def with_spots(truth, seed):
    """An image with spots and hot pixels, and where the spots are."""
    rng = np.random.default_rng(1000 + seed)
    photons, spots = truth.photons(), np.zeros((SIZE, SIZE), dtype=bool)
    slow, fast = np.mgrid[:SIZE, :SIZE]
    for _ in range(12):
        x, y = rng.uniform(0, SIZE, 2)
        away = (fast - x) ** 2 + (slow - y) ** 2
        photons = photons + rng.uniform(50, 500) / (2 * np.pi * 2.25) * np.exp(-away / 4.5)
        spots |= away < 49
    image = truth.image(seed, photons)
    image[tuple(rng.integers(0, SIZE, (2, 12)))] = truth.gain * rng.uniform(100, 10_000, 12)
    return image, spots


@pytest.mark.parametrize("known", [True, False], ids=["in boxes", "unknown"])
@pytest.mark.parametrize("truth", [COUNTER, CHARGE], ids=["counter", "charge"])
def test_spots_and_hot_pixels_do_not_reach_the_gain(truth, known):
    gains = []
    for seed in range(30):
        image, spots = with_spots(truth, seed)
        gains.append(estimate_noise([image], [~spots if known else np.ones_like(spots)]).together.gain.value)
    assert np.mean(gains) == pytest.approx(truth.gain, rel=GAIN_BIAS)


def test_untrusted_pixels_and_unequal_panels_are_no_obstacle():
    rng = np.random.default_rng(4)
    images = [CHARGE.image(5), CHARGE.image(6)[:90, :150]]
    trusted = [rng.uniform(size=image.shape) > 0.05 for image in images]
    images = [np.where(trust, image, -1e9) for image, trust in zip(images, trusted, strict=True)]
    found = estimate_noise(images, trusted)
    assert agrees(found.together.gain, 6.0)
    assert len(found.panels) == 2


def test_panels_of_unequal_pedestals_give_one_gain_and_a_flat_one_takes_it_over():
    flat = np.full((SIZE, SIZE), 12.0)
    images = [Truth(6.0, 4.5, pedestal).image(7 + i) for i, pedestal in enumerate((0.0, 60.0, 200.0))]
    found = measured(*images, Truth(6.0, 4.5, 30.0).image(11, flat))
    assert found.uniform
    assert agrees(found.together.gain, 6.0)
    for record, pedestal in zip(found.panels, (0.0, 60.0, 200.0), strict=False):
        assert record.own_gain
        assert agrees(record.pedestal, pedestal)
    assert not found.panels[3].own_gain
    assert found.panels[3].gain == found.together.gain
    assert "flat" in found.panels[3].words[0]
    assert agrees(found.panels[3].variance_at_zero, 4.5**2 - 6.0 * 30.0)


def test_gains_that_differ_from_panel_to_panel_are_told():
    alike = measured(*(CHARGE.image(20 + i) for i in range(6)))
    apart = measured(*(Truth(gain, 4.5).image(20 + i) for i, gain in enumerate((5.0, 5.5, 6.0, 6.0, 6.5, 7.0))))
    assert alike.gain_scatter < 0.02
    assert apart.gain_scatter == pytest.approx(np.std([5.0, 5.5, 6.0, 6.0, 6.5, 7.0], ddof=1) / 6.0, abs=0.02)


def test_a_flat_background_determines_no_gain_and_says_so():
    found = measured(CHARGE.image(8, np.full((SIZE, SIZE), 12.0)))
    assert not found.determined
    assert found.recommended is None
    assert found.together.words[0].startswith("the background is flat, its means lie between 7")
    assert np.isnan(found.together.gain.value)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((SIZE, SIZE)), "pixels do not differ at all"),
        (CHARGE.image(9)[:30, :30], "9 tiles of background: expected at least"),
        (np.zeros((5, 5)), "0 tiles of background"),
    ],
    ids=["dark counter", "small", "smaller than a tile"],
)
def test_what_cannot_be_measured_is_said_in_words(image, words):
    found = measured(image)
    assert found.recommended is None
    assert words in found.together.words[0]


def test_single_photons_in_the_dark_are_enough_for_a_counter():
    record = measured(Truth(1.0, 0.0, dimmest=0.001, brightest=0.02).image(10)).together
    assert agrees(record.gain, 1.0)


def test_light_that_spreads_over_pixels_shows_in_their_correlation():
    photons = np.random.default_rng(12).poisson(COUNTER.photons()).astype(float)
    part = 0.1
    spread = (1 - 2 * part) * photons + part * (np.roll(photons, 1, axis=0) + np.roll(photons, -1, axis=0))
    centre = (1 - 2 * part) ** 2 + 2 * part**2
    record = measured(spread).together
    # Neighbours along slow share 2 (1 - 2a) a of a photon's variance, those along fast nothing.
    assert record.correlation.value == pytest.approx((1 - 2 * part) * part / centre, rel=0.1)
    assert record.gain.value == pytest.approx(centre, rel=0.05)


def uneven(seed):
    """Panels whose pedestals differ and whose gain is higher on one side, as charge-integrating detectors' do."""
    rng = np.random.default_rng(seed)
    rise = np.where(np.mgrid[:SIZE, :SIZE][1] > 0.6 * SIZE, 1.8, 1.0)
    photons = COUNTER.photons() / 6 / rise
    for _ in range(12):
        yield 9.0 * rise * rng.poisson(photons) + rng.uniform(0, 20) + 2.0 * rng.standard_normal(photons.shape)


def test_a_detector_that_is_not_uniform_gets_the_line_that_weighs_its_pixels():
    images = list(uneven(1))
    found = measured(*images)
    assert not found.uniform
    assert found.recommended is not None
    assert found.together.skewness.value > 9.0
    assert not any(record.own_gain for record in found.panels)
    check = background_z(images, [np.ones(image.shape, dtype=bool) for image in images], found)
    assert check.together.rms == pytest.approx(1.0, abs=SIGMA_Z)
    spread = np.std([part.rms for part in check.by_panel.values()])
    assert spread > SIGMA_Z, "and the panels show what it leaves"


def test_the_straight_line_through_panels_has_the_gain_where_they_are_alike_and_less_where_pedestals_pass_for_light():
    rng = np.random.default_rng(3)

    def line(pedestals):
        """Of 16 panels of 5 to 20 photons, 6 units each."""
        photons = np.linspace(5, 20, len(pedestals))
        panels = [
            6.0 * rng.poisson(n, (96, 96)) + p + rng.normal(0, 3, (96, 96))
            for n, p in zip(photons, pedestals, strict=True)
        ]
        return measured(*panels).panel_line

    alike = line(np.zeros(16))
    assert alike.panels == 16
    assert alike.gain == pytest.approx(6.0, abs=4 * alike.gain_esd)
    assert alike.gain_esd < 0.1
    assert alike.variance_at_zero == pytest.approx(9.0, abs=4 * alike.variance_at_zero_esd)
    mixed = line(np.linspace(0, 30, 16))
    assert mixed.gain < 5.0
    assert measured(rng.poisson(9, (96, 96)).astype(float)).panel_line is None


@pytest.mark.parametrize("truth", [COUNTER, CHARGE], ids=["counter", "charge"])
def test_what_is_recommended_explains_the_background_at_every_intensity(truth):
    image = truth.image(13)
    found = measured(image)
    check = background_z([image], [np.ones(image.shape, dtype=bool)], found)
    assert check.together.rms == pytest.approx(1.0, abs=SIGMA_Z)
    assert len(check.by_intensity) == 6
    assert all(part.rms == pytest.approx(1.0, abs=SIGMA_Z) for part in check.by_intensity)


def test_a_pedestal_above_the_noise_leaves_nothing_to_recommend():
    found = measured(Truth(gain=2.5, sigma=3.0, pedestal=40.0).image(14))
    assert found.determined
    assert found.recommended is None
    with pytest.raises(BadInput, match="no gain and read-out noise are recommended"):
        background_z([], [], found)


def test_images_without_masks_of_their_shape_are_refused():
    with pytest.raises(BadInput, match="one mask for each image"):
        estimate_noise([np.zeros((20, 20))], [np.ones((20, 21), dtype=bool)])
    with pytest.raises(BadInput, match="one mask for each image"):
        estimate_noise([np.zeros((20, 20))], [])


def test_sigma_z_is_told_by_intensity_and_by_panel():
    rng = np.random.default_rng(15)
    intensity, panel = rng.uniform(0, 10, 60_000), rng.integers(0, 2, 60_000)
    z = rng.standard_normal(60_000) * np.where(intensity > 5, 1.2, 1.0) * np.where(panel == 1, 1.1, 1.0)
    check = sigma_z(z, intensity, panel, bins=2)
    dim, bright = check.by_intensity
    assert dim.intensity < 5 < bright.intensity
    assert abs(bright.rms / dim.rms - 1.2) < NOISE_ESDS * 1.2 * np.hypot(bright.esd, dim.esd)
    assert abs(check.by_panel[1].rms / check.by_panel[0].rms - 1.1) < NOISE_ESDS * 1.1 * np.hypot(
        check.by_panel[0].esd, check.by_panel[1].esd
    )
    assert check.together.pixels == 60_000
    assert sigma_z(np.zeros(0), np.zeros(0), np.zeros(0, dtype=int)).together.pixels == 0
    with pytest.raises(BadInput, match="not equal"):
        sigma_z(z, intensity[1:], panel)


def test_tiles_are_guided_by_their_neighbours_and_not_by_themselves():
    image = np.zeros((3 * TILE_PX, 3 * TILE_PX))
    image[TILE_PX : 2 * TILE_PX, TILE_PX : 2 * TILE_PX] = 7.0
    tiles = tiles_of([image], [np.ones(image.shape, dtype=bool)], None)
    assert len(tiles) == 9
    assert (tiles.mean[4], tiles.guide[4]) == (7.0, 0.0)
    assert tiles.guide[1] == pytest.approx(7.0 / 5)


def command(capsys, *words):
    """Exit status and what was told, of the command in this process."""
    pytest.importorskip("dials", reason="DIALS is not installed")
    from dbex.cli import estimate_noise as cli
    from dbex.cli.console import exit_status

    status = exit_status(cli.COMMAND, lambda: cli.main([str(word) for word in words]))
    return status, *capsys.readouterr()


def test_the_shipped_still_counts_photons(capsys, tmp_path):
    target = tmp_path / "noise.json"
    words = (SHIPPED.expt, SHIPPED.refl, f"mask={SHIPPED.mask}", f"output.json={target}")
    status, told, complaints = command(capsys, *words)
    assert (status, complaints) == (0, "")
    assert told.splitlines()[-1].startswith("gain=")
    assert "the detector counts photons" in told.splitlines()[-1]
    content = json.loads(target.read_text(encoding="utf-8"))
    assert content["determined"]
    assert content["uniform"]
    assert content["counts_photons"]
    assert content["together"]["gain"]["value"] == pytest.approx(1.0, abs=COUNTER_GAIN)
    assert content["together"]["sigma_readout"]["value"] < 0.15
    assert content["spot_pixels"] > 0
    assert content["sigma_z"]["together"]["rms"] == pytest.approx(1.0, abs=SIGMA_Z)
    assert all(part["rms"] == pytest.approx(1.0, abs=SIGMA_Z) for part in content["sigma_z"]["by_intensity"])
    assert [path.name for path in tmp_path.iterdir()] == ["noise.json"]


def test_thaumatin_counts_photons(thaumatin_files):
    from dbex.measured_noise import measure_noise

    found = measure_noise(thaumatin_files.expt, thaumatin_files.refl, thaumatin_files.mask)
    assert found.counting
    assert found.measurement.together.gain.value == pytest.approx(1.0, abs=COUNTER_GAIN)
    assert found.measurement.recommended is not None
    assert found.measurement.recommended[1] < 0.1
    assert found.check is not None
    assert found.check.together.rms == pytest.approx(1.0, abs=SIGMA_Z)


def test_thermolysin_is_not_uniform_and_its_pixels_are_weighed_right(capsys, thermolysin_files, tmp_path):
    files = thermolysin_files
    target = tmp_path / "noise.json"
    status, told, _ = command(capsys, files.expt, files.refl, f"mask={files.mask}", f"output.json={target}")
    assert status == 0
    assert "The detector is not uniform" in told
    content = json.loads(target.read_text(encoding="utf-8"))
    assert not content["counts_photons"]
    # Lines through tiles have slopes of 4.5 to 6.6 ADU: pedestals blur them. Photons stand 9 to 12 ADU apart.
    assert 5.0 < content["recommended"]["gain"] < 6.5
    assert 1.0 < content["recommended"]["sigma_readout"] < 5.0
    assert content["resolved"] >= 60
    line = content["line_through_panels"]
    assert line["panels"] == 64
    assert 5.0 < line["gain"] < 6.5
    assert line["gain_esd"] < 0.3
    assert f"one straight line through the (mean, variance) of 64 panels has the slope {line['gain']:.2f}" in told
    assert all(8.0 < panel["gain"]["value"] < 13.0 for panel in content["panels"])
    assert all(1.5 < panel["sigma_readout"]["value"] < 4.0 for panel in content["panels"])
    assert content["sigma_z"]["together"]["rms"] == pytest.approx(1.0, abs=SIGMA_Z)
    assert len(content["panels"]) == len(content["sigma_z"]["by_panel"]) == 64


def test_undetermined_noise_is_no_failure(capsys, monkeypatch):
    pytest.importorskip("dials", reason="DIALS is not installed")
    import dbex.measured_noise

    monkeypatch.setattr(dbex.measured_noise, "estimate_noise", lambda images, masks: measured(np.zeros((5, 5))))
    status, told, _ = command(capsys, SHIPPED.expt)
    assert status == 0
    assert "not determined: 0 tiles of background" in told
    assert told.splitlines()[-1].startswith("No recommendation")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "no .expt file is given"),
        ((SHIPPED.expt, SHIPPED.mtz), "expected no .mtz file"),
        ((SHIPPED.expt, "index=1"), "index is 1 but"),
        ((SHIPPED.expt, "index=-1"), "index is '-1'"),
        ((SHIPPED.expt, "mask=absent.pkl"), "absent.pkl does not exist"),
        ((SHIPPED.expt, "maks=x"), "did you mean mask?"),
        ((SHIPPED.expt, "output.json=absent/x.json"), "expected a file in a folder that exists"),
    ],
)
def test_bad_input_is_one_sentence(capsys, words, complaint):
    status, told, complaints = command(capsys, *words)
    assert (status, told) == (1, "")
    assert complaint in complaints
    assert complaints.count("\n") == 1


def test_help_comes_at_once(tmp_path):
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dbex.cli.estimate_noise", "-h"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert time.perf_counter() - began < HELP_SECONDS
    assert "usage: dbex.estimate_noise still.expt" in done.stdout
