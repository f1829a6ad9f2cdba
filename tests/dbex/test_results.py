"""What dbex.refine writes is read back by DIALS, by h5py and by anybody's JSON, and appears whole or not at all."""

import copy
import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from dials.array_family import flex
from dials.util.filter_reflections import FilteringReductionMethods, PrfIntensityReducer, SumIntensityReducer
from dxtbx.model import Crystal
from dxtbx.model.experiment_list import ExperimentList

from dbex.errors import BadInput
from dbex.io.atomic import staged
from dbex.io.record import Run, record, write_record
from dbex.io.results import (
    other_lattices_esds,
    plain,
    refined_experiment,
    reflection_table,
    write_composite,
    write_results,
)
from dbex.refinement.settings import Settings
from dbex.still import BoxTable, PixelTable
from tests.dbex.refined_example import PREDICTED_ONLY, ROOT, example_refined, renamed
from tests.tolerances import REORDERED_SUM, ROUND_TRIP_ABSOLUTE, SPOT_Z_FOUR_SIGMA

FLAGS = flex.reflection_table.flags
RUN = Run("dbex.refine still.expt", "d_min = 2", Settings(d_min=2.0), "2026-01-01T00:00:00+00:00")


@pytest.fixture(scope="module")
def refined():
    return example_refined()


@pytest.fixture(scope="module")
def folder(refined, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_results(refined, folder)
    return folder


def read_experiments(folder, check_format=False):
    return ExperimentList.from_file(str(folder / "refined.expt"), check_format=check_format)


def test_the_models_that_moved_are_those_that_dials_reads(refined, folder):
    (experiment,) = read_experiments(folder)
    panel, crystal = experiment.detector[0], experiment.crystal
    assert crystal.get_unit_cell().parameters()[0] == pytest.approx(refined.crystal.cell_a, abs=ROUND_TRIP_ABSOLUTE)
    assert crystal.get_domain_size_ang() == pytest.approx(612.0)
    assert crystal.get_half_mosaicity_deg() == pytest.approx(0.031)
    assert abs(panel.get_directed_distance()) == pytest.approx(231.4, abs=ROUND_TRIP_ABSOLUTE)
    assert experiment.beam.get_wavelength() == pytest.approx(0.9770)
    assert experiment.identifier == refined.still.experiment.identifier


def test_the_misset_is_part_of_the_orientation_that_dials_reads(refined, folder):
    (experiment,) = read_experiments(folder)
    before = np.array(refined.still.experiment.crystal.get_U()).reshape(3, 3)
    after = np.array(experiment.crystal.get_U()).reshape(3, 3)
    angle = np.degrees(np.arccos((np.trace(after @ before.T) - 1) / 2))
    assert angle == pytest.approx(0.2, abs=ROUND_TRIP_ABSOLUTE)


def test_the_experiment_that_was_read_is_not_changed_by_writing(refined, folder):
    (shipped,) = ExperimentList.from_file(str(ROOT / "refGeom.expt"), check_format=False)
    assert refined.still.experiment.detector == shipped.detector
    assert refined.still.experiment.crystal == shipped.crystal


def test_a_crystal_that_had_no_block_size_carries_the_refined_one(refined):
    plain_crystal = copy.copy(refined.still.experiment)
    plain_crystal.crystal = Crystal(refined.still.experiment.crystal)
    experiment = refined_experiment(replace(refined, still=replace(refined.still, experiment=plain_crystal)))
    assert experiment.crystal.get_domain_size_ang() == pytest.approx(612.0)
    assert experiment.crystal.get_A() == refined_experiment(refined).crystal.get_A()


def test_the_image_is_found_from_the_new_place(folder):
    (experiment,) = read_experiments(folder, check_format=True)
    assert experiment.imageset.get_raw_data(0)[0].all() == (2527, 2463)


def test_every_box_is_a_row_and_observed_columns_are_kept(refined, folder):
    table = flex.reflection_table.from_file(str(folder / "refined.refl"))
    shipped = refined.still.table
    known = len(shipped)
    assert len(table) == known + PREDICTED_ONLY
    for name in ("xyzobs.px.value", "xyzobs.mm.variance"):
        assert list(table[name])[:known] == list(shipped[name])
    assert list(table["xyzobs.px.value"])[known:] == [(0.0, 0.0, 0.0)] * PREDICTED_ONLY
    assert list(table["miller_index"])[:known] == list(shipped["miller_index"])
    assert np.array(table["xyzcal.px"])[:, :2] == pytest.approx(refined.boxes.xy_px)
    assert dict(zip(table.experiment_identifiers().keys(), table.experiment_identifiers().values(), strict=True)) == {
        0: refined.still.experiment.identifier
    }


def reduced_by_dials(table, way):
    """Intensities and variances as DIALS takes them for export and scaling, by Miller index."""
    kept = flex.reflection_table.from_msgpack(table.as_msgpack())
    kept = FilteringReductionMethods.filter_unassigned_reflections(kept)
    kept = way.reduce_on_intensities(kept)
    kept = way.apply_scaling_factors(kept)
    name = f"intensity.{way.intensities[0]}"
    return dict(
        zip(kept["miller_index"], zip(kept[f"{name}.value"], kept[f"{name}.variance"], strict=True), strict=True)
    )


@pytest.mark.parametrize(
    ("way", "value", "variance"),
    [
        (PrfIntensityReducer, "intensity", "variance"),
        (SumIntensityReducer, "summed_intensity", "summed_variance"),
    ],
)
def test_dials_scales_full_intensities_as_they_are(refined, way, value, variance):
    """No second correction of solid angle and polarisation; sums over their partiality are on the same scale."""
    boxes = refined.boxes
    found = reduced_by_dials(reflection_table(refined), way)
    known = np.isfinite(getattr(boxes, value))
    assert len(found) == known.sum() == len(boxes) - 1
    for i in np.flatnonzero(known):
        expected = (getattr(boxes, value)[i], getattr(boxes, variance)[i])
        assert found[tuple(map(int, boxes.hkl[i]))] == pytest.approx(expected, rel=REORDERED_SUM)


def test_reflections_far_from_the_ewald_sphere_are_not_for_scaling(refined):
    far = np.where(np.arange(len(refined.boxes)) % 2, 2.1, -1.9)
    table = reflection_table(replace(refined, boxes=replace(refined.boxes, excitation=far)))
    assert list(table.get_flags(FLAGS.bad_for_scaling, all=False)) == (np.abs(far) > 2).tolist()


def test_what_dials_made_from_the_models_before_is_not_passed_on_as_if_it_were_true(refined, folder):
    table = flex.reflection_table.from_file(str(folder / "refined.refl"))
    stale = {"delpsical2", "delpsical.weights", "entering"}
    assert stale <= set(refined.still.table.keys())
    assert not stale & set(table.keys())
    assert list(table["delpsical.rad"]) == pytest.approx(list(refined.boxes.delpsi_rad))


def test_a_shuffled_table_keeps_each_row_with_its_reflection(refined):
    order = np.random.default_rng(0).permutation(len(refined.boxes))
    boxes = BoxTable(**{f.name: getattr(refined.boxes, f.name)[order] for f in fields(BoxTable)})
    table = reflection_table(replace(refined, boxes=boxes))
    observed = np.array(table["xyzobs.px.value"])[boxes.row >= 0, :2]
    assert observed == pytest.approx(refined.still.observed.xy_px[boxes.row[boxes.row >= 0]])


def test_diffracted_rays_are_as_long_as_the_inverse_wavelength(folder):
    table = flex.reflection_table.from_file(str(folder / "refined.refl"))
    assert np.linalg.norm(np.array(table["s1"]), axis=1) == pytest.approx(1 / 0.9770)


def test_the_residual_of_a_spot_is_standard_normal_where_the_model_is_true(refined):
    z = np.array(reflection_table(refined)["dbex.z"])
    assert (z**2).mean() == pytest.approx(1, abs=SPOT_Z_FOUR_SIGMA)
    box = refined.pixels.box == 7
    used = box & refined.pixels.used
    residual = (refined.pixels.data - refined.pixels.background - refined.pixels.bragg)[used].sum()
    assert z[7] == pytest.approx(residual / np.sqrt(refined.pixels.variance[used].sum()))


def test_flags_say_what_was_read_used_and_integrated(refined):
    table = reflection_table(refined)
    indexed, used, integrated = (
        np.array(table.get_flags(flag)) for flag in (FLAGS.indexed, FLAGS.used_in_refinement, FLAGS.integrated_prf)
    )
    assert np.array(table.get_flags(FLAGS.predicted)).all()
    assert indexed.tolist() == (refined.boxes.row >= 0).tolist()
    assert np.flatnonzero(~used).tolist() == [1], "the box without weight"
    assert np.flatnonzero(~integrated).tolist() == [0], "the box whose intensity is NaN"


def test_several_stills_in_one_file_keep_their_ids_and_identifiers(refined, tmp_path):
    folders = []
    for name, identifier in (("a", "first"), ("b", "second"), ("c", "")):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        write_results(renamed(refined, name, identifier), folders[-1])
    write_composite(folders, tmp_path)
    experiments = read_experiments(tmp_path)
    table = flex.reflection_table.from_file(str(tmp_path / "refined.refl"))
    assert list(experiments.identifiers()) == ["first", "second", ""]
    for column in ("id", "imageset_id"):
        assert [list(table[column]).count(i) for i in range(3)] == [len(refined.boxes)] * 3
    names = table.experiment_identifiers()
    assert dict(zip(names.keys(), names.values(), strict=True)) == {0: "first", 1: "second"}


def test_an_error_of_every_full_intensity_is_added_to_its_own(refined, tmp_path):
    write_results(refined, tmp_path)
    write_composite([tmp_path], tmp_path, "joint", relative_error=0.1)
    before, after = (flex.reflection_table.from_file(str(tmp_path / f"{n}.refl")) for n in ("refined", "joint"))
    value, own, all_ = (
        np.array(t[f"intensity.prf.{n}"]) for t, n in ((before, "value"), (before, "variance"), (after, "variance"))
    )
    known = np.isfinite(value)
    assert known.any()
    assert all_[known] == pytest.approx((own + (0.1 * value) ** 2)[known])


def test_a_still_that_fails_does_not_hide_which_experiment_the_next_ones_were(refined, tmp_path):
    """The first and the last of three, without identifiers: only the column tells that the last one was number 2."""
    folders = []
    for index in (0, 2):
        folders.append(tmp_path / str(index))
        folders[-1].mkdir()
        one = renamed(refined, str(index), "")
        write_results(replace(one, still=replace(one.still, index=index)), folders[-1])
    write_composite(folders, tmp_path)
    table = flex.reflection_table.from_file(str(tmp_path / "refined.refl"))
    assert set(zip(table["id"], table["dbex.input_id"], strict=True)) == {(0, 0), (1, 2)}


def test_any_figure_of_merit_can_be_computed_again_from_the_pixels(refined, folder):
    with h5py.File(folder / "pixels.h5") as stream:
        pixels = {name: stream["pixels"][name][()] for name in stream["pixels"]}
        boxes = {name: stream["boxes"][name][()] for name in stream["boxes"]}
        unit = stream["pixels/variance"].attrs["unit"], stream["boxes/xy_mm"].attrs["unit"]
        compression = stream["pixels/data"].compression
    z = (pixels["data"] - pixels["background"] - pixels["bragg"]) / np.sqrt(pixels["variance"])
    assert (z[pixels["used"] == 1] ** 2).mean() == refined.figures["chi2_per_pixel"]
    assert sorted(pixels) == sorted(f.name for f in fields(PixelTable))
    assert sorted(boxes) == sorted(f.name for f in fields(BoxTable))
    assert (boxes["hkl"] == refined.boxes.hkl).all()
    assert unit == ("photons^2", "mm")
    assert compression == "gzip"


def test_the_record_is_strict_json_with_esds_versions_and_hashes(refined, tmp_path):
    write_record(record(refined, RUN), tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((tmp_path / "dbex.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["estimates"][1]["after"] == pytest.approx(refined.crystal.cell_a)
    assert content["estimates"][3]["esd"] is None, "NaN is null"
    assert content["figures"]["median_cc"] is None
    assert content["settings"]["d_min"] == 2.0
    assert content["left_out"] == {"reflections without a box": 2, "boxes at the edge": 3, "hot pixels": 0}
    assert len(content["inputs"]["experiments"]["sha256"]) == 64
    assert content["inputs"]["image"]["sha256"] is None
    assert set(content["versions"]) >= {"dbex", "torch", "numpy", "dxtbx", "dials", "python"}
    assert content["models"]["after"]["beam"]["wavelength_A"] == 0.9770
    assert content["files"] == ["dbex.json"]
    assert content["peak_memory_MB"] > 10


def test_the_covariance_is_in_the_units_of_the_esds_whatever_the_solver_used(refined):
    estimates = tuple(replace(estimate, esd=0.1 * (i + 1)) for i, estimate in enumerate(refined.estimates))
    solver = np.eye(len(estimates)) + 0.5
    covariance = record(replace(refined, estimates=estimates, covariance=solver), RUN)["covariance"]
    assert np.sqrt(np.diag(covariance)) == pytest.approx([estimate.esd for estimate in estimates])
    assert covariance[0, 1] == pytest.approx(0.1 * 0.2 / 3), "a correlation of a third"


def test_numbers_that_are_none_become_null_wherever_they_stand():
    found = plain({"a": np.array([1.0, np.nan]), "b": (np.float64(np.inf), np.int64(3)), "c": {"d": "text"}})
    assert found == {"a": [1.0, None], "b": [None, 3], "c": {"d": "text"}}


def test_a_new_folder_appears_with_everything_in_it(tmp_path):
    with staged(tmp_path / "deep" / "out") as staging:
        (staging / "dbex.json").write_text("{}")
        (staging / "part").mkdir()
        (staging / "part" / "file").write_text("x")
        assert not (tmp_path / "deep").exists()
    assert sorted(path.name for path in (tmp_path / "deep" / "out").rglob("*")) == ["dbex.json", "file", "part"]
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_what_stops_half_way_leaves_the_earlier_result_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    with staged(out) as staging:
        (staging / "dbex.json").write_text('{"files": ["dbex.json"]}')

    def interrupted():
        with staged(out) as staging:
            (staging / "dbex.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "dbex.json").read_text() == '{"files": ["dbex.json"]}'


def test_a_second_run_replaces_its_predecessor_and_leaves_other_files_alone(tmp_path):
    out = tmp_path / "out"
    with staged(out) as staging:
        (staging / "0001_a").mkdir()
        (staging / "0001_a" / "old").write_text("old")
        write_record({}, staging)
    (out / "notes.txt").write_text("mine")
    with staged(out) as staging:
        (staging / "new").write_text("new")
        write_record({}, staging)
    assert sorted(path.name for path in out.iterdir()) == ["dbex.json", "new", "notes.txt"]


def test_a_folder_caught_while_it_is_replaced_does_not_look_finished(tmp_path, monkeypatch):
    def run(content):
        with staged(tmp_path / "out") as staging:
            (staging / content).write_text(content)
            write_record({}, staging)

    def full(*_):
        raise OSError(28, "No space left on device")

    run("old")
    monkeypatch.setattr("dbex.io.atomic.remove", full)
    with pytest.raises(OSError, match="No space"):
        run("new")
    assert not (tmp_path / "out" / "dbex.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_incomplete_set_of_results_is_not_published(tmp_path):
    with pytest.raises(ValueError, match=r"dbex\.json"), staged(tmp_path / "out") as staging:
        (staging / "refined.expt").write_text("{}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(BadInput, match="is a file"), staged(tmp_path / "out"):
        pass


def test_a_file_above_the_folder_is_refused_before_anything_is_done(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(BadInput, match=r"deeper lies in .*out, which is a file"), staged(tmp_path / "out" / "deeper"):
        pass


def test_a_place_where_nobody_can_write_is_named_as_the_user_named_it():
    with pytest.raises(BadInput, match=r"^output\.directory=/proc/out cannot be made in /proc \("), staged("/proc/out"):
        pass


def test_a_file_that_cannot_be_written_is_named_where_it_would_have_been(tmp_path):
    with pytest.raises(FileNotFoundError) as complaint, staged(tmp_path / "out") as staging:
        (staging / "absent" / "file").write_text("")
    assert complaint.value.filename == str(tmp_path / "out" / "absent" / "file")


WRITER = """
import sys, time
from dbex.io.atomic import staged
with staged(sys.argv[1]) as staging:
    (staging / "refined.expt").write_text("{}")
    print(staging, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing to `out`, and its unfinished folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", WRITER, str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout is not None
        yield child, Path(child.stdout.readline().strip())
        child.kill()


def test_a_kill_in_the_middle_of_writing_leaves_nothing_that_looks_finished(writer, tmp_path):
    child, unfinished = writer
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == [unfinished]
    assert unfinished.name.startswith(".out.unfinished-")


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_of_one_that_lives(writer, tmp_path):
    child, unfinished = writer

    def run():
        with staged(tmp_path / "out") as staging:
            (staging / "dbex.json").write_text("{}")

    run()
    assert (unfinished / "refined.expt").exists()
    child.kill()
    child.wait()
    run()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_light_of_another_lattice_is_told_in_esds_of_the_intensity():
    """Light of twice the spot's own, in its shape, would have raised the intensity by twice its signal over noise."""
    pixels = example_refined().pixels
    brighter, boxes = pixels.box == 60, int(pixels.box.max()) + 1
    told = other_lattices_esds(replace(pixels, other_lattices=np.where(brighter, 2 * pixels.bragg, 0.0)), boxes)
    mine = brighter & pixels.used
    assert told[60] == pytest.approx(
        2 * np.sqrt(np.sum(pixels.bragg[mine] ** 2 / pixels.variance[mine])), rel=REORDERED_SUM
    )
    assert not np.delete(told, 60).any()
