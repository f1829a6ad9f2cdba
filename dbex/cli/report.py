"""dbex.report: writes the pages of a run anew, and gives a still of a sweep a page of its own.

What takes time to import is imported where it is used, so that help and complaints come at once.
"""

import datetime
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbex.cli.console import started
from dbex.cli.parameters import fetched, folder_and_others, report_scope
from dbex.cli.questions import answered
from dbex.errors import BadInput

if TYPE_CHECKING:
    from dbex.batch.ledger import Ledger
    from dbex.still import Refined

COMMAND = "dbex.report"
HELP = """\
usage: dbex.report run [still=N] [output.html=dbex.html]

Writes the report of a run anew, from the files that it left: run is the output.directory of dbex.refine,
dbex.refine_many or dbex.refine_joint.

  dbex.report refined            the page of a still, or those of several stills and their overview
  dbex.report run                the overview of the stills of a dbex.refine_many
  dbex.report run still=17       refines still 17 of a dbex.refine_many again and gives it a page of its own,
                                 run/stills/000017_name/dbex.html, to which the overview leads

options:
  -c, --show-config        show all parameters with their defaults and what they mean
  -a, --attributes-level N with -c: 0 without explanations, 2 with types
  -h, --help               show this
  --version                show the version
"""


def run() -> int:
    """The console script: exit status 0, 1 for bad input, 130 when interrupted."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError."""
    if answered(COMMAND, HELP, report_scope, arguments):
        return 0
    report(arguments)
    return 0


def report(arguments: Sequence[str]) -> None:
    """Write the pages of the run that the arguments name."""
    folder, others = folder_and_others(arguments)
    parameters, _ = fetched(report_scope(), others)
    name = parameters.output.html
    if name is None or Path(name).name != name or Path(name).suffix != ".html":
        raise BadInput(f"output.html={name}: expected a name that ends in .html, of a file in {folder}")
    from dbex.cli.pages import pages_of
    from dbex.report.page import write_page

    only = None
    if parameters.still is not None:
        only = f"{refined_again(folder, parameters.still, name)}/{name}"
    for place, page in pages_of(folder, name).items():
        if only in (None, place) or "/" not in place:
            write_page(page(), folder / place)
            print(folder / place)


def refined_again(folder: Path, number: int, name: str) -> str:
    """Refine a still of the sweep in `folder` as it did, into a folder of its own there; gives that folder."""
    from dbex.batch.ledger import FILE, Ledger
    from dbex.batch.sweep import asked_before
    from dbex.batch.task import prepare, results
    from dbex.cli.pages import STILLS

    if not (folder / FILE).is_file():
        raise BadInput(f"still={number} is for the output.directory of a dbex.refine_many: {folder} holds no {FILE}")
    with closing(Ledger(folder)) as ledger:
        entry = entry_of(ledger, number)
        asked, task = asked_before(ledger), ledger.task(entry.key)
    prepare(asked.threads)
    began = time.perf_counter()
    still_name, found = results(task, asked.shared, asked.settings)[entry.lattice]
    if isinstance(found, Exception):
        raise BadInput(f"still {number}, {still_name or entry.experiments}, cannot be refined: {found}") from found
    return f"{STILLS}/{write_run(folder / STILLS, number, found, asked, name, time.perf_counter() - began)}"


def entry_of(ledger: "Ledger", number: int) -> Any:
    """The still of a number; raises BadInput."""
    total = 0
    for entry in ledger.entries():
        if entry.number == number:
            return entry
        total += 1
    raise BadInput(f"still={number}: expected 0 to {total - 1}, the numbers in stills.csv")


def write_run(beside: Path, number: int, refined: "Refined", asked: Any, name: str, seconds: float) -> str:
    """Write what dbex.refine writes of a still into a folder of its own; gives the folder's name."""
    from dbex.cli.refine import folder_name, write_still
    from dbex.io.atomic import staged
    from dbex.io.record import Run

    folder = f"{number:06d}_{folder_name(refined.still.name)}"
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    command = f"{COMMAND} {beside.parent} still={number}"
    with staged(beside / folder) as staging:
        write_still(refined, staging, Run(command, "", asked.settings, now), name, str(beside / folder),
                    {"refining": seconds})  # fmt: skip
    return folder


if __name__ == "__main__":
    sys.exit(run())
