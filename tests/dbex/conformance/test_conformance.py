"""dbex.conformance: what passed, what did not and why, and an exit status that a CI job can trust."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dbex.cli.conformance import HELP, main
from dbex.conformance import running
from dbex.conformance.profiles import PROFILES, TITLES, chosen
from dbex.errors import BadInput
from tests.conftest import ROOT

TESTS = {
    "passes": "class TestDB_AT_001_A:\n def test_db_at_001_one(self): pass\n def test_db_at_001_two(self): pass\n",
    "fails": "class TestDB_AT_002_B:\n def test_db_at_002(self):\n  assert 1 == 2, 'one is not two'\n",
    "skips": "import pytest\nclass TestDB_AT_010_C:\n def test_db_at_010(self): pytest.skip('no golden images')\n",
    "long": "import pytest\nclass TestDB_AT_002_F:\n"
    " @pytest.mark.full_profile\n def test_db_at_002_long(self): assert 0\n"
    " def test_db_at_002_short(self): pass\n",
    "dies": "import os\nclass TestDB_AT_011_D:\n def test_db_at_011(self): os._exit(9)\n",
    "broken": "import nowhere_to_be_found\n",
    "set_up": "import pytest\n@pytest.fixture\ndef bad(): raise OSError('no disk')\n"
    "class TestDB_AT_020_E:\n def test_db_at_020(self, bad): pass\n",
}


@pytest.fixture
def clone(tmp_path):
    """A folder that looks like a clone, and writes the tests that are asked for."""
    (tmp_path / "tests" / "dbex").mkdir(parents=True)
    (tmp_path / "tests" / "reports.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\nmarkers = ["full_profile"]\n'
    )

    def with_tests(*names):
        for name in names:
            (tmp_path / "tests" / "dbex" / f"test_{name}.py").write_text(TESTS[name])
        return tmp_path

    return with_tests


def judged(folder, *words):
    """Exit status and summary."""
    status = main([*words, f"tests={folder}"])
    return status, json.loads((folder / "plans" / "active" / "summary.json").read_text(encoding="utf-8"))


def test_what_passed_failed_and_was_skipped_is_told_with_its_reason(clone, capsys):
    status, summary = judged(clone("passes", "fails", "skips", "set_up"), "all")
    verdicts = {test["id"]: test["verdict"] for test in summary["tests"]}
    expected = {"001": "passed", "002": "failed", "010": "skipped", "020": "failed"}
    assert verdicts == {f"DB-AT-{number}": expected.get(number, "absent") for number in TITLES}
    assert (status, summary["verdict"]) == (1, "failed")
    printed = capsys.readouterr().out
    for words in ("one is not two", "no golden images", "no disk", "does not conform", "passed  "):
        assert words in printed
    assert len(summary["tests"][0]["cases"]) == 2
    assert Path(summary["tested"]["dbex"]) == ROOT / "dbex"


def test_all_passed_is_success_and_nothing_else_is(clone):
    assert judged(clone("passes", "skips"), "DB-AT-001")[0] == 0
    status, summary = judged(clone(), "DB-AT-001", "DB-AT-010")
    assert (status, summary["verdict"]) == (2, "skipped")


def test_cases_that_take_minutes_can_be_left_out(clone):
    status, summary = judged(clone("long"), "DB-AT-002", "full=False")
    assert (status, summary["full"], len(summary["tests"][0]["cases"])) == (0, False, 1)


def test_two_processes_tell_the_same(clone):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    status, summary = judged(clone("passes", "fails"), "DB-AT-001", "DB-AT-002", "nproc=2")
    assert status == 1
    assert [test["verdict"] for test in summary["tests"]] == ["passed", "failed"]


@pytest.mark.parametrize("name", ["dies", "broken"])
def test_a_run_that_breaks_off_is_no_pass(clone, name):
    status, summary = judged(clone("passes", name), "DB-AT-001", *(["DB-AT-011"] if name == "dies" else []))
    assert status == 1
    assert summary["errors"]


def test_an_installed_copy_without_tests_says_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "HOME", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="this installed copy of dbex has no acceptance tests: expected a clone"):
        main(["forward"])


def test_another_name_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"no profile gradient: .* did you mean gradients"):
        main(["gradient"])


def test_the_table_of_profiles_holds_every_test_once():
    listed = [number for name, numbers in PROFILES.items() if name != "all" for number in numbers]
    assert sorted(listed) == sorted(TITLES)
    assert chosen(["all"]) == tuple(TITLES)
    assert chosen(["db_at_010", "tracing"]) == ("010", "040", "050")


def test_help_comes_at_once_and_alone():
    done = subprocess.run(
        [sys.executable, "-m", "dbex.cli.conformance", "-h"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == HELP
