"""The page of a still: complete, small, true to the numbers, without a network."""

import base64
import json
import re
import zlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from dbex.io.finished import read_still, result_of
from dbex.io.record import Run, record, write_record
from dbex.io.results import write_results
from dbex.refinement.settings import Settings
from dbex.report.page import Chart, Gallery, page_bytes, plain, write_page
from dbex.report.spots import MOST_PIXELS
from dbex.report.still_page import still_page
from dbex.still import Verdict
from tests.browser import opened
from tests.dbex.refined_example import HALF_BOX, PREDICTED_ONLY, drawn_spots, example_refined, example_still

RUN = Run("dbex.refine <still>.expt", 'mask = "a & b"', Settings(), "2026-01-01T00:00:00+00:00")
LARGEST_PAGE_BYTES = 5_000_000


def result_with(**changes):
    refined = replace(example_refined(), **changes)
    return result_of(refined, record(refined, RUN))


@pytest.fixture(scope="module")
def result():
    return result_with()


@pytest.fixture(scope="module")
def page(result):
    return still_page(result)


@pytest.fixture(scope="module")
def text(page):
    return page_bytes(page).decode("utf-8")


def items(page, kind):
    return [item for section in page.sections for item in section.items if isinstance(item, kind)]


def payload(text):
    packed = re.search(r'id="payload">([^<]*)<', text).group(1)
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def test_what_is_read_back_gives_the_same_page(result, page, tmp_path):
    refined = example_refined()
    write_results(refined, tmp_path)
    write_record(record(refined, RUN), tmp_path)
    again = still_page(read_still(tmp_path))
    for first, second in zip(items(page, Chart), items(again, Chart), strict=True):
        assert plain(first.traces) == plain(second.traces)
    assert plain(items(page, Gallery)[0].spots) == plain(items(again, Gallery)[0].spots)


def test_a_page_is_one_small_file_that_names_no_other(text):
    assert len(text.encode()) < LARGEST_PAGE_BYTES
    without_data = re.sub(r'<script type="text/plain".*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", without_data)
    assert "http" not in without_data.replace("http-equiv", "")
    assert "default-src 'none'" in text


def test_words_from_files_are_text_and_no_markup(text):
    assert "dbex.refine &lt;still&gt;.expt" in text
    assert "a &amp; b" in text


def test_every_figure_holds_numbers_and_says_how_to_read_it(page, text):
    charts = payload(text)["charts"]
    assert {
        *("correlations", "z-histogram", "z-resolution", "chi2-resolution", "chi2-intensity", "offsets"),
        *("offset-parts", "chi2-map", "rocking", "history"),
    } == set(charts)
    for chart in items(page, Chart):
        assert len(chart.caption) > 100, chart.name
        for trace in charts[chart.name]["traces"]:
            for axis in ("x", "y"):
                assert any(value is not None for value in trace[axis]), (chart.name, trace.get("name"))


def test_a_detector_of_several_panels_has_figures_by_panel_and_names_the_panel_of_a_spot(result):
    half = len(result.boxes) // 2
    boxes = replace(result.boxes, panel=(np.arange(len(result.boxes)) >= half).astype(int))
    pixels = replace(result.pixels, panel=boxes.panel[result.pixels.box])
    (panel,) = result.content["models"]["after"]["detector"]
    aside = panel | {"origin_fast_mm": panel["origin_fast_mm"] + 500.0}
    check = result.content["sigma_z"]
    by_panel = {"0": check["together"], "1": check["together"] | {"rms": 1.5}}
    models = {"after": result.content["models"]["after"] | {"detector": [panel, aside]}}
    content = result.content | {"models": models, "sigma_z": check | {"by_panel": by_panel}}
    page = still_page(replace(result, content=content, boxes=boxes, pixels=pixels))
    charts = {chart.name: plain(chart.traces) for chart in items(page, Chart)}
    assert charts["chi2-panel"][0]["x"] == [0, 1]
    assert charts["background-panels"][0]["y"] == [pytest.approx(check["together"]["rms"], rel=1e-6), 1.5]
    outline, marks, _ = charts["chi2-map"]
    assert len(outline["x"]) == 12, "two rectangles and what parts them"
    right = [x for x, text in zip(marks["x"], marks["text"], strict=True) if "panel 1" in text]
    left = [x for x, text in zip(marks["x"], marks["text"], strict=True) if "panel 0" in text]
    assert min(right) > max(left)


def test_the_table_says_what_moved_by_how_many_esds_and_which_esd_it_is(text):
    row = re.search(r"<tr><td>cell_a</td>.*?</tr>", text).group(0)
    assert re.findall(r">([^<>]+)</td>", row) == [
        *("cell_a", "27.3758", "27.4032", "0.0020", "Å", "13.7", "noise of the pixels")
    ]
    assert re.findall(r">([^<>]+)</td>", re.search(r"<tr><td>distance</td>.*?</tr>", text).group(0))[-2:] == ["–", "–"]


def test_the_worst_pair_is_named(result):
    content = result.content
    names = [estimate["name"] for estimate in content["estimates"]]
    matrix = np.diag([4.0, 1.0, 1.0, 1.0, 1.0])
    matrix[1, 2] = matrix[2, 1] = -0.97
    (chart,) = [c for c in items(still_page(replace(result, content=content | {"covariance": matrix})), Chart)
                if c.name == "correlations"]  # fmt: skip
    assert f"the worst pair is {names[1]} and {names[2]}, -0.97" in chart.title


def test_the_pixels_of_every_spot_are_in_the_page(result, text):
    spots = payload(text)["spots"]
    pixels, boxes = result.pixels, result.boxes
    images = {
        name: np.frombuffer(zlib.decompress(base64.b64decode(spots[name])), "<f4") for name in ("data", "model", "z")
    }
    assert len(spots["d"]) == len(boxes)
    for box in (0, 57, len(boxes) - 1):
        mine = (pixels.box == box) & pixels.used
        place = (pixels.slow[mine] - spots["y0"][box]) * spots["width"][box] + pixels.fast[mine] - spots["x0"][box]
        part = {name: image[spots["offset"][box] :][place] for name, image in images.items()}
        np.testing.assert_allclose(part["data"], pixels.data[mine], rtol=3e-4)
        np.testing.assert_allclose(part["model"], (pixels.background + pixels.bragg)[mine], rtol=3e-4)
        expected = (pixels.data - pixels.background - pixels.bragg)[mine] / np.sqrt(pixels.variance[mine])
        np.testing.assert_allclose(part["z"], expected, rtol=3e-4, atol=1e-6)
    assert np.isnan(images["z"][spots["offset"][57]]), "the corner of a box was not used"


def test_a_page_without_room_for_all_spots_keeps_the_ranked_and_the_bright_ones_and_says_so(result):
    (gallery,) = items(still_page(result, most_pixels=40 * 121), Gallery)
    shown = np.array(gallery.spots["offset"]) >= 0
    assert shown.sum() == 40
    assert all(shown[box] for kind in gallery.spots["kinds"] for box in kind["boxes"])
    assert f"{(~shown).sum()} of the weakest spots are not in this page" in gallery.caption


def test_a_page_full_of_pixels_is_not_too_large():
    still = example_still()
    rng = np.random.default_rng(2)
    number = MOST_PIXELS // (2 * HALF_BOX + 1) ** 2 + 50
    observed = replace(still.observed, hkl=rng.integers(-20, 20, (number - PREDICTED_ONLY, 3)))
    position, row = rng.uniform(50, 2300, (number, 2)), np.full(number, -1)
    boxes, pixels = drawn_spots(position, row, replace(still, observed=observed), rng)
    page = still_page(replace(result_with(), boxes=boxes, pixels=pixels))
    assert 40 <= (np.array(items(page, Gallery)[0].spots["offset"]) < 0).sum() <= 60
    assert len(page_bytes(page)) < LARGEST_PAGE_BYTES


@pytest.mark.parametrize("state", ["good", "fair", "incomplete", "poor", "not converged"])
def test_the_first_words_say_whether_the_fit_can_be_used(state):
    verdict = Verdict(state, ("chi2 per pixel is 31",), ("look at gain=",))
    text = page_bytes(still_page(result_with(verdict=verdict))).decode("utf-8")
    lead = re.search(r"<header>.*?<nav>", text, re.DOTALL).group(0)
    assert f">{state}</span>" in lead
    assert ("chi2 per pixel is 31" in lead) == (state != "good")
    assert "look at gain=" in lead
    if state == "poor":
        assert "The fit cannot be used" in lead


def test_what_was_left_out_is_told_with_its_reason(text):
    assert "<td>boxes at the edge</td><td" in text
    assert "hot pixels" not in text


def test_a_still_without_history_covariance_or_esds_has_a_page(result):
    content = result.content | {"estimates": [], "covariance": [], "history": [], "left_out": {}}
    text = page_bytes(still_page(replace(result, content=content))).decode("utf-8")
    assert "Nothing was left out." in text
    assert "correlations" not in payload(text)["charts"]


@pytest.mark.slow
def test_in_a_browser_all_is_drawn_the_picker_works_and_nobody_complains(page, tmp_path):
    write_page(page, tmp_path / "dbex.html")
    seen = opened(tmp_path / "dbex.html", tmp_path)
    assert seen.console == []
    assert seen.found["state"] == "drawn"
    assert seen.found["requests"] == []
    assert len(seen.found["charts"]) == 11, "ten figures and the picker"
    for name, chart in seen.found["charts"].items():
        assert chart["drawn"] > 0, name
        assert chart["numbers"], name
        assert all(all(count > 0 for count in trace) for trace in chart["numbers"]), name
    assert len(seen.found["canvases"]) >= 27
    assert min(seen.found["canvases"]) > 10, "a picture of one colour is none"
    assert seen.found["options"] == len(items(page, Gallery)[0].spots["d"])
    words = [step["words"] for step in seen.found["picked"]]
    assert all(first != second for first, second in pairwise(words))
    peaks = [step["peak"] for step in seen.found["picked"]]
    assert len(set(peaks)) > 3, "the images change with the words"
    assert all(word in words[0] for word in ("hkl", "d ", "CC", "χ²/px", "Z of the sum"))
