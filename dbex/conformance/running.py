"""Acceptance tests run by pytest in a process of its own, and what became of each."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dbex.conformance.profiles import TITLES
from dbex.errors import BadInput

#: Starts pytest so that the dbex of this process is the one that is tested, wherever the tests lie.
START = """
import sys
sys.path[:1] = []
sys.path.append(sys.argv.pop(1))
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
#: Where this dbex lies: a clone, or where packages are installed.
HOME = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"DB_AT_(\d{3})")
#: What a folder with the acceptance tests holds.
MARKS = (Path("tests/reports.py"), Path("tests/dbex"), Path("pyproject.toml"))


@dataclass
class Case:
    """A test function with its parameters: passed, failed or skipped, or still to run; seconds; why."""

    name: str
    outcome: str = "did not run"
    seconds: float = 0.0
    reason: str = ""


@dataclass
class Outcome:
    """What became of an acceptance test, its cases in order."""

    number: str
    cases: list[Case] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """passed where every case did, failed where one failed or did not run, absent where there is none."""
        outcomes = {case.outcome for case in self.cases}
        if not outcomes:
            return "absent"
        if outcomes & {"failed", "did not run"}:
            return "failed"
        return "skipped" if "skipped" in outcomes else "passed"

    @property
    def seconds(self) -> float:
        """What all cases took."""
        return sum(case.seconds for case in self.cases)

    def count(self, outcome: str) -> int:
        """How many cases ended so."""
        return sum(case.outcome == outcome for case in self.cases)


@dataclass
class Conformance:
    """The outcomes by number, errors beside the tests (modules that could not be read, a process that broke off), and
    which dbex was tested."""

    outcomes: dict[str, Outcome]
    errors: list[str] = field(default_factory=list)
    tested: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """passed, failed, or skipped where nothing failed but something was skipped or is absent."""
        verdicts = {outcome.verdict for outcome in self.outcomes.values()}
        if self.errors or "failed" in verdicts:
            return "failed"
        return "skipped" if verdicts - {"passed"} else "passed"


def tests_folder(given: str | None) -> Path:
    """The folder that holds tests/: that which was given, else the clone that this dbex is, else the working directory.

    Raises BadInput where there is none.
    """
    places = [Path(given)] if given else [HOME, Path.cwd()]
    for place in places:
        if all((place / mark).exists() for mark in MARKS):
            return place.resolve()
    raise BadInput(
        f"{given or 'this installed copy of dbex'} has no acceptance tests: expected a clone of the repository; run "
        "dbex.conformance in one, or give tests=CLONE"
    )


def conformance(
    numbers: Sequence[str],
    folder: Path,
    processes: int,
    log: Path,
    tell: Callable[[Case, int, int], None],
    full: bool = True,
) -> Conformance:
    """Run the tests of these numbers; `tell` hears of each case with how many are done and how many there are.

    Without `full` cases that take minutes are left out. What pytest prints goes to `log`. Raises BadInput where pytest
    is not installed.
    """
    if find_spec("pytest") is None or (processes > 1 and find_spec("xdist") is None):
        raise BadInput("pytest is not installed: expected what the tests need; install dbex[test]")
    found = Conformance({number: Outcome(number) for number in numbers})
    ours, theirs = os.pipe()
    command = [
        *(sys.executable, "-c", START, str(folder), "-p", "dbex.conformance.events", "-o", "pythonpath="),
        *("-k", " or ".join(f"DB_AT_{number}" for number in numbers), f"--conformance-events={theirs}"),
        *("--rootdir", str(folder), "-q", "-p", "no:cacheprovider"),
        *(("-n", str(processes)) if processes > 1 else ()),
        *(() if full else ("-m", "not full_profile")),
        str(folder / "tests"),
    ]
    with log.open("w", encoding="utf-8") as printed:
        process = subprocess.Popen(command, cwd=folder, stdout=printed, stderr=subprocess.STDOUT, pass_fds=(theirs,))
        os.close(theirs)
        try:
            with os.fdopen(ours, encoding="utf-8") as lines:
                heard(lines, found, tell)
            status = process.wait()
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            raise
    # 0 all passed, 1 some failed, 5 nothing was collected: those the outcomes tell
    if status not in (0, 1, 5) or (status == 1 and found.verdict != "failed"):
        found.errors.append(f"pytest ended with status {status}: see {log}")
    return found


def heard(lines: Iterable[str], found: Conformance, tell: Callable[[Case, int, int], None]) -> None:
    """Put what the plugin tells into the outcomes."""
    cases: dict[str, Case] = {}
    done = 0
    for line in lines:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "began":
            found.tested.update(dbex=event["dbex"], version=event["version"])
        elif event["event"] == "broken":
            found.errors.append(f"{event['name']}: {event['reason']}")
        elif event["event"] == "collected":
            for name in event["names"]:
                number = number_of(name)
                if number in found.outcomes:
                    cases[name] = Case(name)
                    found.outcomes[number].cases.append(cases[name])
        elif event["name"] in cases:
            case = cases[event["name"]]
            waiting = case.outcome == "did not run"
            after(case, event)
            if waiting and case.outcome != "did not run":  # set-up alone is no end
                done += 1
                tell(case, done, len(cases))


def after(case: Case, event: dict[str, Any]) -> None:
    """A case after one of its parts: the worst counts, and it has passed when its call has."""
    case.seconds += event["seconds"]
    if event["outcome"] in ("failed", "skipped") and case.outcome != "failed":
        case.outcome, case.reason = event["outcome"], event.get("reason", "")
    elif event["outcome"] == "passed" and event["part"] == "call" and case.outcome == "did not run":
        case.outcome = "passed"


def number_of(name: str) -> str | None:
    """The number of the acceptance test that a case belongs to."""
    match = NUMBER.search(name)
    return match.group(1) if match and match.group(1) in TITLES else None
