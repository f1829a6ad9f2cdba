"""dbex.conformance: the acceptance tests of a profile, a table at the end, and an exit status for CI jobs."""

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libtbx.phil

from dbex.cli.console import started
from dbex.cli.parameters import WholeConverter, fetched
from dbex.conformance.profiles import PROFILES, TITLES, chosen
from dbex.errors import BadInput

if TYPE_CHECKING:
    from dbex.conformance.running import Case, Conformance

COMMAND = "dbex.conformance"
HELP = f"""\
usage: {COMMAND} [profile ...] [key=value ...]

Runs the acceptance tests of a clone and tells which passed. Profiles: {", ".join(PROFILES)}; without one, all.
Single tests by their ids, as in {COMMAND} DB-AT-010 DB-AT-026.

parameters:
  nproc=1             processes that share the tests
  full=True           False leaves out the cases that take minutes
  tests=FOLDER        a clone whose tests judge this installed copy of dbex; None takes the clone that it is, or the
                      working directory
  output.json=FILE    the summary; None writes plans/active/summary.json of the clone. What pytest prints goes beside
                      it, to conformance.log

options:
  -h, --help          show this
  --version           show the version

exit status: 0 when everything passed; 1 when a test failed, and for bad input; 2 when nothing failed but a test was
skipped or is absent, which is no pass.
"""
PHIL = """
nproc = 1
  .type = whole(minimum=1)
full = True
  .type = bool
tests = None
  .type = path
output {
  json = None
    .type = path
}
"""
STATUS = {"passed": 0, "failed": 1, "skipped": 2}
#: Characters of a reason in the table; the summary has all of it.
REASON_WIDTH = 160


def run() -> int:
    """The console script."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError for what cannot be read or written."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    if "--version" in arguments:
        print(f"{COMMAND} {metadata.version('dbex')}")
        return 0
    names = [word for word in arguments if "=" not in word and not word.startswith("-")]
    registry = libtbx.phil.extended_converter_registry([WholeConverter])
    scope = libtbx.phil.parse(PHIL, converter_registry=registry)
    parameters, _ = fetched(scope, [word for word in arguments if word not in names])
    numbers = chosen(names or ["all"])
    return judged(numbers, parameters, arguments)


def judged(numbers: Sequence[str], parameters: Any, arguments: Sequence[str]) -> int:
    """Run the tests, print the table, write the summary, and give the exit status."""
    from dbex.conformance.running import conformance, tests_folder
    from dbex.io.atomic import write_whole

    folder = tests_folder(parameters.tests)
    output = Path(parameters.output.json or folder / "plans" / "active" / "summary.json")
    if parameters.output.json is None:
        output.parent.mkdir(parents=True, exist_ok=True)
    elif not output.resolve().parent.is_dir() or output.is_dir():
        raise BadInput(f"output.json={output}: expected a file in a folder that exists")
    log = output.resolve().with_name("conformance.log")
    began, clock = datetime.now(timezone.utc), time.monotonic()
    print(f"{len(numbers)} acceptance tests of {folder}", flush=True)
    found = conformance(numbers, folder, parameters.nproc, log, show, parameters.full)
    seconds = time.monotonic() - clock
    content = {
        "command": shlex.join([COMMAND, *arguments]),
        "started": began.isoformat(timespec="seconds"),
        "full": parameters.full,
        **summary(found, seconds),
    }
    write_whole(output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print("\n".join(table(found, seconds)))
    if not parameters.full:
        print("without the cases that take minutes: full=True runs them too")
    print(f"summary: {output}; what pytest printed: {log}")
    return STATUS[found.verdict]


def show(case: "Case", done: int, known: int) -> None:
    """A line for a case that has ended."""
    name = case.name.rpartition("::")[2]
    print(f"[{done:4d}/{known}] {case.outcome:7} {case.seconds:7.1f} s  {name}", flush=True)


def table(found: "Conformance", seconds: float) -> Iterator[str]:
    """A line for each test, those that did not pass with their reasons."""
    yield f"\n{'test':<10} {'':<48} {'verdict':<8} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}"
    for number, outcome in found.outcomes.items():
        counts = outcome.count("passed"), outcome.count("failed") + outcome.count("did not run")
        yield (
            f"DB-AT-{number} {TITLES[number]:<49} {outcome.verdict:<8} {counts[0]:7d} {counts[1]:7d} "
            f"{outcome.count('skipped'):8d} {outcome.seconds:8.1f}"
        )
        for case in outcome.cases:
            if case.outcome != "passed":
                yield f"    {case.outcome}: {case.name.rpartition('::')[2]}: {case.reason[:REASON_WIDTH]}"
        if not outcome.cases:
            yield "    absent: no test of this number was found"
    yield from found.errors
    verdicts = [outcome.verdict for outcome in found.outcomes.values()]
    counted = ", ".join(f"{verdicts.count(v)} {v}" for v in ("passed", "failed", "skipped", "absent") if v in verdicts)
    yield f"{counted} in {seconds:.0f} s: {'conforms' if found.verdict == 'passed' else 'does not conform'}"


def summary(found: "Conformance", seconds: float) -> dict[str, Any]:
    """The content of the summary but for how it was started."""
    return {
        "verdict": found.verdict,
        "seconds": seconds,
        "tested": found.tested,
        "errors": found.errors,
        "tests": [
            {
                "id": f"DB-AT-{number}",
                "what": TITLES[number],
                "verdict": outcome.verdict,
                "seconds": outcome.seconds,
                "reports": f"plans/active/DB-AT-{number}/reports/default",
                "cases": [vars(case) for case in outcome.cases],
            }
            for number, outcome in found.outcomes.items()
        ],
    }


if __name__ == "__main__":
    sys.exit(run())
