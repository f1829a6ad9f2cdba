"""Acceptance test 050: the pictures of a still, compared with stored ones that were looked at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from dbex.io.finished import result_of
from dbex.io.record import Run, record
from dbex.refinement.settings import Settings
from dbex.report.figures import PICTURES, spots_figure, write_picture, z_histogram_figure
from dbex.scoring import resolution_A, z_scores
from tests.dbex.refined_example import example_refined
from tests.reports import acceptance_report, artifact_folder
from tests.tolerances import PICTURE_BLOCK, PICTURE_DIFFERENCE, Z_SIGMA

TEST = "DB-AT-050"
STORED = Path(__file__).parent / "pictures"
RUN = Run("dbex.refine still.expt", "", Settings(), "2026-01-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def result():
    """A still whose photons were drawn from its model."""
    refined = example_refined()
    return result_of(refined, record(refined, RUN))


def blocks(file):
    """The means of red, green and blue over blocks of the picture, 0 to 1."""
    picture = image.imread(file)[..., :3]
    high, wide = (size // PICTURE_BLOCK * PICTURE_BLOCK for size in picture.shape[:2])
    shape = (high // PICTURE_BLOCK, PICTURE_BLOCK, wide // PICTURE_BLOCK, PICTURE_BLOCK, 3)
    return picture[:high, :wide].reshape(shape).mean((1, 3))


def difference(file, stored):
    """The rms difference of two pictures as the eye sees them, a few pixels away; 1 where their sizes differ."""
    one, other = blocks(file), blocks(stored)
    return float(np.sqrt(((one - other) ** 2).mean())) if one.shape == other.shape else 1.0


class TestDB_AT_050_Pictures:
    """Triptych, histogram of Z, and residuals against 1/d²."""

    @pytest.mark.parametrize("name", PICTURES)
    def test_a_picture_is_the_one_that_was_looked_at(self, result, name):
        folder = artifact_folder(TEST)
        folder.mkdir(parents=True, exist_ok=True)
        limits = {"rms difference of blocks": PICTURE_DIFFERENCE, "edge of a block (px)": PICTURE_BLOCK}
        with acceptance_report(TEST, Path(name).stem, tolerances=limits, inputs=[STORED / name]) as values:
            file = write_picture(result, name, folder)
            values["picture"] = file.name
            values["difference"] = difference(file, STORED / name)
            assert values["difference"] < PICTURE_DIFFERENCE

    def test_spots_are_triptychs_on_shared_scales_with_hkl_and_cc(self, result):
        with acceptance_report(TEST, "triptych", tolerances={}) as values:
            figure = spots_figure(result)
            titles = [text.get_text() for text in figure.texts if text.get_text().startswith("hkl")]
            values["spots"], values["frames"], values["titles"] = len(titles), len(figure.images), titles
            assert values["frames"] == 3 * values["spots"] >= 27
            assert all("CC" in title for title in titles)

    def test_photons_drawn_from_the_model_have_a_normal_z_at_every_resolution(self, result):
        with acceptance_report(TEST, "z", tolerances={"Z_SIGMA": Z_SIGMA}) as values:
            z = z_scores(result.pixels)[result.pixels.used]
            values["mean"], values["sigma"] = float(z.mean()), float(z.std())
            inverse_square = (1 / resolution_A(result.boxes, result.beam_direction) ** 2)[
                result.pixels.box[result.pixels.used]
            ]
            halves = [inverse_square < np.median(inverse_square), inverse_square >= np.median(inverse_square)]
            values["sigma of the halves by 1/d2"] = [float(z[half].std()) for half in halves]
            assert abs(values["mean"]) < Z_SIGMA
            assert all(abs(s - 1) < Z_SIGMA for s in (values["sigma"], *values["sigma of the halves by 1/d2"]))
            bars = z_histogram_figure(result).axes[0].patches
            area = sum(bar.get_width() * bar.get_height() for bar in bars)
            assert area == pytest.approx(1.0), "a density"


FAULTS = {
    "residuals with the wrong sign": lambda p: replace(p, data=2 * (p.background + p.bragg) - p.data),
    "a variance four times too large": lambda p: replace(p, variance=4 * p.variance),
    "a model one pixel aside": lambda p: replace(p, bragg=np.roll(p.bragg, 1)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_picture_is_further_from_the_stored_one_than_the_tolerance(result, fault, tmp_path):
    wrong = replace(result, pixels=FAULTS[fault](result.pixels))
    found = {name: difference(write_picture(wrong, name, tmp_path), STORED / name) for name in PICTURES}
    assert max(found.values()) > 2 * PICTURE_DIFFERENCE, found
