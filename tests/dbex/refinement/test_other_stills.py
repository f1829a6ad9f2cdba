"""The command on stills from elsewhere: it runs and reports, whatever the fit."""

import json
import re

import numpy as np
import pytest

from dbex.cli.refine import main
from dbex.data_load import read_stills
from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings
from tests.conftest import SHARED
from tests.tolerances import TRUTH_ESDS, TRUTH_SCALE_RELATIVE

CELL = ("cell_a", "cell_b", "cell_c", "cell_alpha", "cell_beta", "cell_gamma")
#: Two shots whose exposures differ.
SHOTS = (3, 15)


def reported(files, folder, *more):
    """What dbex.json says after the command ran on these files."""
    arguments = [str(files.expt), str(files.refl), str(files.mtz), f"mask={files.mask}", f"output.directory={folder}"]
    assert main([*arguments, *more]) == 0
    assert {"refined.expt", "refined.refl", "dbex.json", "spots.png", "pixels.h5"} <= {p.name for p in folder.iterdir()}
    return json.loads((folder / "dbex.json").read_text())


@pytest.mark.slow
def test_a_real_still_at_a_synchrotron_is_refined_and_its_misfit_told(thaumatin_files, tmp_path):
    told = reported(thaumatin_files, tmp_path / "thaumatin", "d_min=4.5")
    # a real crystal is not one Gaussian: the report must not call this good
    assert told["figures"]["chi2_core"] > 2
    assert told["verdict"]["state"] != "good"
    assert told["figures"]["intensity_cc"] > 0.5
    # what is asked of the detector is about the size of its errors, not of the laboratory
    for line in told["verdict"]["advice"]:
        assert all(abs(float(number)) < 5 for number in re.findall(r"([+-][\d.]+) m", line)), line


@pytest.mark.slow
def test_a_real_shot_on_64_panels_in_adu_is_refined_and_reported(thermolysin_files, tmp_path):
    told = reported(thermolysin_files, tmp_path / "thermolysin", "gain=6", "sigma_readout=4.5", "d_min=3.5")
    assert told["figures"]["boxes_cc"] > 20
    assert told["figures"]["intensity_cc"] > 0.3
    # blocks of a micron and more have no fringes that a spread of wavelengths would leave
    assert not any(e["name"].startswith("square") for e in told["estimates"])


@pytest.fixture(scope="module")
def shots(serial_files):
    """Two shots of one crystal form, by nanoBragg in C, their detector free; and the truth."""
    stills = read_stills(serial_files.expt, serial_files.refl, serial_files.mtz, serial_files.mask)
    truth = json.loads((SHARED / "data" / "serial20" / "truth.json").read_text())
    settings = Settings(detector=("distance", "shift", "tilt"))
    return {shot: refine_still(stills.read(shot), settings) for shot in SHOTS}, truth


@pytest.mark.slow
@pytest.mark.parametrize("shot", SHOTS)
def test_cell_and_detector_of_a_shot_by_another_program_are_found_within_their_esds(shots, shot):
    found, truth = shots[0][shot], shots[1]
    assert found.verdict.state == "good"
    told = {e.name: e for e in found.estimates}
    expected = dict(zip(CELL, truth["unit_cell"], strict=True))
    detector = truth["true_detector"]
    expected["distance"] = np.dot(detector["origin"], np.cross(detector["fast"], detector["slow"]))
    for name, value in expected.items():
        assert abs(told[name].after - value) < TRUTH_ESDS * told[name].esd, name
        # the start was wrong: this is not the answer of a still that says nothing
    assert abs(told["distance"].before - expected["distance"]) > TRUTH_ESDS * told["distance"].esd


@pytest.mark.slow
def test_two_shots_have_scales_in_the_ratio_of_their_exposures(shots):
    found, truth = shots
    scales = [next(e.after for e in found[shot].estimates if e.name == "scale") for shot in SHOTS]
    expected = [truth["shots"][shot]["relative_scale"] for shot in SHOTS]
    assert abs(np.log(expected[0] / expected[1])) > 0.2
    assert scales[0] / scales[1] == pytest.approx(expected[0] / expected[1], rel=TRUTH_SCALE_RELATIVE)


@pytest.mark.slow
def test_a_shot_whose_detector_is_held_though_it_is_wrong_is_not_called_good(serial_files):
    """Its spots lie half a pixel from where they should: no crystal explains them, and the program says what would."""
    stills = read_stills(serial_files.expt, serial_files.refl, serial_files.mtz, serial_files.mask)
    found = refine_still(stills.read(SHOTS[0]), Settings())
    assert found.verdict.state != "good"
