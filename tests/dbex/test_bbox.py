"""DB-AT-020: boxes are (x0, x1, y0, y1, z0, z1), upper bounds exclusive, in the table's order, z carried through."""

import numpy as np
import pytest

from dbex.data_load import DataLoad
from dbex.errors import BadInput
from dbex.io import reflections
from dbex.refinement.inputs import prepare_refinement_inputs
from dbex.rois import LEAST_WIDTH_PX, PADDING_PX, box_pixels, padded_boxes
from tests.reports import acceptance_report

SHAPES = ((100, 80), (60, 90))  # (slow, fast)


def boxes(*rows, panels=None, **more):
    return padded_boxes(np.array(rows), np.array(panels or [0] * len(rows)), SHAPES, **more)


class TestDB_AT_020_Bbox:
    def test_db_at_020_boxes_of_the_shipped_still(self, loaded, inputs, shipped):
        with acceptance_report("DB-AT-020", "shipped", tolerances={}, inputs=[shipped.refl]) as values:
            values["boxes"], values["left_out"] = len(loaded.bbox), loaded.left_out
            table = reflections.bboxes(loaded.Refs)
            assert loaded.bbox.shape == (102, 4)
            np.testing.assert_array_equal(loaded.frames, table[:, 4:])
            assert (loaded.bbox[:, [0, 2]] <= table[:, [0, 2]]).all()
            assert (loaded.bbox[:, [1, 3]] >= table[:, [1, 3]]).all()
            assert (loaded.bbox[:, [1, 3]] - loaded.bbox[:, [0, 2]]).min() >= LEAST_WIDTH_PX
            assert [panel for panel, _ in inputs.panel_slices] == loaded.pids.tolist()
            assert [box for _, box in inputs.panel_slices] == [tuple(box) for box in loaded.bbox.tolist()]

    def test_db_at_020_upper_bounds_are_exclusive(self, loaded):
        with acceptance_report("DB-AT-020", "exclusive", tolerances={}) as values:
            values["pixels"] = inside = int((loaded.background_image >= 0).sum())
            counted = {
                (p, y, x)
                for p, (x0, x1, y0, y1) in zip(loaded.pids, loaded.bbox, strict=True)
                for y in range(y0, y1)
                for x in range(x0, x1)
            }
            assert inside == len(counted)

    def test_db_at_020_boxes_on_64_panels_keep_their_panel_and_order(self, thermolysin_files):
        still = DataLoad(thermolysin_files.args(gain=6.0))
        with acceptance_report("DB-AT-020", "panels", tolerances={}, inputs=[thermolysin_files.refl]) as values:
            values["panels with boxes"] = sorted(set(still.pids.tolist()))
            assert still.data.shape == still.background_image.shape == (64, 185, 194)
            np.testing.assert_array_equal(still.pids, still.Refs["panel"].as_numpy_array())
            assert len(set(still.pids.tolist())) > 10
            centres = still.Refs["xyzobs.px.value"].as_double().as_numpy_array().reshape(-1, 3)
            assert (still.background_image[still.pids, centres[:, 1].astype(int), centres[:, 0].astype(int)] >= 0).all()


class TestDB_AT_020_Refused:
    def test_db_at_020_boxes_at_an_edge_are_clipped_to_their_own_panel_and_counted(self):
        with acceptance_report("DB-AT-020", "clipped", tolerances={}) as values:
            found = boxes([-2, 3, 0, 4, 0, 1], [85, 89, 50, 58, 0, 1], [40, 44, 40, 44, 0, 1], panels=[0, 1, 0])
            values["left_out"] = found.left_out
            assert (found.bbox.min(), found.bbox[1, 1], found.bbox[1, 3]) == (0, 90, 60)
            assert found.left_out["boxes clipped at an edge"] == 2

    @pytest.mark.parametrize(
        ("name", "bad", "reason"),
        [
            ("no width", [40, 40, 30, 34, 0, 1], "boxes of no area"),
            ("no height", [40, 43, 34, 30, 0, 1], "boxes of no area"),
            ("beyond", [80, 84, 30, 34, 0, 1], "boxes off their panel"),
            ("before", [40, 43, -9, 0, 0, 1], "boxes off their panel"),
            ("twice", [10, 13, 10, 13, 0, 1], "repeated boxes"),
        ],
    )
    def test_db_at_020_boxes_that_hold_nothing_new_are_left_out_with_a_count(self, name, bad, reason):
        with acceptance_report("DB-AT-020", f"left_out_{name.replace(' ', '_')}", tolerances={}) as values:
            found = boxes([10, 13, 10, 13, 0, 1], bad, [50, 53, 50, 53, 0, 1])
            values["left_out"] = found.left_out
            assert found.left_out[reason] == 1
            assert found.row.tolist() == [0, 2]
            assert found.core[:, 0].tolist() == [10, 50]

    def test_db_at_020_the_same_box_on_two_panels_is_no_repetition(self):
        with acceptance_report("DB-AT-020", "two_panels", tolerances={}) as values:
            found = boxes([10, 13, 10, 13, 0, 1], [10, 13, 10, 13, 0, 1], panels=[0, 1])
            values["boxes"] = len(found)
            assert len(found) == 2

    @pytest.mark.parametrize(
        ("name", "rows", "panels", "said"),
        [
            ("panel", [[10, 13, 10, 13, 0, 1]] * 2, [0, 2], "panels 0 to 2 but the detector has 2"),
            (
                "nothing left",
                [[10, 10, 10, 13, 0, 1], [900, 903, 10, 13, 0, 1]],
                [0, 0],
                r"no box is left of 2 \(1 boxes of no area, 1 boxes off their panel",
            ),
        ],
    )
    def test_db_at_020_what_leaves_no_box_is_refused_with_the_counts(self, name, rows, panels, said):
        with acceptance_report("DB-AT-020", f"refused_{name.replace(' ', '_')}", tolerances={}) as values:
            with pytest.raises(BadInput, match=said) as refusal:
                boxes(*rows, panels=panels)
            values["message"] = str(refusal.value)

    @pytest.mark.parametrize("box", [(5, 5, 2, 4), (5, 91, 2, 4), (5, 9, 4, 2), (-1, 9, 2, 4), (5, 9, 2, 101)])
    def test_db_at_020_inputs_refuse_boxes_that_are_empty_or_reach_beyond_the_data(self, box, still):
        data, name, detector = np.zeros((1, 100, 90)), "_".join(map(str, box)), still.experiment.detector
        with acceptance_report("DB-AT-020", f"inputs_{name}", tolerances={}) as values:
            with pytest.raises(BadInput, match="is empty or reaches beyond") as refusal:
                prepare_refinement_inputs(data, data, data == 0, [box], [0], detector, sigma_readout=1.0)
            values["message"] = str(refusal.value)


def test_a_box_is_padded_to_a_stated_size():
    found = boxes([40, 43, 30, 34, 7, 9], [20, 60, 20, 24, 0, 1])
    assert found.bbox.tolist() == [[34, 49, 25, 40], [20 - PADDING_PX, 60 + PADDING_PX, 15, 30]]
    assert found.frames.tolist() == [[7, 9], [0, 1]]
    assert found.core.tolist() == [[40, 43, 30, 34], [20, 60, 20, 24]]


def test_pixels_of_boxes_are_all_of_them_once():
    bbox = np.array([[3, 6, 10, 12], [0, 1, 0, 5]])
    pixels = box_pixels(bbox)
    assert pixels.present.sum(axis=1).tolist() == [6, 5]
    first = set(zip(pixels.fast[0].tolist(), pixels.slow[0].tolist(), strict=True))
    assert first == {(x, y) for x in (3, 4, 5) for y in (10, 11)}
    assert pixels.slow[1][pixels.present[1]].tolist() == [0, 1, 2, 3, 4]
