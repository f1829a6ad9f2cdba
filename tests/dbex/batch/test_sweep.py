"""Sweeps over stills in real processes: broken stills are classed, killed workers and runs change no byte."""

import csv
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from dials.array_family import flex
from dxtbx.model import Crystal
from dxtbx.model.experiment_list import ExperimentList

from dbex.batch.ledger import FILE, Ledger, State
from dbex.cli import report as report_command
from dbex.cli.refine_joint import main as refine_jointly
from dbex.errors import BadInput
from tests.conftest import ROOT
from tests.tolerances import WORKER_MEMORY_MB

QUICK = ("d_min=4", "refine.detector=distance,shift,tilt", "refine.terms=none", "refine.start=near")
GOOD = 4
#: What the reason says of each still that is broken on purpose, in their order after the good ones.
BROKEN = ("truncated", "does not exist", "no indexed spot", "expected a mask", "the crystal has")
PATIENCE_S = 120


@pytest.fixture(scope="module")
def stills(serial_files, tmp_path_factory):
    """The arguments for four good stills and five broken ones, a pair of files each."""
    folder = tmp_path_factory.mktemp("stills")
    everything = ExperimentList.from_file(str(serial_files.expt), check_format=False)
    table = flex.reflection_table.from_file(str(serial_files.refl))
    images = [Path(experiment.imageset.paths()[0]) for experiment in everything]
    for number in range(GOOD + len(BROKEN)):
        rows = table.select(table["id"] == number)
        for known in list(rows.experiment_identifiers().keys()):
            del rows.experiment_identifiers()[known]
        rows["id"] = flex.int(len(rows), 0)
        experiment = everything[number]
        text = None
        match number - GOOD:
            case 0:
                text = f"{folder}/truncated.cbf"
                Path(text).write_bytes(images[number].read_bytes()[:100_000])
            case 1:
                text = f"{folder}/absent.cbf"
            case 2:
                rows = rows.select(flex.size_t())
            case 3:
                mask = folder / "mask.pkl"
                mask.write_bytes(pickle.dumps((flex.double(flex.grid(1043, 981), float("nan")),)))
                experiment.imageset.external_lookup.mask.filename = str(mask)
            case 4:
                experiment.crystal = Crystal((93, 0, 0), (0, 93, 0), (0, 0, 130), "P 61 2 2")
        file = folder / f"shot{number}.expt"
        ExperimentList([experiment]).as_file(str(file))
        if text:
            file.write_text(file.read_text().replace(str(images[number]), text))
        rows.as_file(str(folder / f"shot{number}.refl"))
    return [f"{folder}/shot*.expt", f"{folder}/shot*.refl", str(serial_files.mtz), f"mask={serial_files.mask}", *QUICK]


def start(stills, folder, nproc, *before):
    words = [sys.executable, "-m", "dbex.cli.refine_many", *stills, f"nproc={nproc}", f"output.directory={folder}"]
    words = [*before, *words, *(["executor=mpi"] if before else [])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=bool(before))


def ended(run):
    told, complaints = run.communicate(timeout=PATIENCE_S)
    return run.returncode, told, complaints


def until(folder, reached):
    """Wait until what the ledger says of its states is so."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if (folder / FILE).exists():
            with closing(Ledger(folder)) as ledger:
                if reached([entry.outcome.state for entry in ledger.entries()]):
                    return
        time.sleep(0.05)
    raise TimeoutError(f"the sweep in {folder} did not get so far")


def results(folder):
    """The hashes of all results, by name."""
    files = [path for path in folder.iterdir() if path.suffix in (".expt", ".refl", ".csv", ".html")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def workers(run):
    """The processes that the sweep has started and that work, the oldest first."""
    children = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    for thread in Path(f"/proc/{run.pid}/task").iterdir():
        children += [int(pid) for pid in (thread / "children").read_text().split()]
    return sorted(pid for pid in set(children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.fixture(scope="module")
def undisturbed(stills, tmp_path_factory):
    """A run by one worker from start to end: its folder, exit status and what it said."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    return folder, *ended(start(stills, folder, 1))


@pytest.mark.slow
def test_five_broken_stills_are_classed_and_the_others_refined(undisturbed):
    folder, status, told, complaints = undisturbed
    assert status == 1
    with (folder / "stills.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["state"] for row in rows] == ["refined"] * GOOD + ["bad input"] * len(BROKEN)
    for row, words in zip(rows[GOOD:], BROKEN, strict=True):
        assert words in row["reason"]
        assert row["reason"] in complaints
    assert "9 stills: 4 refined, 5 bad input" in told
    assert [row["id"] for row in rows[:GOOD]] == ["0", "1", "2", "3"]
    experiments = ExperimentList.from_file(str(folder / "refined_000.expt"), check_format=True)
    table = flex.reflection_table.from_file(str(folder / "refined_000.refl"))
    assert len(experiments) == GOOD
    for index, row in enumerate(rows[:GOOD]):
        cell = experiments[index].crystal.get_unit_cell().parameters()
        assert cell[0] == pytest.approx(float(row["cell_a (A)"]))
        assert (table["id"] == index).count(True) >= float(row["boxes"])
    assert not (folder / "doubtful_000.expt").exists()


@pytest.mark.slow
def test_the_page_of_a_sweep_tells_who_failed_and_why_and_leads_to_a_still_that_was_looked_at(
    undisturbed, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    text = (folder / "dbex.html").read_text(encoding="utf-8")
    assert "4 of 9 stills were refined and can be used; 5 bad input." in text
    assert all(words in text for words in BROKEN)
    assert report_command.main([str(folder), "still=2"]) == 0
    (page,) = folder.glob("stills/000002_*/dbex.html")
    assert capsys.readouterr().out.splitlines() == [str(folder / "dbex.html"), str(page)]
    assert f'href="{page.relative_to(folder)}"' in (folder / "dbex.html").read_text(encoding="utf-8")
    with (folder / "stills.csv").open() as stream:
        before = list(csv.DictReader(stream))[2]
    content = json.loads((page.parent / "dbex.json").read_text(encoding="utf-8"))
    again = {estimate["name"]: estimate["after"] for estimate in content["estimates"]}
    assert again["cell_a"] == pytest.approx(float(before["cell_a (A)"]), rel=1e-9), "as the sweep did"
    for wrong, said in (("still=5", "does not exist"), ("still=9", "expected 0 to 8")):
        with pytest.raises(BadInput, match=said):
            report_command.main([str(folder), wrong])


@pytest.mark.slow
def test_the_memory_of_a_worker_is_told_and_bounded(undisturbed):
    folder, _, told, _ = undisturbed
    with closing(Ledger(folder)) as ledger:
        peak = ledger.pace().memory_MB
    assert f"{peak:.0f} MB at most a worker" in told
    assert 0 < peak < WORKER_MEMORY_MB


@pytest.mark.slow
def test_a_killed_worker_and_a_second_one_change_no_byte(stills, undisturbed, tmp_path):
    run = start(stills, tmp_path / "run", 2)
    until(tmp_path / "run", lambda states: State.REFINED in states)
    os.kill(workers(run)[-1], signal.SIGKILL)
    assert ended(run)[0] == 1
    assert results(tmp_path / "run") == results(undisturbed[0])


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_does_nothing_twice(stills, undisturbed, tmp_path):
    folder = tmp_path / "run"
    run = start(stills, folder, 2)
    until(folder, lambda states: State.REFINED in states)
    left = workers(run)
    run.kill()
    ended(run)
    assert "nobody is at work: give the same" in status_of(folder)
    assert results(folder) == {}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.zip")}
    assert 0 < len(before) < GOOD
    run = start(stills, folder, 1)
    status, told, _ = ended(run)
    assert status == 1
    assert re.search(r"9 stills: \d waiting, \d refined", told)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(folder) == results(undisturbed[0])
    assert not any(Path(f"/proc/{pid}").exists() for pid in left), "workers end with the process that began them"
    with closing(Ledger(folder)) as ledger:
        done = len([path for path in folder.rglob("*.zip") if path not in before])
        assert done == GOOD - len(before)
        assert ledger.pace().left == 0


def status_of(folder):
    words = [sys.executable, "-m", "dbex.cli.status", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(stills, tmp_path):
    run = start(stills, tmp_path / "run", 1)
    until(tmp_path / "run", lambda states: State.RUNNING in states)
    run.send_signal(signal.SIGINT)
    status, _, complaints = ended(run)
    assert status == 130, complaints
    assert complaints.count("\n") == 1
    assert "interrupted: 9 stills: " in complaints
    assert "the same command goes on" in complaints


def test_what_all_stills_share_is_refused_before_any_is_refined(stills, tmp_path):
    mask = tmp_path / "mask.pkl"
    mask.write_bytes(pickle.dumps((flex.double(flex.grid(1043, 981), float("nan")),)))
    words = [mask if word.startswith("mask=") else word for word in stills]
    words[words.index(mask)] = f"mask={mask}"
    status, told, complaints = ended(start(words, tmp_path / "run", 1))
    assert (status, told) == (1, "")
    assert "expected a mask" in complaints
    assert complaints.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_ranks_of_an_mpi_job_that_is_killed_and_started_again_change_no_byte(stills, undisturbed, tmp_path):
    folder, *_ = undisturbed
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    if shutil.which("mpiexec") is None:
        pytest.skip("there is no mpiexec")
    ranks = ("mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", "2")
    run = start(stills, tmp_path / "run", 1, *ranks)
    until(tmp_path / "run", lambda states: State.REFINED in states)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate(timeout=PATIENCE_S)
    status, told, _ = ended(start(stills, tmp_path / "run", 1, *ranks))
    assert status == 1
    assert "9 stills: 4 refined, 5 bad input" in told
    assert results(tmp_path / "run") == results(folder)


@pytest.mark.slow
def test_a_joint_refinement_goes_on_from_what_a_sweep_has_refined(undisturbed, tmp_path, capsys):
    """With the files that the sweep names, from its crystals, in its folder; the broken stills are none of it."""
    swept = tmp_path / "run"
    shutil.copytree(undisturbed[0], swept)
    assert refine_jointly([str(swept), "d_min=4", "nproc=2"]) == 0
    told = capsys.readouterr().out
    content = json.loads((swept / "joint" / "joint.json").read_text(encoding="utf-8"))
    assert content["converged"]
    assert content["sweep"]["states"] == {"refined": GOOD, "bad input": len(BROKEN)}
    assert [still["index"] for still in content["stills"]] == list(range(GOOD))
    crystals = ExperimentList.from_file(str(swept / "refined_000.expt"), check_format=False).crystals()
    edges = [crystal.get_unit_cell().parameters()[0] for crystal in crystals]
    cell = next(e for e in content["shared"] if e["name"] == "cell_a")
    assert cell["before"] == pytest.approx(edges[0], abs=1e-9)
    assert "refined by itself" in told
    assert not list(swept.glob(".joint*")), "what is kept between runs goes when one ends"
    with pytest.raises(BadInput, match=r"mask is given beside .* leave it out"):
        refine_jointly([str(swept), "mask=another.pkl"])


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(BadInput, match="expected the folder of a sweep"):
        refine_jointly([str(tmp_path)])
