"""DB-AT-023: ADU and photons are the same still, as far as reading and inputs go."""

import numpy as np
import pytest

from dbex.data_load import DataLoad
from dbex.errors import BadInput
from dbex.refinement.inputs import prepare_refinement_inputs
from tests.reports import acceptance_report
from tests.tolerances import UNITS_RELATIVE

GAIN = 6.25


def prepared(loaded, gain, adu_per_photon, sigma):
    background = np.where(loaded.background_image >= 0, loaded.background_image * gain, -1.0)
    return prepare_refinement_inputs(
        loaded.data * gain,
        background,
        loaded.trusted_mask,
        loaded.bbox,
        loaded.pids,
        loaded.detector,
        adu_per_photon=adu_per_photon,
        sigma_readout=sigma * gain,
    )


class TestDB_AT_023_Units:
    def test_db_at_023_adu_and_photons_give_the_same_inputs(self, loaded):
        with acceptance_report("DB-AT-023", "inputs", tolerances={"relative": UNITS_RELATIVE}) as values:
            photons, adu = prepared(loaded, 1.0, None, 3.0), prepared(loaded, GAIN, GAIN, 3.0)
            values["largest difference"] = np.abs(photons.target - adu.target).max()
            for name in ("target", "sigma_readout", "background"):
                np.testing.assert_allclose(getattr(adu, name), getattr(photons, name), rtol=UNITS_RELATIVE, atol=1e-9)
            np.testing.assert_array_equal(adu.loss_mask, photons.loss_mask)
            assert (photons.unit_mode, adu.unit_mode) == ("photons", "adu")
            assert (photons.adu_per_photon, adu.adu_per_photon) == (1.0, GAIN)
            assert photons.target_representation == adu.target_representation == "photons_background_subtracted"
            assert photons.variance_floor > 0

    def test_db_at_023_a_still_in_adu_is_read_as_photons(self, thermolysin, thermolysin_files):
        with acceptance_report("DB-AT-023", "still", tolerances={"relative": UNITS_RELATIVE}) as values:
            raw = DataLoad(thermolysin_files.args(gain=6.0))
            values["gain"], values["sigma"] = thermolysin.noise.gain, thermolysin.noise.sigma_readout_photons[0]
            for photons, adu in zip(thermolysin.images_photons, raw.data, strict=True):
                np.testing.assert_allclose(photons * 6.0, adu, rtol=UNITS_RELATIVE)
            assert (thermolysin.noise.gain, thermolysin.noise.sigma_readout_photons[0]) == (6.0, 0.75)


@pytest.mark.parametrize("gain", [0.0, -1.0, float("nan")])
def test_a_gain_that_is_no_positive_number_is_refused(loaded, gain):
    with pytest.raises(BadInput, match="adu_per_photon is"):
        prepared(loaded, 1.0, gain, 3.0)


def test_a_background_of_another_shape_is_refused(loaded):
    rest = (loaded.trusted_mask, loaded.bbox, loaded.pids, loaded.detector)
    with pytest.raises(BadInput, match=r"background_image has shape \(2527, 2463\) but data is \(1, 2527, 2463\)"):
        prepare_refinement_inputs(loaded.data, loaded.background_image[0], *rest, sigma_readout=3.0)


def test_nan_on_a_trusted_pixel_of_a_box_is_refused(loaded):
    data = loaded.data.copy()
    inside = (loaded.background_image >= 0) & loaded.trusted_mask[0].as_numpy_array()
    data[tuple(index[0] for index in np.nonzero(inside))] = np.nan
    rest = (loaded.background_image, loaded.trusted_mask, loaded.bbox, loaded.pids, loaded.detector)
    with pytest.raises(BadInput, match="data hold NaN"):
        prepare_refinement_inputs(data, *rest, sigma_readout=3.0)
