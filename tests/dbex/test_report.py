"""What a person is told and shown of a refinement."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import image

from dbex.io.finished import result_of
from dbex.io.record import Run, record
from dbex.refinement.settings import Settings
from dbex.report.figures import box_images, frames, ranked_boxes, spots_figure, write_picture
from dbex.report.summary import background, left_out, rounded, summary, table
from dbex.still import ParameterEstimate, Verdict
from tests.dbex.refined_example import HALF_BOX, example_refined

RUN = Run("dbex.refine still.expt", "", Settings(), "2026-01-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def refined():
    """The example, none of whose boxes lost weight."""
    found = example_refined()
    return replace(found, boxes=replace(found.boxes, weight=np.ones(len(found.boxes.weight))))


@pytest.fixture(scope="module")
def result(refined):
    """What a run leaves of it."""
    return result_of(refined, record(refined, RUN))


def test_five_lines_say_whether_the_fit_is_good_and_what_moved(refined):
    lines = summary(refined, "refined")
    assert len(lines) == 5
    assert lines[0].startswith(f"good fit: χ²/pixel {refined.figures['chi2_per_pixel']:.3f} over")
    assert "orientation turned by 0.2000 ± 0.0010° (200.0 esds)" in lines[1]
    assert "mosaicity 0.00300 → 0.03100 ± 0.00060° (46.7 esds)" in lines[1]
    assert lines[2] == "cell: cell_a 27.3758 → 27.4032 ± 0.0020 Å (13.7 esds)"
    assert "detector: distance" in lines[3]
    assert "(no esd)" in lines[3], "a number without an esd has moved by no number of esds"
    assert "beam: wavelength 0.97680 → 0.97700 ± 0.00010 Å (2.0 esds)" in lines[3]
    assert lines[4] == "the data ask for a bandwidth: add refine.beam=bandwidth; results in refined"


def test_the_scatter_of_the_background_is_a_line(refined):
    told = background(refined.background)
    check = refined.background
    assert told.startswith(
        f"σ-Z of {check.together.pixels} background pixels: {check.together.rms:.3f} ± {check.together.esd:.3f}; "
    )
    assert told.count(" at ") == len(check.by_intensity)
    assert "by panel" not in told
    two = replace(check, by_panel={0: check.together, 5: replace(check.together, rms=1.5)})
    assert background(two).endswith(f"by panel: {check.together.rms:.3f} (panel 0) to 1.500 (panel 5)")
    assert "no pixel" in background(replace(check, together=replace(check.together, pixels=0)))


def test_the_error_of_a_turn_is_that_about_its_axis(refined):
    """Errors of 3 and 4 mdeg that rise together: large along their sum, small across it."""
    x, y = (
        ParameterEstimate(f"misset_{axis}", "orientation", "deg", 0.0, after, esd, esd)
        for axis, after, esd in (("x", 0.03, 0.003), ("y", 0.04, 0.004))
    )
    correlated = np.array([[1.0, 0.99], [0.99, 1.0]]) * np.outer([0.003, 0.004], [0.003, 0.004])
    told = summary(replace(refined, estimates=(x, y), covariance=correlated), "out")[1]
    variance = 0.6**2 * 0.003**2 + 0.8**2 * 0.004**2 + 2 * 0.48 * 0.99 * 0.003 * 0.004
    assert told == f"orientation turned by 0.0500 ± {variance**0.5:.4f}° ({0.05 / variance**0.5:.1f} esds)"
    across = replace(y, after=-0.0225)
    told = summary(replace(refined, estimates=(x, across), covariance=correlated), "out")[1]
    assert "0.03750 ± 0.00034°" in told


def test_what_was_held_is_said_to_be_held(refined):
    held = replace(refined, estimates=(), verdict=Verdict("poor", ("a second lattice",), ()))
    lines = summary(held, "out")
    assert lines[0].startswith("poor fit")
    assert lines[0].endswith("a second lattice")
    assert lines[1:4] == ("crystal held", "cell: held", "detector and beam held")
    assert lines[4] == "nothing of detector or beam that is held asks to move; results in out"


def test_the_table_has_a_line_for_every_parameter(refined):
    lines = table(refined).splitlines()
    assert len(lines) == 1 + len(refined.estimates)
    assert lines[2].split() == ["cell_a", "27.3758", "27.4032", "0.0020", "A", "13.7", "esds"]


def test_a_number_shows_the_second_digit_of_its_esd():
    assert rounded(231.27645, 0.0123) == "231.276"
    assert rounded(231.27645, 12.3) == "231"
    assert rounded(1234567.0, 123.0) == "1.235e+06"
    assert rounded(0.00000142, 0.00000039) == "1.42e-06"
    assert rounded(0.5, float("nan")) == "0.5"


def test_a_fit_that_has_not_converged_is_not_called_a_kind_of_fit(refined):
    stopped = replace(refined, verdict=Verdict("not converged", ("the last steps were large",), ()))
    assert summary(stopped, "out")[0].startswith("not converged: χ²/pixel")


def test_only_what_was_left_out_is_counted(refined):
    assert left_out(refined.left_out) == "left out: 3 boxes at the edge"
    assert left_out({"hot pixels": 0}) == "nothing was left out"


def test_spots_are_ranked_by_the_correlation_of_data_and_model(refined, result):
    ranked = ranked_boxes(result)
    cc = {kind: refined.boxes.cc[boxes] for kind, boxes in ranked.items()}
    bright = refined.boxes.cc[refined.boxes.signal_to_noise > 10]
    assert cc["worst"][0] == bright.min()
    assert cc["best"][0] == bright.max()
    assert abs(np.median(cc["median"]) - np.median(bright)) < np.ptp(bright) / 10


def test_boxes_that_lost_their_weight_are_shown_and_listed_those_that_lost_most_first(refined):
    weight = np.ones(len(refined.boxes.weight))
    weight[[5, 9]] = 0.9, 0.6
    robbed = replace(refined, boxes=replace(refined.boxes, weight=weight))
    assert robbed.down_weighted().tolist() == [9, 5]
    content = record(robbed, RUN)
    assert len(spots_figure(result_of(robbed, content)).images) == 27 + 6
    listed = content["down_weighted_boxes"]
    assert "6 sigma" in listed["rule"]
    assert [tuple(box["hkl"]) for box in listed["boxes"]] == [tuple(refined.boxes.hkl[i]) for i in (9, 5)]


def test_the_pixels_of_a_spot_stand_where_the_detector_has_them(refined, result):
    data, model, z = box_images(result, 100)
    assert data.shape == (2 * HALF_BOX + 1, 2 * HALF_BOX + 1)
    assert np.isnan(data[0, 0]), "the corner was not used"
    x, y = refined.boxes.xy_px[100] - refined.boxes.bbox[100, [0, 2]]
    assert np.unravel_index(np.nanargmax(model), model.shape) == (int(y), int(x))
    assert np.nanmean(z**2) == pytest.approx(refined.boxes.chi2_per_pixel[100], rel=0.1)


def test_the_picture_has_nine_spots_with_hkl_and_cc(result):
    figure = spots_figure(result)
    assert len(figure.images) == 27
    titles = [text.get_text() for text in figure.texts if text.get_text().startswith("hkl")]
    assert len(titles) == 9
    assert all("CC" in title for title in titles)


def test_equal_photons_have_one_colour_in_data_and_model_and_z_of_zero_is_nearly_white(result):
    pixels = replace(result.pixels, data=result.pixels.background + result.pixels.bragg)
    data, model, z = frames(replace(result, pixels=pixels), 100)
    assert (data == model).all()
    assert z[1:, 1:].min() > 0.95
    _, _, brighter = frames(replace(result, pixels=replace(pixels, data=pixels.data + 1e4)), 100)
    _, _, darker = frames(replace(result, pixels=replace(pixels, data=pixels.data - 1e4)), 100)
    red, blue = 0, 2
    assert (brighter[1:, 1:, red] > brighter[1:, 1:, blue]).all(), "orange where the data are brighter"
    assert (darker[1:, 1:, red] < darker[1:, 1:, blue]).all(), "purple where they are darker"


def test_a_still_with_one_spot_or_none_has_a_picture_too(result, tmp_path):
    for number in (1, 0):
        few = replace(
            result,
            boxes=replace(result.boxes, pixels=np.where(np.arange(len(result.boxes)) < number, 10, 0)),
        )
        write_picture(few, "spots.png", tmp_path)
        assert image.imread(tmp_path / "spots.png").shape[2] == 4
