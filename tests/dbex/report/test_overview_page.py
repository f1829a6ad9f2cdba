"""The page of many stills: who failed and why, how numbers scatter, where the pages are."""

import re
from dataclasses import replace

import numpy as np
import pytest

from dbex.report.overview_page import MOST_ROWS, StillRow, overview_page
from dbex.report.page import Chart, page_bytes, plain, write_page
from tests.browser import opened

REASONS = {7: ("bad input", "the image shot_7.cbf does not exist"), 11: ("poor fit", "chi2 per pixel is 31")}


def row(number, rng):
    """A refined still whose cell is 27.4 ± 0.01 Å."""
    estimates = {name: (value + 0.01 * rng.normal(), 0.01, unit) for name, value, unit in (
        ("cell_a", 27.4, "A"), ("cell_b", 32.0, "A"), ("cell_alpha", 88.8, "deg"), ("misset_x", 0.05, "deg"),
        ("misset_y", 0.0, "deg"), ("misset_z", 0.02, "deg"), ("mosaicity", 0.3, "deg"))}  # fmt: skip
    U = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    figures = {"chi2_per_pixel": 1 + 0.02 * rng.normal(), "median_cc": 0.98, "boxes_cc": 60.0}
    return StillRow(number, f"shot_{number}", "refined", "good", "", figures, estimates, U)


def twenty():
    rng = np.random.default_rng(5)
    rows = [row(number, rng) for number in range(20)]
    rows[7] = StillRow(7, "shot_7", *(REASONS[7][0], "", REASONS[7][1]))
    rows[11] = replace(rows[11], outcome=REASONS[11][0], verdict="poor", reason=REASONS[11][1])
    rows[11].figures["chi2_per_pixel"] = 31.0
    rows[3] = replace(rows[3], address="stills/000003_shot_3/dbex.html")
    rows[13].estimates["cell_b"] = (33.0, 0.01, "A")
    return rows


@pytest.fixture(scope="module")
def page():
    return overview_page("DBEX: 20 stills", twenty(), "stills.csv", "How a still gets a page.")


@pytest.fixture(scope="module")
def text(page):
    return page_bytes(page).decode("utf-8")


def cells(text, first):
    """The rows of tables that begin with a cell, as text."""
    rows = re.findall(rf"<tr><td[^>]*>{first}</td>.*?</tr>", text)
    return [re.sub(r"<[^>]*>", "|", row) for row in rows]


def test_the_first_line_counts_and_every_failure_has_its_reason(text):
    assert "18 of 20 stills were refined and can be used; 1 bad input, 1 poor fit." in text
    for number, (outcome, reason) in REASONS.items():
        told = cells(text, number)[0]
        assert outcome in told
        assert reason in told


def test_a_name_leads_to_the_page_of_its_still_where_there_is_one(text):
    assert '<a href="stills/000003_shot_3/dbex.html">shot_3</a>' in text
    assert text.count('<a href="stills') == 1


def test_the_outlier_is_named_with_what_is_odd_about_it(text):
    found = [told for told in cells(text, 13) if "cell_b" in told and "33.000" in told]
    assert len(found) == 1
    value, median = (float(cell) for cell in found[0].strip("|").split("||")[3:5])
    assert value - median == pytest.approx(1.0, abs=0.02)


def test_scatter_over_esd_is_one_where_noise_is_all(text):
    (told,) = cells(text, "cell_a")
    assert float(told.split("||")[6].strip("|")) == pytest.approx(1.0, abs=0.6)


def test_every_figure_holds_numbers_and_says_how_to_read_it(page):
    charts = [item for section in page.sections for item in section.items if isinstance(item, Chart)]
    assert [chart.name for chart in charts] == ["cells", "orientations", "turns", "fits"]
    for chart in charts:
        assert len(chart.caption) > 100
        assert all(any(value is not None for value in plain(trace["x"])) for trace in chart.traces)


def test_failures_are_not_among_the_numbers(page):
    (cell,) = [item for section in page.sections for item in section.items if isinstance(item, Chart)][:1]
    assert sum(cell.traces[0]["y"]) == 18


def test_where_no_still_can_be_used_the_doubtful_ones_are_shown_and_called_so():
    poor = [replace(each, outcome="poor fit") for each in twenty() if each.estimates]
    text = page_bytes(overview_page("t", poor, "stills.csv", "")).decode("utf-8")
    assert "0 of 19 stills" in text
    assert "what follows is of those whose fit is doubtful" in text
    assert "chart-cells" in text


def test_no_still_at_all_is_a_page_too():
    rows = [StillRow(0, "a", "bad input", "", "no image")]
    text = page_bytes(overview_page("t", rows, "stills.csv", "")).decode("utf-8")
    assert "0 of 1 stills" in text
    assert "no image" in text


def test_the_table_of_very_many_stills_ends_and_says_where_the_rest_is():
    rows = [StillRow(number, f"shot_{number}", "refined") for number in range(MOST_ROWS + 5)]
    text = page_bytes(overview_page("t", rows, "stills.csv", "")).decode("utf-8")
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 5}. stills.csv has" in text
    assert f"shot_{MOST_ROWS + 1}<" not in text


@pytest.mark.slow
def test_in_a_browser_it_is_drawn_and_a_click_sorts(page, tmp_path):
    write_page(page, tmp_path / "dbex.html")
    seen = opened(tmp_path / "dbex.html", tmp_path)
    assert (seen.console, seen.found["state"], seen.found["requests"]) == ([], "drawn", [])
    assert len(seen.found["charts"]) == 4
    assert all(chart["drawn"] for chart in seen.found["charts"].values())
    assert all(count > 0 for chart in seen.found["charts"].values() for trace in chart["numbers"] for count in trace)
    assert seen.found["sorted"] == [str(number) for number in reversed(range(20))]
