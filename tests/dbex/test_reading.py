"""Real and simulated stills come in as records."""

import numpy as np
import pytest

from dbex.data_load import read_stills
from dbex.io.images import read_image
from dbex.io.structure_factors import laue_classes
from dbex.spot_widths import GAUSS_VARIANCE, widths_from_spots
from dbex.still import Observed
from nanobrag_torch.config import BeamConfig, DetectorConfig
from tests.tolerances import SPOT_WIDTH_RELATIVE, UNITS_RELATIVE


def test_the_shipped_still_counts_photons_and_needs_no_noise(still):
    assert still.noise.provenance == "photon_counting"
    assert (still.noise.gain, still.noise.sigma_readout_photons) == (1.0, (0.0,))
    assert still.images_photons[0].dtype == np.float32
    assert still.images_photons[0].shape == still.trusted[0].shape == still.detector[0].shape == (2527, 2463)
    assert len(still.observed) == 102


def test_nothing_below_zero_is_trusted_in_a_counting_detector(still):
    assert still.images_photons[0].min() < 0
    assert still.images_photons[0][still.trusted[0]].min() >= 0


def test_every_file_that_was_read_is_named(still):
    assert set(still.files) == {"experiments", "reflections", "structure_factors", "mask", "image"}


def test_amplitudes_are_in_p1_with_both_friedel_mates(still):
    pairs = {tuple(hkl) for hkl in still.amplitudes.hkl.tolist()}
    assert len(pairs) == len(still.amplitudes.hkl)
    assert all((-h, -k, -l) in pairs for h, k, l in list(pairs)[:1000])


def test_a_real_still_of_higher_symmetry_is_read(thaumatin_files):
    still = read_stills(*thaumatin_files).read(0)
    assert (len(still.observed), still.amplitudes.space_group) == (706, "P 41 21 2")
    assert {(3, 5, 7), (-5, 3, 7), (-3, -5, -7)} <= {tuple(hkl) for hkl in still.amplitudes.hkl.tolist()}


def test_laue_classes_are_symmetry_and_friedel_mates_and_nothing_else(thaumatin_files):
    amplitudes = read_stills(*thaumatin_files).read(0).amplitudes
    number = dict(zip(map(tuple, amplitudes.hkl.tolist()), laue_classes(amplitudes).tolist(), strict=True))
    # 4/mmm: a fourfold axis along l, mirrors, and an inversion
    general = {
        (sh * h, sk * k, sl * 7) for h, k in ((3, 5), (5, 3)) for sh in (1, -1) for sk in (1, -1) for sl in (1, -1)
    }
    assert len({number[hkl] for hkl in general}) == 1
    assert {hkl for hkl, n in number.items() if n == number[3, 5, 7]} == general
    assert number[3, 5, 8] != number[3, 5, 7]


def test_a_still_on_64_panels_is_divided_by_its_gain(thermolysin):
    assert len(thermolysin.detector) == len(thermolysin.images_photons) == len(thermolysin.trusted) == 64
    assert thermolysin.noise.sigma_readout_photons == (0.75,) * 64
    raw = read_image(thermolysin.experiment, thermolysin.name)
    np.testing.assert_allclose(thermolysin.images_photons[5] * 6.0, raw.panels[5], rtol=UNITS_RELATIVE)


def test_stills_of_one_file_come_one_after_the_other(serial_files):
    stills = read_stills(*serial_files)
    names = [still.name for still, _ in zip(stills, range(3), strict=False)]
    assert (len(stills), names) == (20, ["lyso_shot_0001", "lyso_shot_0002", "lyso_shot_0003"])
    assert stills.images() == [(index,) for index in range(20)]


def test_each_still_gets_its_own_spots(serial_files):
    stills = read_stills(*serial_files)
    rows = [set(stills.observed(i)[0].row.tolist()) for i in range(20)]
    assert sum(map(len, rows)) == len(set.union(*rows)) == 2807


def test_one_bad_still_does_not_end_the_iteration(serial_files, tmp_path):
    stills = iter(read_stills(*serial_files))
    stills.stills.experiments[0].beam.set_wavelength(0.0)
    with pytest.raises(ValueError, match="wavelength is 0"):
        next(stills)
    stills.stills.experiments[0].beam.set_wavelength(0.9768)
    assert next(stills).name == "lyso_shot_0002"


def test_block_size_and_mosaicity_come_back_from_the_spots_of_gaussian_blocks():
    size_A, mosaicity_deg, wavelength_A, distance_mm, edge_mm = 500.0, 0.1, 1.0, 200.0, 0.1
    panel = DetectorConfig((1, 0, 0), (0, -1, 0), distance_mm, -100.0, -100.0, edge_mm, (2000, 2000))
    x, y = np.meshgrid(np.arange(2000) + 0.5, np.arange(2000) + 0.5)
    centres = np.random.default_rng(3).uniform(200, 1800, (40, 2))
    centres = centres[np.linalg.norm(centres - 1000, axis=1) > 300]
    image, bbox = np.full((2000, 2000), 5.0), []
    for centre in centres:
        position = np.array([*((centre - 1000) * edge_mm * (1, -1)), -distance_mm])
        R = np.linalg.norm(position)
        q = (position / R - (0, 0, -1)) / wavelength_A
        # The cut of the node by the sphere, in the plane across s1: S without what lies along s1.
        S = GAUSS_VARIANCE / size_A**2 * np.eye(3)
        S += np.radians(mosaicity_deg) ** 2 * (q @ q * np.eye(3) - np.outer(q, q))
        step = edge_mm / (wavelength_A * R)
        J = step * np.array([[1, 0, 0], [0, -1, 0]]).T
        J -= np.outer(position / R, position / R) @ J
        inverse = J.T @ np.linalg.inv(S) @ J
        box = np.floor([centre[0] - 12, centre[0] + 13, centre[1] - 12, centre[1] + 13]).astype(int)
        cut = np.s_[box[2] : box[3], box[0] : box[1]]
        d = np.stack([x[cut] - centre[0], y[cut] - centre[1]], -1)
        image[cut] += 1e4 * np.exp(-0.5 * np.einsum("abi,ij,abj->ab", d, inverse, d))
        bbox.append(box)
    n, bbox = len(bbox), np.array(bbox)
    zero = np.zeros(n, dtype=np.int64)
    spots = Observed(np.ones((n, 3), np.int64), zero, bbox, centres, np.ones(n), np.ones(n), zero)
    size, mosaicity = widths_from_spots(
        [image], [np.ones(image.shape, bool)], spots, [panel], BeamConfig(wavelength_A, (0.0, 0.0, -1.0))
    )
    assert size == pytest.approx(size_A, rel=SPOT_WIDTH_RELATIVE)
    assert mosaicity == pytest.approx(mosaicity_deg, rel=SPOT_WIDTH_RELATIVE)


def test_pixels_above_the_largest_trusted_value_are_not_trusted(shipped):
    """A converter that saturates below the experiment's range: what is brighter is left out, nothing else."""
    files = (shipped.expt, shipped.refl, shipped.mtz, shipped.mask)
    (wide,) = read_stills(*files).read(0).trusted
    still = read_stills(*files, trusted_max=200).read(0)
    (narrow,) = still.trusted
    assert (wide & ~narrow).sum() > 100
    np.testing.assert_array_equal(narrow, wide & (still.images_photons[0] <= 200))
