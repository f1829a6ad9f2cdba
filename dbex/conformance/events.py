"""A plugin of pytest that tells another process, a line of JSON each, what was collected and what became of it."""

import json
import os
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import pytest

OPTION = "--conformance-events"


def pytest_addoption(parser: Any) -> None:
    """Take the descriptor of a pipe."""
    parser.addoption(OPTION, type=int, default=None, help="file descriptor that outcomes are written to")


def pytest_configure(config: Any) -> None:
    """Begin to tell, in the process that the person started and not in its workers."""
    descriptor = config.getoption(OPTION)
    if descriptor is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Events(os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")))


class Events:
    """Writes a line for what was collected, for each error of collection, and for each part of a test that ended."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._told: set[str] = set()
        home = str(Path(__file__).resolve().parents[1])
        self._tell(event="began", dbex=home, version=metadata.version("dbex"))

    def pytest_collection_finish(self, session: Any) -> None:
        """One process: its items."""
        self._collected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """Several processes: each has collected the same."""
        self._collected(ids)

    def pytest_collectreport(self, report: Any) -> None:
        """A module that could not be imported."""
        if report.failed:
            self._tell(event="broken", name=report.nodeid, reason=last_line(report))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Set-up, call or tear-down of a test."""
        told = {"event": "ran", "name": report.nodeid, "part": report.when, "outcome": report.outcome}
        told["seconds"] = report.duration
        if report.skipped and isinstance(report.longrepr, tuple):
            told["reason"] = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.skipped:
            told["reason"] = f"expected to fail: {getattr(report, 'wasxfail', '')}"
        elif report.failed:
            told["reason"] = last_line(report)
        self._tell(**told)

    def _collected(self, names: list[str]) -> None:
        new = [name for name in names if name not in self._told]
        self._told.update(new)
        if new:
            self._tell(event="collected", names=new)

    def _tell(self, **content: Any) -> None:
        self._stream.write(json.dumps(content) + "\n")


def last_line(report: Any) -> str:
    """Why something failed, in a line."""
    crash = getattr(getattr(report, "longrepr", None), "reprcrash", None)
    text = getattr(crash, "message", None) or report.longreprtext
    return " ".join(text.split())[:500]
