"""Stills in NeXus files, and detectors of many panels of unequal sizes."""

import numpy as np
import pytest

from dbex.data_load import read_stills
from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings
from tests.dbex.conftest import SHIPPED
from tests.dbex.cut_panels import Cut, written
from tests.tolerances import CUT_ESDS

SHAPE = (2527, 2463)
WHOLE = Cut(np.array([0, SHAPE[0]]), np.array([0, SHAPE[1]]))
SETTINGS = Settings(detector=("distance", "shift"), terms=())


def read(folder, cut, frames=1):
    expt, refl, mask = written(SHIPPED, folder, cut, frames)
    return read_stills(expt, refl, SHIPPED.mtz, mask).read(0)


@pytest.fixture(scope="module")
def plain_fit(still):
    return refine_still(still, SETTINGS)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_still_in_a_nexus_file_is_the_same_as_in_a_cbf(still, tmp_path, frames):
    found = read(tmp_path, WHOLE, frames)
    np.testing.assert_array_equal(found.images_photons[0], still.images_photons[0])
    np.testing.assert_array_equal(found.trusted[0], still.trusted[0])
    assert found.noise == still.noise
    assert found.name == ("still" if frames == 1 else "still_00002")
    (ours,), (theirs,) = found.detector, still.detector
    for name in ("distance_mm", "origin_fast_mm", "origin_slow_mm", "fast_axis", "slow_axis", "pixel_size_mm"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-9, err_msg=name)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(found.beam.direction, still.beam.direction, atol=1e-12)
    np.testing.assert_array_equal(found.observed.hkl, still.observed.hkl)


def test_a_sensor_cut_into_256_unequal_panels_gives_the_same_model(plain_fit, tmp_path):
    """But for the spots on the cuts, of which less is left."""
    cut = read(tmp_path, Cut.drawn(SHAPE, 16, 16))
    assert len(cut.detector) == 256
    assert len({panel.shape for panel in cut.detector}) > 100
    found = refine_still(cut, SETTINGS)
    assert found.verdict.state == "good"
    assert len(np.unique(found.boxes.panel)) > 50
    for e, whole in zip(found.estimates, plain_fit.estimates, strict=True):
        assert e.name == whole.name
        assert abs(e.after - whole.after) < CUT_ESDS * whole.esd, e.name
        assert e.esd < 2 * whole.esd, e.name
