"""σ-Z of the background of boxes whose planes were fitted to it."""

import numpy as np
import pytest

from dbex.physics.sigma_z import background_sigma_z
from dbex.still import PixelTable
from tests.tolerances import NOISE_ESDS

BOXES, EDGE = 1500, 7
#: Photons of the dimmest and the brightest box, and read-out noise in photons.
DIM, BRIGHT, READOUT = 3.0, 60.0, 0.8


def table(read_out=READOUT):
    """Boxes of a sloping background on two panels, their planes fitted, variances made with `read_out`."""
    rng = np.random.default_rng(3)
    slow, fast = (axis.ravel() for axis in np.mgrid[:EDGE, :EDGE])
    basis = np.stack([np.ones(EDGE**2), fast - EDGE // 2, slow - EDGE // 2], 1)
    level = np.geomspace(DIM, BRIGHT, BOXES)[:, None]
    truth = level * (1 + 0.05 * basis[:, 1])
    data = rng.poisson(truth) + READOUT * rng.standard_normal(truth.shape)
    background = data @ np.linalg.pinv(basis).T @ basis.T
    box = np.repeat(np.arange(BOXES), EDGE**2)
    return PixelTable(
        box=box,
        panel=box % 2,
        slow=np.tile(slow, BOXES),
        fast=np.tile(fast, BOXES),
        data=data.ravel(),
        background=background.ravel(),
        other_lattices=np.zeros(box.size),
        bragg=np.zeros(box.size),
        variance=(truth + read_out**2).ravel(),
        used=np.ones(box.size, dtype=bool),
    )


def agrees(part):
    return abs(part.rms - 1) < NOISE_ESDS * part.esd


def test_it_is_one_where_the_variances_are_right_though_planes_were_fitted():
    check = background_sigma_z(table())
    assert check.together.pixels == BOXES * EDGE**2
    assert check.together.esd < 0.003, "three numbers of 49 are 0.03 in rms: they would be seen"
    assert all(agrees(part) for part in (check.together, *check.by_intensity, *check.by_panel.values()))


def test_a_wrong_read_out_noise_shows_in_dim_pixels():
    dim, *_, bright = background_sigma_z(table(read_out=0.01)).by_intensity
    for part in (dim, bright):
        assert part.rms == pytest.approx(np.sqrt(1 + READOUT**2 / part.intensity), abs=NOISE_ESDS * part.esd)
    assert dim.rms > 1.05 > bright.rms


def test_bragg_pixels_outliers_and_unused_pixels_do_not_count():
    pixels = table()
    sigma = np.sqrt(pixels.variance)
    pixels.bragg[::10] = 0.05 * sigma[::10]
    pixels.data[1::10] += 20 * sigma[1::10]
    pixels.used[2::10] = False
    assert background_sigma_z(pixels).together.pixels == np.count_nonzero(np.arange(len(sigma)) % 10 > 2)


def test_boxes_without_pixels_beyond_their_plane_say_nothing():
    pixels = table()
    pixels.used[:] = np.arange(pixels.box.size) % EDGE**2 < 3
    check = background_sigma_z(pixels)
    assert (check.together.pixels, check.by_intensity, check.by_panel) == (0, (), {})
