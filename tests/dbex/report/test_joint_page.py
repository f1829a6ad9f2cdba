"""The page of a joint refinement."""

import re

import pytest

from dbex.report.joint_page import joint_page
from dbex.report.page import Chart, page_bytes, plain, write_page
from tests.browser import opened


def shared(name, before, after, noise, scatter):
    return {"name": name, "group": "detector", "unit": "mm", "before": before, "after": after, "esd_formal": noise,
            "esd_scatter": scatter, "esd": scatter or noise}  # fmt: skip


def still(number, pull, weight):
    cell = {
        "name": "cell_a",
        "group": "cell",
        "unit": "A",
        "before": 27.0,
        "after": 27.4 + 0.001 * number,
        "esd": 0.002,
    }
    return {"id": number, "index": number, "still": f"shot_{number}", "weight": weight, "pull": pull,
            "outlier": weight < 1, "converged": True, "figures": {"chi2_per_pixel": 1.02, "median_cc": 0.99},
            "estimates": [cell], "left_out": {}}  # fmt: skip


def shell(coarse, fine, cc, r):
    return {"d_max_A": coarse, "d_min_A": fine, "reflections": 200, "multiplicity": 2.5, "cc_half": cc, "r_half": r,
            "cc_F2": 0.98}  # fmt: skip


CONTENT = {
    "shared": [shared("distance", 100.0, 100.14, 0.001, 0.002), shared("shift_fast", 0.0, -0.07, 0.001, None)],
    "covariance": [[4e-6, -1.9e-6], [-1.9e-6, 1e-6]],
    "converged": True,
    "message": "",
    "outlier_rule": "Huber: a still that pulls hard pulls no harder",
    "stills": [still(0, 1.1, 1.0), still(1, 0.9, 1.0), still(2, 14.0, 0.2)],
    "left_out": [{"index": 3, "still": "shot_3", "reason": "the image is absent"}],
    "merging": {"relative_model_error": 0.05, "shells": [shell(20, 3, 0.99, 0.05), shell(3, 2, 0.9, 0.2),
                                                         shell(20, 2, 0.98, 0.08)]},
    "steps": [{"round": 1, "number": 1, "merit": 9.0, "damping": 1e-3, "step_in_esds": 50.0, "accepted": True},
              {"round": 2, "number": 1, "merit": 8.0, "damping": 1e-4, "step_in_esds": 0.01, "accepted": True}],
    "command": "dbex.refine_joint a.expt", "modified_parameters": "", "started": "2026-01-01", "peak_memory_MB": 700.0,
    "versions": {"dbex": "0.1.0"},
}  # fmt: skip


@pytest.fixture(scope="module")
def text():
    return page_bytes(joint_page(CONTENT)).decode("utf-8")


def words(text, first):
    row = re.search(rf"<tr><td[^>]*>{first}</td>.*?</tr>", text).group(0)
    return re.findall(r">([^<>]+)</td>", row)


def test_what_is_shared_is_told_with_both_esds_and_the_worst_pair_named(text):
    assert words(text, "distance") == ["distance", "100.0000", "100.1400", "0.001", "0.002", "0.002", "mm", "70.0"]
    assert words(text, "shift_fast")[4] == "–"
    assert "the worst pair is distance and shift_fast, -0.95" in text


def test_who_was_held_back_or_left_out_is_named_with_the_reason(text):
    assert "3 stills took part; 1 of them pull much harder" in text
    assert words(text, 2)[:4] == ["2", "shot_2", "0.20", "14.0"]
    assert words(text, 3) == ["3", "shot_3", "the image is absent"]


def test_cc_half_is_told_by_shell_and_over_all(text):
    assert "CC½ 0.980, R of random halves 0.080" in text
    assert words(text, "3.00 to 2.00")[3:5] == ["0.900", "0.200"]


def test_every_figure_holds_numbers(text):
    charts = [item for section in joint_page(CONTENT).sections for item in section.items if isinstance(item, Chart)]
    assert [chart.name for chart in charts] == ["correlations", "shells", "pulls", "steps"]
    for chart in charts:
        assert len(chart.caption) > 100
        assert all(any(value is not None for value in plain(trace["x"])) for trace in chart.traces)


def test_what_has_not_converged_or_cannot_be_merged_is_said():
    text = page_bytes(
        joint_page(CONTENT | {"converged": False, "message": "gave up", "steps": [],
                              "merging": {"relative_model_error": 0.0, "shells": []}})
    ).decode("utf-8")  # fmt: skip
    assert "has not converged (gave up)" in text
    assert "No reflection was seen twice" in text


@pytest.mark.slow
def test_in_a_browser_it_is_drawn(tmp_path):
    write_page(joint_page(CONTENT), tmp_path / "dbex.html")
    seen = opened(tmp_path / "dbex.html", tmp_path)
    assert (seen.console, seen.found["state"], seen.found["requests"]) == ([], "drawn", [])
    assert all(chart["drawn"] for chart in seen.found["charts"].values())
