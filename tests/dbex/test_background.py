"""DB-AT-022: the background is -1 outside the boxes and only there, and a plane in Poisson noise is found again."""

from types import SimpleNamespace

import numpy as np
import pytest

from dbex.background import OUTLIER_Z, background_image, deviance_residual, fit_planes, plane_basis
from dbex.data_load import DataLoad
from dbex.rois import box_pixels
from tests.reports import acceptance_report
from tests.tolerances import COVERAGE_68, PLANE_ESDS

RNG_SEED = 20261124


def planes_of(seed, n, size, plane, sigma=0.0, spot=None, shift=0.0):
    """n boxes of size² Poisson pixels around the plane, with read-out noise, and what the fit finds."""
    rng = np.random.default_rng(seed)
    bbox = np.tile([10, 10 + size, 30, 30 + size], (n, 1)).astype(np.int64)
    pixels = box_pixels(bbox)
    basis = plane_basis(bbox, pixels)
    mean = basis @ np.asarray(plane)
    data = rng.poisson(mean) + (rng.normal(0, sigma, mean.shape) if sigma else 0.0) + shift
    spots = np.zeros_like(pixels.present) if spot is None else spot(basis)
    return SimpleNamespace(
        bbox=bbox,
        pixels=pixels,
        basis=basis,
        data=data.astype(np.float64),
        spots=spots,
        used=pixels.present,
        var=sigma**2,
    )


def fitted(p):
    return fit_planes(p.basis, p.data, p.spots, p.used, p.var)


class TestDB_AT_022_Background:
    def test_db_at_022_minus_one_outside_the_boxes_and_only_there(self, loaded, shipped):
        with acceptance_report("DB-AT-022", "minus_one", tolerances={}, inputs=[shipped.refl]) as values:
            inside = np.zeros(loaded.data.shape, bool)
            for panel, (x0, x1, y0, y1) in zip(loaded.pids, loaded.bbox, strict=True):
                inside[panel, y0:y1, x0:x1] = True
            values["pixels inside"] = int(inside.sum())
            assert (loaded.background_image[~inside] == -1).all()
            assert (loaded.background_image[inside] >= 0).all()

    def test_db_at_022_minus_one_is_never_taken_as_data(self, inputs):
        with acceptance_report("DB-AT-022", "never_data", tolerances={}) as values:
            values["loss pixels"] = int(inputs.loss_mask.sum())
            assert (inputs.background[inputs.loss_mask] >= 0).all()
            assert (inputs.target[~inputs.loss_mask] == 0).all()

    def test_db_at_022_background_rests_on_trusted_pixels_only(self, loaded, shipped, tmp_path):
        with acceptance_report("DB-AT-022", "mask", tolerances={}, inputs=[shipped.mask]) as values:
            unmasked = DataLoad(shipped.args(maskFile=None))
            changed = np.abs(unmasked.tilt_coefs - loaded.tilt_coefs).max(axis=1) > 0
            values["boxes with pixels that only the mask distrusts"] = int(changed.sum())
            trusted = [np.asarray(still.trusted_mask[0].as_numpy_array()) for still in (loaded, unmasked)]
            differ = trusted[0] != trusted[1]
            touched = np.array([differ[y0:y1, x0:x1].any() for x0, x1, y0, y1 in loaded.bbox])
            assert not changed[~touched].any()

    @pytest.mark.parametrize(("level", "sigma"), [(3.0, 0.0), (9.0, 0.0), (50.0, 0.0), (4.0, 2.0)])
    def test_db_at_022_a_hundred_thousand_pixels_give_back_a_plane(self, level, sigma):
        plane = np.array([level, level / 1500, -level / 2500])
        tolerances = {"esds": PLANE_ESDS}
        with acceptance_report("DB-AT-022", f"plane_{level:g}_{sigma:g}", tolerances=tolerances) as values:
            found = fitted(planes_of(RNG_SEED, 1, 317, plane, sigma))
            pulls = (found.coefs[0] - plane) / found.esds[0]
            values |= {"plane": plane, "found": found.coefs[0], "esds": found.esds[0], "pulls": pulls}
            assert found.good[0]
            assert np.abs(pulls).max() < PLANE_ESDS

    @pytest.mark.parametrize(("level", "sigma"), [(3.0, 0.0), (12.0, 0.0), (4.0, 2.0)])
    def test_db_at_022_esds_cover_the_truth(self, level, sigma):
        plane = np.array([level, level / 60, -level / 80])
        with acceptance_report(
            "DB-AT-022", f"coverage_{level:g}_{sigma:g}", tolerances={"68 %": COVERAGE_68}
        ) as values:
            found = fitted(planes_of(RNG_SEED, 3000, 21, plane, sigma))
            pulls = (found.coefs - plane) / found.esds
            values |= {"within one esd": (np.abs(pulls) < 1).mean(axis=0), "mean pull": pulls.mean(axis=0)}
            assert found.good.all()
            np.testing.assert_allclose((np.abs(pulls) < 1).mean(axis=0), 0.6827, atol=COVERAGE_68)


def test_a_spot_and_hot_pixels_do_not_lift_the_plane():
    plane = np.array([8.0, 0.05, -0.03])
    p = planes_of(4, 400, 21, plane, spot=lambda basis: (basis[..., 1:] ** 2).sum(-1) < 16)
    p.data += np.where(p.spots, 500.0, 0.0)
    p.data[:, 37] = 60_000.0
    p.data[:, 300] = 45.0
    found = fitted(p)
    pulls = (found.coefs - plane) / found.esds
    assert not found.inliers[:, [37, 300]].any()
    assert np.abs(pulls.mean(axis=0)).max() < PLANE_ESDS / np.sqrt(400) * 2
    np.testing.assert_allclose((np.abs(pulls) < 1).mean(), 0.6827, atol=COVERAGE_68)


def test_untrusted_pixels_have_no_influence():
    p = planes_of(5, 3, 15, [6.0, 0.1, 0.0])
    p.used = p.used & (np.arange(225) % 7 != 0)
    before = fitted(p)
    p.data[:, ::7] = np.nan
    after = fitted(p)
    np.testing.assert_array_equal(before.coefs, after.coefs)


def test_boxes_of_different_size_do_not_mix():
    bbox = np.array([[0, 15, 0, 15], [20, 40, 20, 51]], dtype=np.int64)
    pixels = box_pixels(bbox)
    basis = plane_basis(bbox, pixels)
    data = np.where(pixels.present, np.array([[20.0], [40.0]]), 1e6)
    found = fit_planes(basis, data, np.zeros_like(pixels.present), pixels.present)
    np.testing.assert_allclose(found.coefs, [[20, 0, 0], [40, 0, 0]], atol=1e-9)


def test_too_few_pixels_give_a_level_that_is_not_called_good():
    p = planes_of(6, 2, 15, [6.0, 0.0, 0.0])
    p.used = np.zeros_like(p.used)
    p.used[0, :5] = True
    found = fitted(p)
    assert found.good.tolist() == [False, False]
    assert found.coefs[0, 0] == pytest.approx(p.data[0, :5].mean(), rel=0.5)
    assert found.coefs[1].tolist() == [0.0, 0.0, 0.0]
    assert not np.isfinite(found.covariance).any()


def test_a_single_row_of_pixels_fixes_no_plane():
    p = planes_of(7, 1, 15, [6.0, 0.0, 0.0])
    p.used = p.used & (p.pixels.slow == 33)
    assert not fitted(p).good[0]


def test_empty_pixels_give_a_background_of_zero_with_an_esd():
    p = planes_of(8, 1, 15, [6.0, 0.0, 0.0])
    p.data[:] = 0.0
    found = fitted(p)
    np.testing.assert_allclose(found.coefs, 0.0, atol=1e-9)
    assert 0 < found.esds[0, 0] < 0.1


def test_a_pixel_of_two_boxes_belongs_to_the_nearer_centre():
    bbox = np.array([[0, 15, 0, 15], [9, 24, 0, 15]], dtype=np.int64)
    pixels = box_pixels(bbox)
    data = np.broadcast_to(np.array([[5.0], [9.0]]), pixels.present.shape).copy()
    planes = fit_planes(plane_basis(bbox, pixels), data, np.zeros_like(pixels.present), pixels.present)
    image = background_image((1, 20, 30), np.zeros(2, dtype=np.int64), bbox, pixels, planes)
    np.testing.assert_allclose(image[0, 5, :24], np.where(np.arange(24) < 12, 5.0, 9.0))
    assert (image[0, 5, 24:] == -1).all()


def test_the_deviance_is_near_to_the_normalised_residual_where_counts_are_many():
    data, mean = np.array([[10_000.0, 10_300.0, 9_900.0]]), np.full((1, 3), 10_000.0)
    residual = deviance_residual(data, mean, np.zeros((1, 3)))
    np.testing.assert_allclose(residual, [[0.0, 3.0, -1.0]], atol=0.02)


def test_poisson_noise_is_rarely_an_outlier():
    counts = np.random.default_rng(9).poisson(4.0, (1, 200_000)).astype(float)
    found = np.abs(deviance_residual(counts, np.full(counts.shape, 4.0), np.zeros(counts.shape))) > OUTLIER_Z
    assert found.mean() < 2e-4
