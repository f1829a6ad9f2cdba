"""Whole refinements of the shipped still, and of one whose truth is known: DB-AT-023, 024, 028 and 029."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex import data_load
from dbex.data_load import read_stills
from dbex.refinement.predictions import keys, observed_predictions, predict
from dbex.refinement.prior import ModelError, known_of
from dbex.refinement.refine import refine_still
from dbex.refinement.rounds import objective_for, start, with_scale
from dbex.refinement.settings import CRYSTAL, Settings
from dbex.refinement.shoeboxes import shoeboxes
from dbex.refinement.tables import correlation
from tests.dbex.conftest import SHIPPED
from tests.dbex.refinement.conftest import DEMO
from tests.dbex.refinement.test_search import displaced
from tests.reports import acceptance_report
from tests.tolerances import GAIN_RELATIVE, SAME_MINIMUM_ESDS, SCALE_RELATIVE

STRONG = 10.0
CORE_CHI2, ALL_CHI2, MEDIAN_CC = 1.15, 1.02, 0.97
INPUTS = tuple(SHIPPED)


def values_of(refined):
    return {e.name: (e.after, e.esd) for e in refined.estimates}


def in_esds(refined, other):
    """How far apart two refinements ended, in esds of the first, by parameter."""
    here, there = values_of(refined), values_of(other)
    assert list(here) == list(there)
    return {name: abs(here[name][0] - there[name][0]) / here[name][1] for name in here}


class TestDB_AT_024_Quality:
    def test_db_at_024_before_the_refinement_spots_are_in_their_boxes(self, still):
        """The models as they were read, on the indexed spots: DIALS' own boxes, what is observed in them and what
        the start model puts there."""
        map = start(still, Settings())
        x = torch.zeros(len(map), dtype=torch.float64)
        spots = observed_predictions(still, map.models(x))
        objective = objective_for(still, map, shoeboxes(still, spots, spots), ModelError(1.0))
        boxes = objective.boxes
        objective = replace(objective, map=with_scale(objective, x.numpy()))
        variance = objective.first_variance()
        local = objective.solve_linear(x, variance)
        signal = boxes.sums((boxes.data - local.background) * boxes.used)
        strong = (signal / torch.sqrt(boxes.sums(variance * boxes.used)) > STRONG).numpy()
        cc = correlation(boxes, boxes.data, local.bragg + local.background)
        data = torch.where(boxes.used, boxes.data - local.background, -torch.inf)
        central = in_central_half(boxes, (data == boxes.largest(data)[boxes.box]).numpy())
        tolerances = {"median_cc_at_least": 0.5, "fraction_of_maxima_in_central_half_box_at_least": 0.95}
        with acceptance_report("DB-AT-024", "before", tolerances=tolerances, inputs=INPUTS) as values:
            values["median_cc"] = np.median(cc[strong])
            values["maxima_in_central_half_box"] = central[strong].mean()
            values["boxes"] = int(strong.sum())
            assert strong.sum() > 40
            assert local.bragg.max() > 0
            assert values["median_cc"] >= 0.5
            assert values["maxima_in_central_half_box"] >= 0.95

    def test_db_at_024_after_it_they_are_explained(self, refined):
        boxes, pixels = refined.boxes, refined.pixels
        cc, central, signal = [], [], []
        for box in range(len(boxes)):
            rows = np.nonzero((pixels.box == box) & pixels.used)[0]
            data, model = pixels.data[rows], (pixels.background + pixels.bragg)[rows]
            cc.append(np.corrcoef(data, model)[0, 1])
            signal.append(pixels.bragg[rows].sum() / np.sqrt(pixels.variance[rows].sum()))
            peak = rows[np.argmax(data - pixels.background[rows])]
            x0, x1, y0, y1 = boxes.bbox[box]
            offset = [abs(pixels.fast[peak] + 0.5 - (x0 + x1) / 2), abs(pixels.slow[peak] + 0.5 - (y0 + y1) / 2)]
            central.append(offset[0] <= (x1 - x0) / 4 and offset[1] <= (y1 - y0) / 4)
        cc, central, strong = np.array(cc), np.array(central), np.array(signal) > STRONG
        tolerances = {"median_cc_at_least": 0.98, "fraction_of_maxima_in_central_half_box_at_least": 0.99}
        with acceptance_report("DB-AT-024", "after", tolerances=tolerances, inputs=INPUTS) as values:
            values["median_cc"] = np.median(cc[strong])
            values["maxima_in_central_half_box"] = central[strong].mean()
            values["boxes"] = int(strong.sum())
            assert strong.sum() > 40
            assert values["median_cc"] >= 0.98
            assert values["maxima_in_central_half_box"] >= 0.99
            # the table tells the same figures
            np.testing.assert_allclose(boxes.cc[strong], cc[strong], atol=1e-9)
            np.testing.assert_allclose(boxes.signal_to_noise, signal, rtol=1e-9)


def in_central_half(boxes, largest):
    """Whether the first pixel of each box (n,) among those that are its `largest` (N,) is within its central half along
    both edges."""
    box, pixel = np.unique(boxes.box.numpy()[largest], return_index=True)
    assert len(box) == len(boxes)
    pixel = np.flatnonzero(largest)[pixel]
    fast, slow = boxes.fast.numpy()[pixel] + 0.5, boxes.slow.numpy()[pixel] + 0.5
    x0, x1, y0, y1 = boxes.bbox.T
    return (np.abs(fast - (x0 + x1) / 2) <= (x1 - x0) / 4) & (np.abs(slow - (y0 + y1) / 2) <= (y1 - y0) / 4)


def test_the_shipped_still_is_fitted_within_its_noise(refined):
    pixels = refined.pixels
    z2 = (pixels.data - pixels.background - pixels.bragg) ** 2 / pixels.variance
    peak = np.zeros(len(refined.boxes))
    np.maximum.at(peak, pixels.box, pixels.bragg)
    core = pixels.used & (pixels.bragg > 0.1 * peak[pixels.box])
    assert z2[pixels.used].mean() == pytest.approx(refined.figures["chi2_per_pixel"], rel=1e-9)
    assert z2[core].mean() == pytest.approx(refined.figures["chi2_core"], rel=1e-9)
    assert refined.figures["chi2_per_pixel"] <= ALL_CHI2
    assert refined.figures["chi2_core"] <= CORE_CHI2
    assert refined.figures["median_cc"] >= MEDIAN_CC
    assert refined.verdict.state == "good"
    assert refined.figures["relative_model_error"] < 0.05
    # nothing is asked for that was not given
    assert not refined.verdict.advice


def test_the_model_that_is_told_is_the_model_that_was_fitted(refined):
    """Predicted anew from the plain records, spots are where the table has them."""
    map = start(
        replace(refined.still, crystal=refined.crystal, detector=refined.detector, beam=refined.beam),
        Settings(detector=DEMO),
    )
    models = map.models(torch.zeros(len(map), dtype=torch.float64))
    shapes = [panel.shape for panel in refined.detector]
    found = predict(models, refined.still.amplitudes, refined.figures["d_min_A"], 4.0, shapes)
    place = {
        tuple(h): xy for h, xy in zip(refined.still.amplitudes.hkl[found.index].tolist(), found.xy_px, strict=True)
    }
    offset = np.array([place[tuple(h)] for h in refined.boxes.hkl.tolist()]) - refined.boxes.xy_px
    assert np.abs(offset).max() < 1e-3


def asked_distance(refined):
    """By how much the advice would move the distance, mm."""
    (line,) = (line for line in refined.verdict.advice if "refine.detector=" in line)
    return float(re.search(r"distance \(([+-][\d.]+) mm", line).group(1))


@pytest.mark.parametrize("hot_pixels", [0, 40])
def test_a_detector_that_was_held_is_missed(still, refined, hot_pixels):
    """The start is 0.16 mm too near: what the freed refinement finds, the held one asks for."""
    rng = np.random.default_rng(3)
    image = still.images_photons[0].copy()
    place = rng.choice(np.nonzero(refined.pixels.used & (refined.pixels.bragg < 1))[0], hot_pixels, replace=False)
    image[refined.pixels.slow[place], refined.pixels.fast[place]] = 3000
    held = refine_still(replace(still, images_photons=(image,)), Settings())
    moved = next(e.after - e.before for e in refined.estimates if e.name == "distance")
    assert asked_distance(held) == pytest.approx(moved, abs=0.03)


class TestDB_AT_028_Starts:
    @pytest.mark.parametrize(
        ("name", "moved"),
        [
            ("a b c longer by 2 1 1 % and 1.5 degrees", {"turn_deg": 1.5, "cell": (0.02, 0.01, 0.01)}),
            ("2 mm farther", {"distance_mm": 2.0}),
        ],
    )
    @pytest.mark.slow
    def test_db_at_028_a_start_far_off_ends_in_the_same_minimum(self, still, refined, name, moved):
        tolerances = {"esds": SAME_MINIMUM_ESDS}
        with acceptance_report("DB-AT-028", name.replace(" ", "_"), tolerances=tolerances, inputs=INPUTS) as values:
            found = refine_still(displaced(still, **moved), Settings(detector=DEMO))
            values["px_before"], values["px_after_search"] = (
                found.figures[f"search_median_px_{when}"] for when in ("before", "after")
            )
            values["chi2_per_pixel"] = [refined.figures["chi2_per_pixel"], found.figures["chi2_per_pixel"]]
            values["esds"] = {n: d for n, d in in_esds(refined, found).items() if not n.startswith("misset")}
            turned = np.rad2deg(np.linalg.norm(np.array(found.crystal.U) - np.array(refined.crystal.U)) / np.sqrt(2))
            largest = min(esd for n, (_, esd) in values_of(refined).items() if n.startswith("misset"))
            values["esds"]["orientation"] = turned / largest
            assert values["px_before"] > 3
            assert max(values["esds"].values()) < SAME_MINIMUM_ESDS


class TestDB_AT_029_Recovery:
    @pytest.mark.slow
    def test_db_at_029_a_still_drawn_from_the_model_gives_back_its_scale_and_everything_else(self, drawn):
        still, truth = drawn
        tolerances = {"scale_relative": SCALE_RELATIVE, "esds": 4.0}
        with acceptance_report("DB-AT-029", "drawn", tolerances=tolerances, inputs=INPUTS) as values:
            found = refine_still(displaced(still, turn_deg=0.3, cell=(0.003, -0.003, 0.002)), Settings())
            exact = {p.name: truth.map.value(p.name, truth.zero) for p in truth.map.parameters}
            told = {n: v for n, v in values_of(found).items() if not n.startswith("misset")}
            values["truth"] = {name: exact[name] for name in told}
            values["found"] = {name: value for name, (value, _) in told.items()}
            values["errors_in_esds"] = {name: (value - exact[name]) / esd for name, (value, esd) in told.items()}
            values["median_cc"] = found.figures["median_cc"]
            values["mean residual of the background, photons"] = mean = mean_of_background(found.pixels)
            assert found.verdict.state == "good"
            # weights that follow the data would pull planes down by a photon
            assert abs(mean[0]) < 4 * mean[1]
            assert abs(told["scale"][0] / exact["scale"] - 1) < SCALE_RELATIVE
            assert max(map(abs, values["errors_in_esds"].values())) < 4.0
            turned = np.array(found.crystal.U) - np.array(truth.models.crystal.U)
            esd = max(esd for n, (_, esd) in values_of(found).items() if n.startswith("misset"))
            assert np.rad2deg(np.linalg.norm(turned) / np.sqrt(2)) < 4 * esd

    def test_db_at_029_the_correlation_never_falls(self, still, refined):
        """On the boxes of the end: the models as they were read, and as they became."""
        tolerances = {"median_cc": "after >= before"}
        with acceptance_report("DB-AT-029", "correlation", tolerances=tolerances, inputs=INPUTS) as values:
            values["before"], values["after"] = median_cc_of_start(still, refined), refined.figures["median_cc"]
            assert 0 < values["before"] < values["after"]


def mean_of_background(pixels):
    """The mean of data less model, photons, where there is no Bragg light, and its standard error."""
    dark = pixels.used & (pixels.bragg < 1)
    residual = (pixels.data - pixels.background - pixels.bragg)[dark]
    return residual.mean(), residual.std() / np.sqrt(len(residual))


def median_cc_of_start(still, refined):
    """Median correlation of the strong boxes under the models that were read, their linear part at its best."""
    map = start(still, Settings(detector=DEMO))
    x = torch.zeros(len(map), dtype=torch.float64)
    map = replace(map, crystal=replace(map.crystal, mosaicity_deg=refined.crystal.mosaicity_deg))
    spots = observed_predictions(still, map.models(x))
    objective = objective_for(still, map, shoeboxes(still, spots, spots), ModelError(1.0))
    objective = replace(objective, map=with_scale(objective, x.numpy()))
    variance = objective.first_variance()
    local = objective.solve_linear(x, variance)
    boxes = objective.boxes
    cc = correlation(boxes, boxes.data, local.background + local.bragg)
    return float(np.median(cc))


class TestDB_AT_023_Refined:
    @pytest.mark.slow
    def test_db_at_023_an_image_in_adu_with_its_gain_gives_the_same_refined_model(self, refined, monkeypatch):
        """In ADU at 6 a photon, with next to no read-out noise: the photons of a counting detector have none."""
        read = data_load.read_image

        def amplified(*args):
            raw = read(*args)
            return replace(raw, panels=tuple(np.where(p > 0, 6 * p, p) for p in raw.panels))

        monkeypatch.setattr(data_load, "read_image", amplified)
        still = read_stills(*SHIPPED, gain=6.0, sigma_readout=1e-6).read(0)
        monkeypatch.undo()
        adu = refine_still(still, Settings(detector=DEMO))
        with acceptance_report("DB-AT-023", "refined", tolerances={"relative": GAIN_RELATIVE}, inputs=INPUTS) as values:
            values["largest_pixel_adu"] = 6 * max(
                float(p[t].max()) for p, t in zip(still.images_photons, still.trusted, strict=True)
            )
            here, there = values_of(refined), values_of(adu)
            values["relative"] = {
                name: abs(there[name][0] - here[name][0]) / max(abs(here[name][0]), here[name][1]) for name in here
            }
            assert still.noise.gain == 6.0
            assert max(values["relative"].values()) < GAIN_RELATIVE
            assert adu.figures["chi2_per_pixel"] == pytest.approx(refined.figures["chi2_per_pixel"], rel=GAIN_RELATIVE)

    def test_db_at_023_a_gain_that_is_not_told_is_noticed(self, still):
        """The test above can fail: the same ADU taken for photons have six times the variance that counts have."""
        amplified = replace(still, images_photons=tuple(np.where(i > 0, 6 * i, i) for i in still.images_photons))
        found = refine_still(amplified, Settings(max_iterations=5))
        assert found.figures["chi2_per_pixel"] > 3


def test_structure_factors_that_are_held_to_their_sigmas_stay_there_at_the_cost_of_chi2(still, refined):
    held = refine_still(still, Settings(detector=DEMO, model_error=0.0))
    known = keys(still.amplitudes.hkl)
    place = np.searchsorted(known, keys(held.boxes.hkl), sorter=np.argsort(known))
    sd = known_of(still.amplitudes, np.argsort(known)[place]).prior_sd(ModelError(0.0))
    assert (held.boxes.posterior_variance <= sd**2).all()
    assert held.figures["chi2_per_pixel"] > refined.figures["chi2_per_pixel"]


def test_structure_factors_of_another_crystal_give_no_good_fit(still):
    """The same values on other reflections."""
    known = still.amplitudes
    order = np.random.default_rng(5).permutation(len(known.F))
    shuffled = replace(known, F=known.F[order], sigma_F=known.sigma_F[order])
    found = refine_still(replace(still, amplitudes=shuffled), Settings())
    assert found.verdict.state == "poor"
    assert any("are these the structure factors of this crystal" in reason for reason in found.verdict.reasons)


def test_spots_of_another_crystal_give_no_good_fit(still):
    """The right cell, turned by 20 degrees: its reflections are nowhere."""
    found = refine_still(displaced(still, turn_deg=20.0), Settings(max_iterations=5, start="near"))
    assert found.verdict.state != "good"


def test_larger_boxes_move_nothing_beyond_its_error_where_the_model_is_right(refined):
    for estimate in refined.estimates:
        assert 0 < abs(estimate.drift) < estimate.esd_formal, estimate.name


def test_the_error_to_quote_covers_the_drift_with_the_size_of_the_boxes(still):
    """A mosaicity that is held at a fifth leaves tails outside the boxes."""
    groups = tuple(group for group in CRYSTAL if group != "mosaicity")
    narrow = replace(still, crystal=replace(still.crystal, mosaicity_deg=0.005))
    found = refine_still(narrow, Settings(crystal=groups, detector=DEMO, terms=(), start="near"))
    assert all(e.esd >= abs(e.drift) for e in found.estimates)
