"""DB-AT-080: inputs spoilt at random end in a sentence or in a still that makes sense, never in a traceback, a half
written folder or a good fit that is wrong."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.dbex.conftest import SHIPPED
from tests.dbex.fuzzing import NAMES, WAYS, spoilt
from tests.reports import acceptance_report
from tests.tolerances import SAME_NUMBER_ESDS

#: Seeds that one process reads: each way to spoil a file is met as often.
QUICK, LONG = len(WAYS), 12 * len(WAYS)
#: Seeds whose stills can be read, and are refined from files to files: image, amplitudes, models, reflections.
REFINED = (26, 35, 36, 53, 62, 66, 72, 196)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def fuzzed(first, last, folder):
    """What became of each seed: a dictionary of what was spoilt, the outcome and what was said."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.dbex.fuzzing", str(first), str(last), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    found = {}
    for line in done.stdout.splitlines():
        told = json.loads(line)
        found.setdefault(told["seed"], {}).update(told)
    if done.returncode != 0:
        found.setdefault(max(found, default=first), {})["outcome"] = f"the process died: {done.returncode}"
    return found


def refined(folder, *words):
    command = [sys.executable, "-m", "dbex.cli.refine", *NAMES.values(), f"mask={NAMES['mask']}", *words]
    command = [word for word in command if not word.endswith((".cbf", "747_mask.pkl")) or word.startswith("mask=")]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def judged(first, last, folder, name):
    with acceptance_report("DB-AT-080", name, tolerances={"tracebacks": 0}, inputs=tuple(SHIPPED)) as values:
        found = fuzzed(first, last, folder)
        values["seeds"] = len(found)
        for outcome in ("read", "refused"):
            values[outcome] = sum(told.get("outcome") == outcome for told in found.values())
        values["others"] = [told for told in found.values() if told.get("outcome") not in ("read", "refused")]
        assert values["seeds"] == last - first
        assert values["others"] == []
        assert min(values["read"], values["refused"]) > values["seeds"] / 10


class TestDB_AT_080_Fuzz:
    @pytest.mark.slow
    def test_db_at_080_spoilt_files_are_read_or_refused_in_a_sentence(self, tmp_path):
        judged(0, QUICK, tmp_path / "fuzz", "reading")

    @pytest.mark.full_profile
    def test_db_at_080_many_more_spoilt_files(self, tmp_path):
        judged(QUICK, QUICK + LONG, tmp_path / "fuzz", "reading_more")

    @pytest.mark.full_profile
    @pytest.mark.parametrize("seed", REFINED)
    def test_db_at_080_a_spoilt_still_ends_whole_or_not_at_all_and_never_well_and_wrong(
        self, seed, tmp_path, refined_once
    ):
        what = spoilt(seed, tmp_path / "still")
        before = set(os.listdir(tmp_path / "still"))
        tolerances = {"esds where the fit is called good": SAME_NUMBER_ESDS}
        with acceptance_report("DB-AT-080", f"refined_{seed}", tolerances=tolerances) as values:
            done = refined(tmp_path / "still", "refine.detector=distance,shift")
            values |= {"spoilt": what, "status": done.returncode, "said": done.stderr[-500:]}
            left = set(os.listdir(tmp_path / "still")) - before
            assert "Traceback" not in done.stderr
            assert done.returncode in (0, 1)
            if done.returncode == 1:
                assert len(done.stderr.strip().splitlines()) == 1
                assert left == set()
                return
            assert left == {"refined"}
            content = json.loads((tmp_path / "still" / "refined" / "dbex.json").read_text(encoding="utf-8"))
            assert {str(p.name) for p in (tmp_path / "still" / "refined").iterdir()} == set(content["files"])
            values["verdict"] = content["verdict"]
            if content["verdict"]["state"] == "good":
                values["moved by, esds"] = moved_by(content, refined_once)
                assert max(values["moved by, esds"].values()) < SAME_NUMBER_ESDS

    def test_db_at_080_every_file_is_spoilt_in_every_way(self):
        with acceptance_report("DB-AT-080", "ways", tolerances={}) as values:
            values["ways"] = [f"{way.__name__} {kind}" for way, kind in WAYS]
            assert {kind for _, kind in WAYS} == set(NAMES)


@pytest.fixture(scope="module")
def refined_once(tmp_path_factory):
    """What the untouched still is refined to."""
    folder = tmp_path_factory.mktemp("untouched")
    for name in NAMES.values():
        shutil.copy(ROOT / name, folder / name)
    done = refined(folder, "refine.detector=distance,shift")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "refined" / "dbex.json").read_text(encoding="utf-8"))


def moved_by(content, expected):
    """How far each number is from that of the untouched still, in esds; of shifts, which count from the start that may
    be spoilt, where the panel stands in the end."""
    right, ours = ({e["name"]: e for e in one["estimates"]} for one in (expected, content))
    told = {
        name: abs(ours[name]["after"] - right[name]["after"]) / max(ours[name]["esd"], right[name]["esd"])
        for name in ours.keys() & right.keys()
        if not name.startswith(("misset", "shift"))
    }
    places = [one["models"]["after"]["detector"][0] for one in (expected, content)]
    for name, edge in (("shift_fast", "origin_fast_mm"), ("shift_slow", "origin_slow_mm")):
        told[name] = abs(places[0][edge] - places[1][edge]) / right[name]["esd"]
    return told
