"""dbex.refine as a person meets it: parameters, help, complaints, progress, exit status, what is left on the disk."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from importlib import import_module

import h5py
import numpy as np
import pytest
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList

from dbex.cli import refine as command
from dbex.cli.console import exit_status
from dbex.cli.parameters import fetched, interpret, joint_scope, settings_of
from dbex.errors import BadInput
from dbex.refinement.settings import BEAM, CRYSTAL_CHOICES, DETECTOR, Settings
from dbex.still import Iteration
from tests.dbex.refined_example import ROOT, example_refined, example_still, renamed
from tests.tolerances import HELP_SECONDS

FILES = [str(ROOT / name) for name in ("refGeom.expt", "refGeom.refl", "scaled.mtz")]
MASK = f"mask={ROOT / '747_mask.pkl'}"


def run(*arguments, cwd, tail=""):
    """The command in a process of its own, as a shell starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = shlex.join([sys.executable, "-m", "dbex.cli.refine", *arguments])
    return subprocess.run(
        f"{words} {tail}", shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def settings(*arguments):
    return settings_of(interpret([*FILES, *arguments])[0])


def test_the_defaults_of_the_parameters_are_those_of_the_settings():
    assert settings() == Settings()


def test_names_are_joined_by_commas_and_none_holds_a_whole_group():
    assert settings("refine.detector=distance,shift").detector == ("distance", "shift")
    assert settings("refine.detector=distance+tilt").detector == ("distance", "tilt")
    assert settings("refine.beam=Wavelength, bandwidth").beam == ("wavelength", "bandwidth")
    assert settings("refine.crystal=none", "refine.detector=distance").crystal == ()
    assert settings("refine.crystal=orientation").crystal == ("orientation",)


@pytest.mark.parametrize(("group", "names"), [("crystal", CRYSTAL_CHOICES), ("detector", DETECTOR), ("beam", BEAM)])
def test_every_group_that_can_move_can_be_asked_for(group, names):
    assert getattr(settings(f"refine.{group}={','.join(names)}"), group) == names


def test_a_spread_of_the_cell_and_a_bandwidth_are_not_both_refined_on_a_still():
    with pytest.raises(BadInput, match=r"cell_spread and refine\.beam=bandwidth are both free: on one still"):
        settings("refine.crystal=orientation,cell_spread", "refine.beam=bandwidth")
    with pytest.raises(BadInput, match=r"refine\.terms holds cell_spread and bandwidth: on one still"):
        settings("refine.terms=cell_spread,bandwidth")
    assert settings("refine.terms=cell_spread,divergence").terms == ("divergence", "cell_spread")


def test_files_are_recognised_by_their_extensions_and_modified_parameters_are_echoed():
    parameters, modified = interpret([FILES[2], MASK, FILES[0], "d_min=2.5", FILES[1], "output.directory=a b"])
    assert parameters.input.experiments == FILES[0]
    assert parameters.input.structure_factors == FILES[2]
    assert parameters.d_min == 2.5
    assert parameters.output.directory == "a b"
    assert "d_min = 2.5" in modified
    assert 'directory = "a b"' in modified
    assert "gain" not in modified


def test_a_key_may_leave_out_what_is_clear_without():
    assert settings("detector=shift", "max_iterations=7") == Settings(detector=("shift",), max_iterations=7)


def test_parameters_are_read_from_a_phil_file_too(tmp_path):
    phil = tmp_path / "mine.phil"
    phil.write_text("refine { detector = *distance shift *tilt\n beam = bandwidth\n}\nd_min = 3\n")
    assert settings(str(phil)) == Settings(detector=("distance", "tilt"), beam=("bandwidth",), d_min=3.0)
    phil.write_text("refine.detektor = shift\n")
    with pytest.raises(BadInput, match=r"unknown parameter refine\.detektor: did you mean refine\.detector"):
        settings(str(phil))
    phil.write_text("refine {\n")
    with pytest.raises(BadInput, match="is no phil file"):
        settings(str(phil))


COMPLAINTS = {
    "refine.detektor=shift": "unknown parameter refine.detektor: did you mean refine.detector?",
    "sigma_redout=3": "unknown parameter sigma_redout: did you mean sigma_readout?",
    "directry=x": "unknown parameter directry: did you mean output.directory?",
    "refine.detector=dist": "refine.detector has no choice 'dist': did you mean 'distance'? (any of distance, shift",
    "refine.detector=none,shift": "refine.detector has no choice 'none'",
    "refine.start=far": "refine.start has no choice 'far': did you mean 'near'?",
    "refine.start=none": "refine.start is 'none': expected one of auto, wide, near",
    "gain=0": "gain is '0': expected a number above 0",
    "gain=nan": "gain is 'nan': expected a number above 0",
    "sigma_readout=-3": "sigma_readout is '-3': expected a number above 0",
    "sigma_readout=inf": "sigma_readout is 'inf': expected a number above 0",
    "d_min=two": "d_min is 'two': expected a number above 0",
    "refine.max_iterations=2.5": "refine.max_iterations is '2.5': expected a whole number of at least 1",
    "refine.model_error=-0.1": "refine.model_error is '-0.1': expected a number of at least 0",
    "threads=None": "threads is 'None': expected a whole number of at least 1",
    "output.html=pages/x.html": "output.html=pages/x.html: expected a name that ends in .html",
    "output.html=dbex.json": "output.html=dbex.json: expected a name that ends in .html",
    "output.directory=None": "output.directory is None: expected the name of a folder",
    "gain=": "gain= has no value: expected gain=value",
    "mask=absent.pkl": "absent.pkl: no such file",
    f"mask={ROOT}": "is a directory, not a file",
    "747_mask.pkl": "747_mask.pkl is no .expt, .refl, .mtz or .phil file and no key=value: give it as mask=",
    "image.cbf": "image.cbf is no .expt, .refl, .mtz or .phil file and no key=value",
    "--fast": "unknown option --fast",
    "other.refl": "input.reflections is given twice",
}


@pytest.mark.parametrize("argument", COMPLAINTS)
def test_a_wrong_argument_gets_a_sentence_that_says_what_to_do(argument):
    with pytest.raises(BadInput) as complaint:
        settings(argument)
    assert COMPLAINTS[argument] in str(complaint.value)
    assert "\n" not in str(complaint.value)


@pytest.mark.parametrize("missing", FILES)
def test_each_of_the_three_files_is_asked_for(missing):
    with pytest.raises(BadInput, match=r"no \.(expt|refl|mtz) file is given"):
        interpret([name for name in FILES if name != missing])


def test_every_parameter_is_shown_with_its_default_and_its_meaning(tmp_path):
    shown = run("-c", cwd=tmp_path).stdout
    for line in ("mask = None", "threads = 1", "detector = distance shift tilt", "start = *auto wide near",
                 "directory = refined"):  # fmt: skip
        assert line in shown
    assert shown.count(".help") == len(re.findall(r"^ *\w+ = ", shown, re.M)) + 2, "every parameter and two scopes"
    assert ".help" not in run("-c", "-a0", cwd=tmp_path).stdout
    assert ".type" in run("-c", "-a", "2", cwd=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["refine", "refine_many", "refine_joint", "look", "report"])
def test_every_command_shows_its_parameters_with_as_much_explanation_as_is_asked_for(command, capsys):
    main_of = import_module(f"dbex.cli.{command}").main

    def shown(*words):
        assert main_of(["-c", *words]) == 0
        return capsys.readouterr().out

    assert ".help" in shown()
    assert ".type" not in shown()
    assert ".help" not in shown("-a0")
    assert ".type" in shown("--attributes-level=2")


def test_help_and_version_come_at_once(tmp_path):
    began = time.perf_counter()
    shown = run("-h", cwd=tmp_path)
    assert time.perf_counter() - began < HELP_SECONDS
    assert shown.returncode == 0
    assert "usage: dbex.refine still.expt" in shown.stdout
    assert run("--version", cwd=tmp_path).stdout.startswith("dbex.refine 0.")


def test_bad_input_is_one_sentence_on_standard_error_and_nothing_is_written(tmp_path):
    for arguments in ((), ("refine.detektor=1", *FILES), (*FILES, "mask=absent.pkl"), ("absent.expt", *FILES[1:])):
        ended = run(*arguments, cwd=tmp_path)
        assert ended.returncode == 1
        assert ended.stdout == ""
        assert ended.stderr.startswith("dbex.refine: ")
        assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    ended = run("-c", cwd=tmp_path, tail="| head -1")
    assert ended.stdout.startswith("mask")
    assert ended.stderr == ""


def test_each_kind_of_end_has_its_exit_status(capsys):
    def ends(error):
        def work():
            raise error

        return exit_status("dbex.refine", work)

    assert ends(BadInput("two\nlines")) == 1
    assert ends(FileNotFoundError(2, "No such file", "image.cbf")) == 1
    assert ends(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.splitlines() == [
        "dbex.refine: two lines",
        "dbex.refine: image.cbf: No such file",
        "dbex.refine: interrupted, nothing was written",
    ]
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


STEPS = (Iteration("near", 1, 1.8, 100.0, 1e-3, 4.2, True), Iteration("near", 2, 1.01, 60.0, 1e-4, 0.1, False))


@pytest.fixture(scope="module")
def refined():
    return example_refined(example_still())


@pytest.fixture
def stills(monkeypatch, refined):
    """Lets the command read and refine named stills in no time: a name that starts with "bad" cannot be read, one
    that starts with "lost" cannot be refined, an exception is raised."""

    def prepare(*names):
        def read(*_, **__):
            return Reader(list(names), refined)

        def refine(still, settings, progress=None):
            for step in STEPS:
                progress(step)
            if still.name.startswith("lost"):
                raise BadInput("no indexed spot on a trusted pixel: expected at least one")
            return renamed(refined, still.name, f"id-{still.name}")

        monkeypatch.setattr("dbex.data_load.read_stills", read)
        monkeypatch.setattr("dbex.refinement.refine.refine_still", refine)

    return prepare


class Reader:
    def __init__(self, names, refined):
        self.names, self.refined = names, refined
        self.given, self.alive = [], []

    def __len__(self):
        return len(self.names)

    def images(self):
        return [(index,) for index in range(len(self.names))]

    def read_lattices(self, indices):
        (index,) = indices
        name = self.names[index]
        if isinstance(name, BaseException):
            raise name
        if name.startswith("bad"):
            return [BadInput(f"{name}: the image is absent")]
        still = renamed(self.refined, name, f"id-{name}").still
        self.alive.append([reference() is not None for reference in self.given])
        self.given.append(weakref.ref(still))
        return [still]


def refine(out, *arguments):
    return exit_status("dbex.refine", lambda: command.main([*FILES, MASK, f"output.directory={out}", *arguments]))


RESULTS = ["dbex.html", "dbex.json", "dbex.log", "pixels.h5", "refined.expt", "refined.refl", "spots.png"]


def test_one_still_ends_with_five_lines_and_seven_files(stills, tmp_path, capsys):
    stills("lys 1")
    assert refine(tmp_path / "out", "refine.detector=distance") == 0
    told = capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == RESULTS
    assert "The following parameters have been modified:" in told
    assert told[-5].startswith("good fit: χ²/pixel")
    assert told[-1].endswith(f"results in {tmp_path / 'out'}")
    log = (tmp_path / "out" / "dbex.log").read_text(encoding="utf-8")
    assert log.splitlines() == told, "what was told is in the log"
    assert log.count("χ²/pixel 1.8000, step 4.2 esds") == 1
    assert ", refused" in log
    content = json.loads((tmp_path / "out" / "dbex.json").read_text(encoding="utf-8"))
    assert content["files"] == RESULTS
    assert content["summary"] == told[-5:]
    assert "refine.detector=distance" in content["command"]
    assert "detector = *distance shift tilt" in content["modified_parameters"]
    assert {"reading", "refining", "writing"} <= content["seconds"].keys()


def test_several_stills_have_a_folder_each_and_one_file_of_models(stills, tmp_path, capsys):
    stills("first", "bad", "lost", "a/last one")
    assert refine(tmp_path / "out") == 1
    ended = capsys.readouterr()
    assert ended.err.splitlines() == [
        "dbex.refine: still 1 is left out: bad: the image is absent",
        "dbex.refine: lost is left out: no indexed spot on a trusted pixel: expected at least one",
    ]
    assert ended.out.splitlines()[-1].startswith("2 of 4 stills refined")
    out = tmp_path / "out"
    names = ["0000_first", "0003_last_one", "dbex.html", "dbex.json", "dbex.log", "refined.expt", "refined.refl"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(path.name for path in (out / "0003_last_one").iterdir()) == [n for n in RESULTS if n != "dbex.log"]
    experiments = ExperimentList.from_file(str(out / "refined.expt"), check_format=False)
    assert list(experiments.identifiers()) == ["id-first", "id-a/last one"]
    assert set(flex.reflection_table.from_file(str(out / "refined.refl"))["id"]) == {0, 1}
    listed = json.loads((out / "dbex.json").read_text(encoding="utf-8"))["stills"]
    assert [still["folder"] for still in listed] == ["0000_first", None, None, "0003_last_one"]
    assert [still["id"] for still in listed] == [0, None, None, 1]
    assert listed[1]["failure"] == "bad: the image is absent"
    page = (out / "dbex.html").read_text(encoding="utf-8")
    assert "2 of 4 stills were refined and can be used" in page
    assert 'href="0003_last_one/dbex.html"' in page
    assert "bad: the image is absent" in page
    assert "dbex.html" in json.loads((out / "dbex.json").read_text(encoding="utf-8"))["files"]


def test_no_page_is_written_where_none_is_wanted(stills, tmp_path):
    stills("first", "second")
    assert refine(tmp_path / "out", "output.html=None") == 0
    assert list((tmp_path / "out").rglob("*.html")) == []
    stills("first")
    assert refine(tmp_path / "other", "output.html=mine.html") == 0
    assert [path.name for path in (tmp_path / "other").glob("*.html")] == ["mine.html"]


def test_no_still_stays_in_memory_while_the_next_one_is_read(tmp_path, monkeypatch, refined):
    reader = Reader(["a", "b", "lost", "c"], refined)

    def refine_still(still, settings, progress=None):
        if still.name == "lost":
            raise BadInput("no indexed spot")
        return replace(refined, still=still)

    monkeypatch.setattr("dbex.data_load.read_stills", lambda *_, **__: reader)
    monkeypatch.setattr("dbex.refinement.refine.refine_still", refine_still)
    assert refine(tmp_path / "out") == 1
    assert reader.alive == [[], [False], [False] * 2, [False] * 3]


def test_nothing_is_written_when_no_still_can_be_refined(stills, tmp_path, capsys):
    stills("bad")
    assert refine(tmp_path / "out") == 1
    assert capsys.readouterr().err == "dbex.refine: bad: the image is absent\n"
    stills("bad", "lost")
    assert refine(tmp_path / "out") == 1
    assert "none of the 2 stills" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 1)])
def test_an_interruption_or_a_full_disk_leaves_the_earlier_result(stills, tmp_path, capsys, error, status):
    stills("first")
    refine(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    stills("first", error)
    assert refine(tmp_path / "out") == status
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback_and_writes_nothing(stills, tmp_path):
    stills(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        refine(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_half_way_leaves_nothing(stills, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "spots.png")

    stills("first")
    monkeypatch.setattr("dbex.report.figures.write_picture", full)
    assert refine(tmp_path / "out") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_sees_the_progress_and_the_log_keeps_every_iteration(stills, tmp_path, monkeypatch):
    stills("lys")
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert refine(tmp_path / "out") == 0
        terminal.flush()
        shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert "χ²/pixel 1.0100" in shown
    assert (tmp_path / "out" / "dbex.log").read_text(encoding="utf-8").count("χ²/pixel 1.0100") == 1


def truncated(source, folder):
    file = folder / source.name
    file.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    return str(file)


@pytest.mark.parametrize("name", ["refGeom.expt", "refGeom.refl", "scaled.mtz", "747_mask.pkl"])
def test_a_truncated_file_is_one_sentence_that_names_it_and_nothing_is_written(name, tmp_path, capfd):
    broken = truncated(ROOT / name, tmp_path)
    words = [broken if word.endswith(name) else word for word in FILES]
    mask = f"mask={broken}" if name.endswith(".pkl") else MASK
    assert exit_status("dbex.refine", lambda: command.main([*words, mask, f"output.directory={tmp_path / 'out'}"])) == 1
    told = capfd.readouterr().err
    assert name in told
    assert told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_absent_image_is_one_sentence_that_names_it(tmp_path, capfd):
    text = (ROOT / "refGeom.expt").read_text(encoding="utf-8")
    (tmp_path / "still.expt").write_text(text.replace("lys_nitr_10_6_0001.cbf", "moved.cbf"), encoding="utf-8")
    words = [str(tmp_path / "still.expt"), *FILES[1:], MASK, f"output.directory={tmp_path / 'out'}"]
    assert exit_status("dbex.refine", lambda: command.main(words)) == 1
    told = capfd.readouterr().err
    assert "moved.cbf" in told
    assert told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["still.expt"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_run_that_is_stopped_leaves_nothing(number, status, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "dbex.cli.refine", *FILES, MASK]
    with subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in its background has them, and so the child, ignore SIGINT
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as child:
        assert child.stdout is not None
        assert any("indexed reflections" in line for line in child.stdout), "it has begun to refine"
        child.send_signal(number)
        _, told = child.communicate(timeout=60)
    assert child.returncode == status
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_shipped_still_is_refined_from_dials_files_to_files_that_dials_reads(tmp_path):
    ended = run(*FILES, MASK, "refine.detector=distance,shift", cwd=tmp_path)
    out = tmp_path / "refined"
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == RESULTS
    lines = ended.stdout.splitlines()
    assert lines[-5].startswith("good fit: χ²/pixel")
    assert [line.split(":")[0].split(" ")[0] for line in lines[-4:-1]] == ["orientation", "cell", "detector"]
    assert "strong spots 1: χ²/pixel" in ended.stdout
    content = json.loads((out / "dbex.json").read_text(encoding="utf-8"))
    assert content["verdict"]["state"] == "good"
    assert content["summary"] == lines[-5:]
    assert len(content["history"]) == (out / "dbex.log").read_text(encoding="utf-8").count(", damping ")
    esds = [estimate["esd"] for estimate in content["estimates"]]
    assert np.sqrt(np.diag(content["covariance"])) == pytest.approx(esds)
    assert content["peak_memory_MB"] < 2000
    with h5py.File(out / "pixels.h5") as stream:
        data, background, bragg, variance, used = (
            stream[f"pixels/{name}"][()] for name in ("data", "background", "bragg", "variance", "used")
        )
    chi2 = ((data - background - bragg) ** 2 / variance)[used == 1].mean()
    assert chi2 == pytest.approx(content["figures"]["chi2_per_pixel"])
    (experiment,) = ExperimentList.from_file(str(out / "refined.expt"), check_format=True)
    after = content["models"]["after"]
    assert experiment.crystal.get_unit_cell().parameters()[0] == pytest.approx(after["crystal"]["cell_a"])
    assert experiment.detector[0].get_directed_distance() == pytest.approx(after["detector"][0]["distance_mm"])
    table = flex.reflection_table.from_file(str(out / "refined.refl"))
    assert table.get_flags(flex.reflection_table.flags.predicted).all_eq(True)
    assert table.get_flags(flex.reflection_table.flags.indexed).count(True) > 90


def test_a_choice_that_is_called_none_is_one():
    parameters, _ = fetched(joint_scope(), ["refine.structure_factor_prior=none"])
    assert parameters.refine.structure_factor_prior == "none"
    with pytest.raises(BadInput, match="expected one of known, apart, merged"):
        fetched(joint_scope(), ["refine.structure_factors=none"])
