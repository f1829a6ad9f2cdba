"""Two crystals on one image: refined together each comes out as it is, alone neither does where they overlap."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from dials.array_family import flex

from dbex.cli.refine import main
from dbex.data_load import read_stills
from dbex.errors import BadInput
from dbex.io.structure_factors import laue_classes
from dbex.refinement.lattices import refine_lattices
from dbex.refinement.light import bragg_light
from dbex.refinement.predictions import observed_predictions, predict
from dbex.refinement.prior import ModelError
from dbex.refinement.problem import StillProblem
from dbex.refinement.refine import refine_still
from dbex.refinement.rounds import K_TAILS, Round, objective_for
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import shoeboxes
from dbex.refinement.solvers.solution import Solution
from tests.dbex.conftest import SHIPPED
from tests.dbex.refinement.closed_form import BACKGROUND, D_MIN_A, add_spots
from tests.dbex.refinement.two_lattices import two_lattices
from tests.tolerances import LATTICE_ESDS, LATTICE_PULL_SQUARED, LIGHT_OF_PEAK, OTHER_ORDER_ESDS

D_MIN_REFINED_A = 1.5
SETTINGS = Settings(terms=(), d_min=D_MIN_REFINED_A)
#: Pixels where the other lattice adds more than so many of the background's photons are overlapped.
OVERLAPPED = 0.5 * BACKGROUND


@pytest.fixture(scope="module")
def drawn(still):
    return two_lattices(still)


@pytest.fixture(scope="module")
def together(drawn):
    return refine_lattices(drawn.stills, SETTINGS)


def overlapped(refined):
    pixels = refined.pixels
    return pixels.used & (pixels.other_lattices > OVERLAPPED)


def names(pixels):
    """One number a pixel of the only panel."""
    return pixels.slow * 10_000 + pixels.fast


def chi2(pixels, where):
    return float(np.mean((pixels.data - pixels.background - pixels.bragg)[where] ** 2 / pixels.variance[where]))


def test_alone_neither_lattice_explains_the_pixels_that_they_share(drawn, together):
    alone = refine_still(drawn.stills[1], SETTINGS)
    assert alone.figures["chi2_per_pixel"] > 2
    assert alone.verdict.state != "good"
    shared = names(together[1].pixels)[overlapped(together[1])]
    assert chi2(alone.pixels, np.isin(names(alone.pixels), shared) & alone.pixels.used) > 10


def test_together_both_are_fitted_within_their_noise(together):
    for refined in together:
        assert refined.figures["lattices"] == 2
        assert refined.verdict.state == "good"
        assert refined.figures["chi2_per_pixel"] == pytest.approx(1, abs=0.03)
        where = overlapped(refined)
        assert where.sum() > 100
        # Z² of a Poisson pixel has a variance of 2 and a little
        assert chi2(refined.pixels, where) == pytest.approx(1, abs=4 * (2.5 / where.sum()) ** 0.5)


def test_every_number_of_both_is_within_three_esds_of_the_truth(drawn, together):
    for refined, truth in zip(together, drawn.truths, strict=True):
        true = truth.map.values(truth.zero)
        for e in refined.estimates:
            assert abs(e.after - true[e.name]) < LATTICE_ESDS * e.esd, e.name


@pytest.mark.slow
def test_esds_of_both_hold_though_structure_factors_are_wrong_by_a_fifth(drawn):
    """The covariance between lattices is left out; what that leaves unknown is less than the esds that are quoted."""
    classes = laue_classes(drawn.stills[0].amplitudes)
    wrong = np.exp(np.random.default_rng(7).normal(0, 0.1, classes.max() + 1))[classes]
    amplitudes = replace(drawn.stills[0].amplitudes, F=drawn.stills[0].amplitudes.F * wrong)
    found = refine_lattices(
        [replace(still, amplitudes=amplitudes) for still in drawn.stills], replace(SETTINGS, d_min=2.0)
    )
    for refined, truth in zip(found, drawn.truths, strict=True):
        assert 0.1 < refined.figures["relative_model_error"] < 0.3
        true = truth.map.values(truth.zero)
        pulls = [abs(e.after - true[e.name]) / e.esd for e in refined.estimates]
        assert max(pulls) < LATTICE_ESDS
        assert np.mean(np.square(pulls)) < LATTICE_PULL_SQUARED


def test_overlapped_intensities_are_within_their_errors(drawn, together):
    amplitudes = drawn.stills[0].amplitudes
    F2 = {tuple(hkl): F**2 for hkl, F in zip(amplitudes.hkl.tolist(), amplitudes.F, strict=True)}
    pulls = []
    for refined in together:
        boxes = refined.boxes
        shared = np.isin(np.arange(len(boxes)), refined.pixels.box[overlapped(refined)])
        true = np.array([F2[tuple(hkl)] for hkl in boxes.hkl.tolist()])
        pulls.append(((boxes.intensity - true) / np.sqrt(boxes.variance))[shared])
    pulls = np.concatenate(pulls)
    assert len(pulls) > 10
    assert np.isfinite(pulls).all()
    assert np.mean(pulls**2) < 1 + 4 * (2 / len(pulls)) ** 0.5


def test_the_light_of_a_lattice_is_what_was_drawn(drawn):
    """From a fit that has found the truth, on all pixels, boxes or not."""
    still, truth = drawn.stills[0], drawn.truths[0]
    expected = [np.zeros(panel.shape) for panel in still.detector]
    spots = predict(truth.models, still.amplitudes, D_MIN_A, K_TAILS, [panel.shape for panel in still.detector])
    add_spots(expected, truth.models, spots, still.amplitudes)
    (found,) = bragg_light(still, true_round(still, truth), D_MIN_A)
    assert expected[0].max() > 1e3
    assert np.abs(found - expected[0]).max() < LIGHT_OF_PEAK * expected[0].max()
    assert found.sum() == pytest.approx(expected[0].sum(), rel=LIGHT_OF_PEAK)


def true_round(still, truth):
    """A round of the indexed spots that ended at the truth."""
    spots = observed_predictions(still, truth.models)
    objective = objective_for(still, truth.map, shoeboxes(still, spots, spots), ModelError(0.0))
    state = StillProblem(objective).start(truth.zero.numpy())
    state = replace(state, local=replace(state.local, intensity=objective.prior.mean))
    n = len(truth.zero)
    return Round(objective, Solution(np.zeros(n), True, "", (), np.eye(n), state), spots, ModelError(0.0))


def test_a_lattice_that_cannot_be_refined_does_not_stop_the_other(drawn):
    one, two = drawn.stills
    strange = replace(two, observed=replace(two.observed, hkl=two.observed.hkl + 900))
    first, second = refine_lattices((one, strange), Settings(terms=(), d_min=2.5, max_iterations=3))
    assert isinstance(second, BadInput)
    assert "among the structure factors" in str(second)
    assert "lattices" not in first.figures
    assert not first.pixels.other_lattices.any()


def test_experiments_on_one_image_share_it(drawn, tmp_path, monkeypatch):
    reads = []

    def read_image(experiment, name):
        reads.append(name)
        return drawn.as_read(experiment, name)

    monkeypatch.setattr("dbex.data_load.read_image", read_image)
    stills = read_stills(*drawn.written(tmp_path), SHIPPED.mtz, SHIPPED.mask)
    assert stills.images() == [(0, 1)]
    one, two = stills.read_lattices((0, 1))
    assert len(reads) == 1
    assert one.images_photons[0] is two.images_photons[0]
    assert (len(one.observed), len(two.observed)) == tuple(len(still.observed) for still in drawn.stills)


def test_the_command_refines_both_whichever_comes_first(drawn, together, tmp_path, monkeypatch):
    monkeypatch.setattr("dbex.data_load.read_image", drawn.as_read)
    expt, refl = drawn.written(tmp_path, places=(1, 0))
    out = tmp_path / "out"
    arguments = [str(expt), str(refl), str(SHIPPED.mtz), f"mask={SHIPPED.mask}", f"output.directory={out}"]
    assert main([*arguments, "refine.terms=none", f"d_min={D_MIN_REFINED_A}"]) == 0
    told = json.loads((out / "dbex.json").read_text(encoding="utf-8"))["stills"]
    name = "lys_nitr_10_6_0001"
    assert [still["still"] for still in told] == [f"{name}, lattice 1", f"{name}, lattice 2"]
    assert all("2 lattices on this image" in line for line in summaries(out, told))
    for still, refined in zip(told, together[::-1], strict=True):
        found = json.loads((out / still["folder"] / "dbex.json").read_text(encoding="utf-8"))
        for one, other in zip(found["estimates"], refined.estimates, strict=True):
            assert abs(one["after"] - other.after) < OTHER_ORDER_ESDS * other.esd, one["name"]
        with h5py.File(out / still["folder"] / "pixels.h5") as file:
            pixels = {column: file[f"pixels/{column}"][:] for column in file["pixels"]}
        used = pixels["used"] == 1
        z2 = (pixels["data"] - pixels["background"] - pixels["bragg"]) ** 2 / pixels["variance"]
        assert z2[used].mean() == pytest.approx(still["figures"]["chi2_per_pixel"], rel=1e-9)
        assert (pixels["other_lattices"] > OVERLAPPED).any()
        table = flex.reflection_table.from_file(str(out / still["folder"] / "refined.refl"))
        shared = np.bincount(pixels["box"], pixels["other_lattices"] > OVERLAPPED, len(table)) > 0
        esds = np.array(table["dbex.other_lattices"])
        assert np.median(esds[~shared]) < 0.01
        assert esds[shared].max() > 10


def summaries(out, told):
    return [json.loads((out / still["folder"] / "dbex.json").read_text())["summary"][0] for still in told]
