"""DB-AT-030: read-out noise is the map's, else the number's, else the experiment's own, else asked for."""

import numpy as np
import pytest
from dials.array_family import flex
from dxtbx.model import Detector, Panel
from dxtbx_format_image_ext import ImageDouble

from dbex.data_load import DataLoad, read_stills
from dbex.errors import BadInput
from dbex.io.experiments import lookup_of_noise, read_experiments
from dbex.physics.noise import counts_photons, noise_model
from dbex.refinement.inputs import prepare_refinement_inputs
from tests.reports import acceptance_report

SHAPE = (6, 8)
TRUSTED = (np.ones(SHAPE, bool), np.ones(SHAPE, bool))
MAP, LOOKUP = (np.full(SHAPE, 4.0),) * 2, (np.full(SHAPE, 6.0),) * 2


def model(sigma_map=None, scalar=None, lookup=None, *, gain=2.0, counting=False, trusted=TRUSTED):
    return noise_model(sigma_map, scalar, lookup, gain=gain, counting=counting, trusted=trusted)


class TestDB_AT_030_Sigma:
    @pytest.mark.parametrize(
        ("given", "provenance", "photons"),
        [
            ({"sigma_map": MAP, "scalar": 5.0, "lookup": LOOKUP}, "sigma_map", 2.0),
            ({"scalar": 5.0, "lookup": LOOKUP}, "sigma_scalar", 2.5),
            ({"lookup": LOOKUP}, "external_lookup", 3.0),
            ({"lookup": LOOKUP, "counting": True, "gain": 1.0}, "external_lookup", 6.0),
            ({"counting": True, "gain": None}, "photon_counting", 0.0),
        ],
    )
    def test_db_at_030_precedence(self, given, provenance, photons):
        with acceptance_report("DB-AT-030", f"precedence_{provenance}", tolerances={}) as values:
            found = model(**given)
            values["provenance"], values["sigma, photons"] = found.provenance, found.sigma_readout_photons[1]
            assert found.provenance == provenance
            assert (np.asarray(found.sigma_readout_photons[1]) == photons).all()

    def test_db_at_030_none_given_is_refused_and_says_how_to_give_it(self):
        with acceptance_report("DB-AT-030", "refused", tolerances={}) as values:
            with pytest.raises(BadInput) as refusal:
                model()
            values["message"] = str(refusal.value)
            assert all(word in values["message"] for word in ("sigma_readout=", "sigma_map=", "gain="))

    @pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
    @pytest.mark.parametrize("source", ["sigma_map", "lookup", "scalar"])
    def test_db_at_030_zero_negative_and_nan_are_refused(self, source, bad):
        with acceptance_report("DB-AT-030", f"bad_{source}_{bad}", tolerances={}) as values:
            entries = np.full(SHAPE, 4.0)
            entries[2, 3] = bad
            with pytest.raises(BadInput) as refusal:
                model(**{source: bad if source == "scalar" else (np.full(SHAPE, 4.0), entries)})
            values["message"] = str(refusal.value)
            assert (
                "expected a positive number" in values["message"] or "on panel 1 holds 1 entries" in values["message"]
            )

    def test_db_at_030_entries_outside_the_mask_do_not_matter(self):
        with acceptance_report("DB-AT-030", "outside_the_mask", tolerances={}) as values:
            entries, trusted = np.full(SHAPE, 4.0), np.ones(SHAPE, bool)
            entries[2, 3], trusted[2, 3] = np.nan, False
            found = model((entries, entries), trusted=(trusted, trusted))
            values["provenance"] = found.provenance
            assert found.sigma_readout_photons[0][trusted].max() == 2.0

    @pytest.mark.parametrize("shape", [(8, 6), (6, 9), (48,)])
    def test_db_at_030_a_map_of_another_shape_is_refused(self, shape):
        with acceptance_report("DB-AT-030", f"shape_{len(shape)}_{shape[0]}", tolerances={}) as values:
            with pytest.raises(BadInput, match="but the detector is \\(6, 8\\)") as refusal:
                model((np.ones(shape),) * 2)
            values["message"] = str(refusal.value)

    def test_db_at_030_a_map_goes_before_the_number_from_file_to_still(self, shipped, tmp_path):
        with acceptance_report("DB-AT-030", "from_file", tolerances={}, inputs=[shipped.expt]) as values:
            np.save(tmp_path / "sigma.npy", np.full((1, 2527, 2463), 3.0, dtype=np.float32))
            still = read_stills(*shipped, sigma_map=tmp_path / "sigma.npy", sigma_readout=7.0, gain=2.0).read(0)
            values["provenance"] = still.noise.provenance
            assert still.noise.provenance == "sigma_map"
            assert (still.noise.sigma_readout_photons[0] == 1.5).all()
            loaded = DataLoad(shipped.args(sigma_map=tmp_path / "sigma.npy"))
            assert loaded.sigma_readout_source == "sigma_map"
            assert (loaded.sigma_readout_map == 3.0).all()

    def test_db_at_030_the_record_says_where_sigma_came_from(self, loaded, inputs):
        with acceptance_report("DB-AT-030", "record", tolerances={}) as values:
            values["provenance"] = inputs.sigma_readout_provenance
            assert inputs.sigma_readout_provenance == "sigma_scalar"
            assert (inputs.sigma_readout == 3.0).all()
            rest = (
                loaded.data,
                loaded.background_image,
                loaded.trusted_mask,
                loaded.bbox,
                loaded.pids,
                loaded.detector,
            )
            as_map = prepare_refinement_inputs(*rest, sigma_readout=np.full(loaded.data.shape, 3.0))
            assert as_map.sigma_readout_provenance == "sigma_map"
            named = prepare_refinement_inputs(*rest, None, 3.0, "external_lookup")
            assert named.sigma_readout_provenance == "external_lookup"
            none = prepare_refinement_inputs(*rest)
            assert none.sigma_readout_provenance == "photon_counting"
            assert (none.sigma_readout == 0).all()


def test_the_noise_of_a_dark_travels_in_the_slot_for_pedestals(shipped):
    experiment = read_experiments(shipped.expt)[0]
    shapes = [(2527, 2463)]
    assert lookup_of_noise(experiment, shapes) is None
    experiment.imageset.external_lookup.pedestal.data = ImageDouble(flex.double(flex.grid(*shapes[0]), 2.5))
    assert (lookup_of_noise(experiment, shapes)[0] == 2.5).all()
    experiment.imageset.external_lookup.pedestal.filename = "dark_average.pickle"
    with pytest.raises(BadInput, match=r"carries the pedestal dark_average\.pickle"):
        lookup_of_noise(experiment, shapes)


@pytest.mark.parametrize(
    ("kind", "gain", "lowest", "whole", "counts"),
    [
        ("SENSOR_PAD", 1.0, 0, True, True),
        ("SENSOR_PAD", 1.0, -1, True, True),
        ("SENSOR_PAD", 1.0, -400, True, False),
        ("SENSOR_PAD", 1.0, 0, False, False),
        ("SENSOR_PAD", 2.0, 0, True, False),
        ("SENSOR_CCD", 1.0, 0, True, False),
        ("", 1.0, 0, True, False),
    ],
)
def test_what_counts_photons(kind, gain, lowest, whole, counts):
    panel = Panel(kind, "p", (1, 0, 0), (0, 1, 0), (0, 0, 100), (0.1, 0.1), (8, 6), (lowest, 1e6), 0.0, "", 0.0)
    panel.set_gain(gain)
    assert counts_photons(Detector(panel), whole) is counts


def test_the_gain_of_a_detector_that_does_not_count_is_asked_for():
    with pytest.raises(BadInput, match="give gain="):
        model(scalar=3.0, gain=None)


@pytest.mark.parametrize("gain", [0.0, -2.0, float("nan")])
def test_a_gain_that_is_no_positive_number_is_refused(gain):
    with pytest.raises(BadInput, match=r"gain is .*: expected a positive number"):
        model(scalar=3.0, gain=gain)


def test_an_adu_image_without_noise_is_refused_in_the_inputs(loaded):
    rest = (loaded.data, loaded.background_image, loaded.trusted_mask, loaded.bbox, loaded.pids, loaded.detector)
    with pytest.raises(BadInput, match="read-out noise is not known"):
        prepare_refinement_inputs(*rest, adu_per_photon=6.0)
