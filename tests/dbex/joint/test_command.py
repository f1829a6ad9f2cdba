"""dbex.refine_joint from files to files."""

import json

import gemmi
import numpy as np
import pytest

from dbex.cli.refine_joint import COMMAND, HELP, main
from dbex.errors import BadInput
from tests.conftest import ROOT

FILES = [str(ROOT / "refGeom.refl"), str(ROOT / "scaled.mtz"), f"mask={ROOT / '747_mask.pkl'}"]
FAST = ["d_min=2.2", "refine.start=near", "refine.cell=still"]


@pytest.fixture(scope="session")
def twice(tmp_path_factory):
    """The shipped still, and the same still again, refined jointly."""
    pytest.importorskip("dials", reason="DIALS is not installed")
    from dials.array_family import flex
    from dxtbx.model.experiment_list import ExperimentList

    folder = tmp_path_factory.mktemp("twice")
    once = ExperimentList.from_file(str(ROOT / "refGeom.expt"), check_format=False)
    table, both = flex.reflection_table(), ExperimentList()
    for index in range(2):
        again = ExperimentList.from_file(str(ROOT / "refGeom.expt"), check_format=False)[0]
        again.identifier = ""
        both.append(again)
        part = flex.reflection_table.from_file(FILES[0])
        for known in list(part.experiment_identifiers().keys()):
            del part.experiment_identifiers()[known]
        part["id"] = flex.int(len(part), index)
        table.extend(part)
    both.as_file(str(folder / "twice.expt"))
    table.as_file(str(folder / "twice.refl"))
    assert len(once) == 1
    files = [str(folder / "twice.expt"), str(folder / "twice.refl"), *FILES[1:]]
    assert main([*files, *FAST, f"output.directory={folder / 'joint'}"]) == 0
    return folder / "joint"


def content(folder):
    return json.loads((folder / "joint.json").read_text(encoding="utf-8"))


def test_the_same_still_twice_agrees_with_itself(twice):
    found = content(twice)
    one, other = found["stills"]
    assert found["converged"]
    assert one["weight"] == other["weight"] == 1
    assert max(one["pull"], other["pull"]) < 0.1
    for a, b in zip(one["estimates"], other["estimates"], strict=True):
        assert a["after"] == pytest.approx(b["after"], abs=0.05 * a["esd"])


def test_the_page_tells_what_is_shared(twice):
    text = (twice / "dbex.html").read_text(encoding="utf-8")
    assert "2 stills took part; 0 of them" in text
    assert all(f"<td>{estimate['name']}</td>" in text for estimate in content(twice)["shared"])
    assert "dbex.html" in json.loads((twice / "dbex.json").read_text(encoding="utf-8"))["files"]


def test_both_stills_and_the_detector_can_be_read_by_dxtbx(twice):
    from dials.array_family import flex
    from dxtbx.model.experiment_list import ExperimentList

    stills = ExperimentList.from_file(str(twice / "joint.expt"), check_format=False)
    bench = ExperimentList.from_file(str(twice / "detector.expt"), check_format=False)
    distance = next(e["after"] for e in content(twice)["shared"] if e["name"] == "distance")
    for still in [*stills, *bench]:
        assert still.detector[0].get_directed_distance() == pytest.approx(distance, abs=1e-9)
    table = flex.reflection_table.from_file(str(twice / "joint.refl"))
    assert sorted(set(table["id"])) == [0, 1]
    assert len(stills.crystals()) == 2


def test_merged_intensities_are_the_mean_of_the_observations(twice):
    observed, means = (gemmi.read_mtz_file(str(twice / f"{name}.mtz")) for name in ("unmerged", "merged"))
    assert [batch.number for batch in observed.batches] == [1, 2]
    rows = np.array(observed.array)
    column = {label: rows[:, i] for i, label in enumerate(observed.column_labels())}
    assert set(column["BATCH"]) == {1, 2}
    both = np.nan_to_num(np.array(means.column_with_label("N(+)"))) + np.nan_to_num(
        np.array(means.column_with_label("N(-)"))
    )
    assert both.sum() == len(rows)
    by_hkl = {}
    for h, k, l, value in zip(*(column[n] for n in ("H", "K", "L", "I")), strict=True):
        by_hkl.setdefault((h, k, l), []).append(value)
    expected = [np.mean(by_hkl[tuple(hkl)]) for hkl in means.make_miller_array().astype(float)]
    single = both == 2
    found = np.array(means.column_with_label("IMEAN"))
    assert found[single] == pytest.approx(np.array(expected)[single], rel=0.02, abs=np.median(np.abs(found)) * 0.02)


def test_observations_keep_the_indices_that_they_were_measured_with(twice):
    from dials.array_family import flex

    observed = gemmi.read_mtz_file(str(twice / "unmerged.mtz"))
    assert observed.switch_to_original_hkl()
    table = flex.reflection_table.from_file(str(twice / "joint.refl"))
    measured = np.isfinite(np.array(table["intensity.prf.value"]))
    expected = np.array(table["miller_index"]).reshape(-1, 3)[measured]
    assert {tuple(h) for h in observed.make_miller_array()} == {tuple(h) for h in expected}


def test_nothing_but_the_results_is_left(twice):
    names = {path.name for path in twice.iterdir()}
    assert names == {"joint.expt", "joint.refl", "detector.expt", "joint.json", "unmerged.mtz", "merged.mtz",
                     "dbex.html", "dbex.json", "dbex.log"}  # fmt: skip


def test_help_names_every_file(capsys):
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == HELP
    assert main(["--show-config"]) == 0
    assert "shot_beam" in capsys.readouterr().out


def test_a_missing_file_is_told_with_the_right_command():
    with pytest.raises(BadInput, match=f"{COMMAND} still.expt"):
        main([str(ROOT / "refGeom.expt")])


@pytest.mark.parametrize("choice", [["refine.beam=wavelength"], ["refine.shot_beam=wavelength", "refine.cell=still"]])
def test_a_wavelength_that_goes_with_the_cell_is_refused(choice):
    with pytest.raises(BadInput, match="scale together"):
        main([str(ROOT / "refGeom.expt"), *FILES, *choice])


def test_a_run_in_which_nothing_is_shared_is_refused(tmp_path):
    with pytest.raises(BadInput, match="nothing is shared"):
        main([str(ROOT / "refGeom.expt"), *FILES, "refine.detector=none", "refine.cell=still",
              f"output.directory={tmp_path / 'joint'}"])  # fmt: skip
    assert not (tmp_path / "joint").exists()
