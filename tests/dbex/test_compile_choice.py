"""compile=: plain functions, compiled ones, or compiled where many stills repay it."""

from contextlib import closing

import pytest

from dbex.cli import passes
from dbex.cli.console import Log
from dbex.errors import BadInput
from nanobrag_torch import compiling


@pytest.fixture
def built(monkeypatch):
    """A machine on which nothing is compiled yet, and what was compiled there."""
    done = []
    monkeypatch.delenv("NANOBRAGG_DISABLE_COMPILE", raising=False)
    monkeypatch.setattr(compiling, "missing", lambda: [] if done else ["a pass"])
    monkeypatch.setattr(compiling, "build_all", lambda: done.append("a pass"))
    return done


@pytest.fixture
def log(tmp_path):
    with closing(Log(tmp_path / "log")) as kept:
        yield kept


@pytest.mark.parametrize(
    ("choice", "stills", "compiles"), [("auto", 20, False), ("auto", 1000, True), ("yes", 1, True)]
)
def test_passes_are_compiled_once_where_it_repays_itself_or_is_asked(choice, stills, compiles, built, log, tmp_path):
    passes.prepare(choice, stills, log)
    passes.prepare(choice, stills, log)
    assert bool(built) == compiles
    assert len(built) <= 1
    assert ("compiling" in (tmp_path / "log").read_text(encoding="utf-8")) == compiles


def test_no_runs_plain_functions_in_this_process_and_its_workers(built, log):
    passes.prepare("no", 10_000, log)
    assert compiling.disabled()
    assert not built


@pytest.mark.parametrize(("choice", "told"), [("yes", "install g"), ("auto", "run plain")])
def test_a_machine_without_a_compiler_says_so(choice, told, built, log, tmp_path, monkeypatch):
    def fail():
        raise compiling.CompilationError("no compiler is found")

    monkeypatch.setattr(compiling, "build_all", fail)
    if choice == "yes":
        with pytest.raises(BadInput, match=told):
            passes.prepare(choice, 1000, log)
    else:
        passes.prepare(choice, 1000, log)
        assert told in (tmp_path / "log").read_text(encoding="utf-8")
