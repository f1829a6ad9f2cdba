"""Data that belong elsewhere: structure factors of another protein, a wrong indexing, the mask of another run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dbex.cli.refine import main
from dbex.data_load import read_stills
from dbex.io.masks import read_mask
from dbex.io.structure_factors import laue_classes
from dbex.refinement.predictions import keys
from dbex.refinement.prior import known_of
from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings
from tests.dbex.conftest import SHIPPED
from tests.dbex.refinement.tetragonal import indexed_otherwise, tetragonal_still
from tests.dbex.test_mask import pickled

SETTINGS = Settings(detector=("distance", "shift"), terms=())
QUESTION = "are these the structure factors of this crystal, and is this the right one of its possible indexings?"


@pytest.fixture(scope="module")
def tetragonal(still):
    return tetragonal_still(still)


def of_another_protein(amplitudes, other):
    """The normalised amplitudes of `other` at the same hkl, class by Laue class, on this crystal's fall with
    resolution; a class that the other lacks has that of one it has."""
    theirs = known_of(other, np.arange(len(other.hkl)))
    E = dict(zip(keys(other.hkl).tolist(), theirs.F / np.sqrt(theirs.mean_square), strict=True))
    _, first, number = np.unique(laue_classes(amplitudes), return_index=True, return_inverse=True)
    here = np.array([E.get(key, np.nan) for key in keys(amplitudes.hkl[first]).tolist()])
    missing = np.isnan(here)
    here[missing] = np.random.default_rng(1).choice(here[~missing], missing.sum())
    F = here[number] * np.sqrt(known_of(amplitudes, np.arange(len(amplitudes.hkl))).mean_square)
    return replace(amplitudes, F=F, sigma_F=0.02 * F)


def blames_the_structure_factors(refined):
    return refined.verdict.state == "poor" and any(QUESTION in reason for reason in refined.verdict.reasons)


def test_with_the_structure_factors_of_another_protein_pixels_agree_but_the_fit_is_poor(still, thaumatin_files):
    other = read_stills(*thaumatin_files).amplitudes
    found = refine_still(replace(still, amplitudes=of_another_protein(still.amplitudes, other)), SETTINGS)
    # free intensities fit the pixels whatever F is, and both fall with resolution: neither says anything
    assert found.figures["chi2_per_pixel"] < 1.1
    assert abs(found.figures["intensity_cc"]) < 0.3
    assert blames_the_structure_factors(found)


@pytest.mark.slow
def test_a_real_shot_with_the_structure_factors_of_another_protein_is_poor(thermolysin, thaumatin_files):
    other = read_stills(*thaumatin_files).amplitudes
    wrong = replace(thermolysin, amplitudes=of_another_protein(thermolysin.amplitudes, other))
    assert blames_the_structure_factors(refine_still(wrong, Settings(terms=(), d_min=4.0)))


def test_of_two_indexings_that_fit_the_spots_alike_the_wrong_one_is_poor(tetragonal):
    settings = Settings(terms=())
    right, wrong = refine_still(tetragonal, settings), refine_still(indexed_otherwise(tetragonal), settings)
    assert right.verdict.state == "good"
    assert right.figures["intensity_cc"] > 0.99
    # the same lattice: spots and pixels agree as well as before
    for name in ("spots_median_px", "chi2_per_pixel", "median_cc"):
        assert wrong.figures[name] == pytest.approx(right.figures[name], rel=0.02), name
    assert blames_the_structure_factors(wrong)


def test_indices_that_are_off_by_one_end_in_no_plausible_model(still):
    shifted = still.observed.hkl + np.array([0, 0, 1])
    found = refine_still(replace(still, observed=replace(still.observed, hkl=shifted)), Settings(terms=(), d_min=1.5))
    assert found.verdict.state in ("poor", "not converged")
    # it walks to another place of the lattice, away from the spots that were said to be there
    assert any("are their indices right?" in reason for reason in found.verdict.reasons)


def rolled(folder, by):
    """The shipped mask moved by so many pixels (slow, fast), as a file."""
    (mask,) = read_mask(SHIPPED.mask, [(2527, 2463)])
    return pickled(folder / "mask.pkl", np.roll(mask, by, (0, 1)))


def check(mask):
    return read_stills(SHIPPED.expt, SHIPPED.refl, SHIPPED.mtz, mask).read(0).mask_check


def test_the_mask_of_a_still_hides_none_of_its_spots_and_trusts_no_dead_pixel():
    found = check(SHIPPED.mask)
    assert (found.spots, found.hidden_spots, found.trusted_dead) == (102, 0, 0)
    assert found.dead_pixels == 526125


@pytest.mark.parametrize("by", [(0, 20), (20, 0), (30, 40), (2, 0)])
def test_a_mask_that_is_moved_hides_spots_or_trusts_dead_pixels(tmp_path, by):
    found = check(rolled(tmp_path, by))
    assert found.hidden_spots > 0.05 * found.spots or 0.01 < found.trusted_dead / found.dead_pixels < 0.9


def test_without_a_mask_there_is_nothing_to_check():
    assert check(None) is None


def test_the_mask_of_another_run_ends_in_a_poor_fit_in_words_and_in_the_record(tmp_path):
    out = tmp_path / "out"
    arguments = [*map(str, (SHIPPED.expt, SHIPPED.refl, SHIPPED.mtz)), f"mask={rolled(tmp_path, (20, 0))}"]
    assert main([*arguments, f"output.directory={out}", "refine.terms=none", "refine.detector=distance,shift"]) == 0
    told = json.loads((out / "dbex.json").read_text(encoding="utf-8"))
    assert told["verdict"]["state"] == "poor"
    assert told["summary"][0].startswith("poor fit")
    reason = "the mask hides 11 of 102 indexed spots and trusts 85 % of the pixels that the image marks as dead"
    assert f"{reason}: is it the mask of this run?" in told["summary"][0]
