"""dbex.refine: refines one still, or several one after the other, against their pixels.

What takes time to import is imported where it is used, so that help and complaints come at once.
"""

import datetime
import json
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbex.cli.console import Log, Progress, started
from dbex.cli.parameters import interpret, refine_scope, settings_of
from dbex.cli.questions import answered
from dbex.errors import BadInput
from dbex.io.atomic import MARKER, staged
from dbex.memory import give_back_memory, keep_memory

if TYPE_CHECKING:
    from dbex.data_load import Stills
    from dbex.io.record import Run
    from dbex.still import Refined, Still

COMMAND = "dbex.refine"
HELP = """\
usage: dbex.refine still.expt still.refl structure.mtz mask=mask.pkl [key=value ...] [parameters.phil]

Refines a diffraction still against its raw pixels: crystal, and on request detector and beam. Several stills in one
.expt are refined one after the other, several lattices on one image together.

  dbex.refine still.expt still.refl structure.mtz mask=mask.pkl refine.detector=distance,shift

options:
  -c, --show-config        show all parameters with their defaults and what they mean
  -a, --attributes-level N with -c: 0 without explanations, 2 with types
  -h, --help               show this
  --version                show the version

Results, in output.directory (refined by default), which appears only once all is complete:
  refined.expt, refined.refl   the models and the reflections, for DIALS
  dbex.json                    parameters with esds, figures of merit, what was left out and why, versions
  dbex.html                    the report: all of it in figures and words, for a browser
  spots.png                    the worst, median and best spots: data, model, residual
  pixels.h5                    every pixel and every box, to recompute any figure
  dbex.log                     what was told on the way
For several stills the refined.expt and refined.refl hold all of them, dbex.json lists them, and each has a folder of
its own, such as 0003_name, with all of the above.

exit status: 0 when every still was refined, however well (dbex.json has the verdict), 1 for bad input.
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one still: its folder, what the list of several tells of it and the lines to end with; or the
    reason why it has none. Everything else is on the disk, and not in memory while the next stills are refined."""

    index: int
    name: str
    folder: str | None = None
    told: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    reason: str | None = None


def run() -> int:
    """The console script: exit status 0 when refined, 1 for bad input, 130 when interrupted."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError for what cannot be read or written."""
    if answered(COMMAND, HELP, refine_scope, arguments):
        return 0
    return refine(arguments)


def refine(arguments: Sequence[str]) -> int:
    """Refine the stills that the arguments name; 1 when one of several could not be, else 0."""
    parameters, modified = interpret(arguments)
    settings = settings_of(parameters)
    target = parameters.output.directory
    if parameters.output.html:
        from dbex.report.page import library_file

        library_file()
    interruptible = signal.getsignal(signal.SIGINT)
    try:
        with staged(target) as staging:
            with closing(Log(staging / "dbex.log")) as log:
                log.line(f"{COMMAND} {metadata.version('dbex')}\n")
                log.line(f"The following parameters have been modified:\n\n{modified}\n")
                lines, failed = refine_into(staging, parameters, run_of(arguments, modified, settings), log)
                for line in lines:
                    log.note(line)
            # What is left takes milliseconds and must not stop half-way.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, interruptible)
    print("\n".join(lines))
    return 1 if failed else 0


def run_of(arguments: Sequence[str], modified: str, settings: Any, command: str = COMMAND) -> "Run":
    """The record of what was asked."""
    from dbex.io.record import Run

    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return Run(shlex.join([command, *arguments]), modified, settings, started)


def refine_into(staging: Path, parameters: Any, run: "Run", log: Log) -> tuple[tuple[str, ...], bool]:
    """Refine every still into a folder of its own in `staging`, and give it its final shape.

    Gives the lines to end with, and whether a still failed. Raises BadInput when none could be refined.
    """
    from torch import set_num_threads

    from dbex.io.record import write_record

    set_num_threads(parameters.threads)
    keep_memory()
    outcomes = sorted(outcomes_of(staging, parameters, run, log), key=lambda outcome: outcome.index)
    done = [outcome for outcome in outcomes if outcome.folder]
    if len(outcomes) == 1 and not done:
        raise BadInput(str(outcomes[0].reason))
    for outcome in outcomes:
        if outcome.reason:
            log.failure(f"{COMMAND}: {outcome.name} is left out: {outcome.reason}")
    if not done:
        raise BadInput(f"none of the {len(outcomes)} stills in {parameters.input.experiments} could be refined")
    if len(outcomes) > 1:
        return finish_several(outcomes, staging, parameters, run), len(done) < len(outcomes)
    only = staging / str(done[0].folder)
    for file in only.iterdir():
        shutil.move(file, staging / file.name)
    only.rmdir()
    write_record(json.loads((staging / MARKER).read_text(encoding="utf-8")), staging)
    return done[0].lines, False


def outcomes_of(staging: Path, parameters: Any, run: "Run", log: Log) -> Iterator[Outcome]:
    """Read and refine one image after the other; a still that cannot be used is told in a sentence, the next ones go
    on."""
    from dbex.cli.passes import prepare
    from dbex.data_load import read_stills

    stills = read_stills(
        parameters.input.experiments,
        parameters.input.reflections,
        parameters.input.structure_factors,
        parameters.mask,
        mtz_columns=parameters.mtz_columns,
        gain=parameters.gain,
        sigma_readout=parameters.sigma_readout,
        sigma_map=parameters.sigma_map,
        trusted_max=parameters.trusted_max,
        noise=parameters.noise,
    )
    prepare(parameters.compile, len(stills), log)
    for indices in stills.images():
        outcomes = outcomes_on_image(indices, stills, staging, parameters, run, log)
        give_back_memory()
        yield from outcomes


def outcomes_on_image(
    indices: Sequence[int], stills: "Stills", staging: Path, parameters: Any, run: "Run", log: Log
) -> list[Outcome]:
    """What becomes of the lattices on an image; nothing of them stays while the next image is read."""
    began = time.perf_counter()
    found = dict(zip(indices, stills.read_lattices(indices), strict=True))
    readable = {index: still for index, still in found.items() if not isinstance(still, BadInput)}
    outcomes = [
        Outcome(i, f"still {i}", reason=str(still)) for i, still in found.items() if isinstance(still, BadInput)
    ]
    read = time.perf_counter()
    refined = refine_image(readable, run.settings, log) if readable else {}
    seconds = {"reading": read - began, "refining": time.perf_counter() - read}
    for index, result in refined.items():
        if isinstance(result, BadInput):
            outcomes.append(Outcome(index, readable[index].name, reason=str(result)))
        else:
            outcomes.append(written(index, result, staging, parameters, run, log, seconds))
    return outcomes


def refine_image(stills: "Mapping[int, Still]", settings: Any, log: Log) -> "dict[int, Refined | BadInput]":
    """Refine the stills of one image by their indices; in the place of one that cannot be refined stands why."""
    from dbex.refinement.lattices import attempt, refine_lattices
    from dbex.refinement.refine import refine_still

    for still in stills.values():
        log.line(f"{still.name}: {len(still.observed)} indexed reflections, panels: {len(still.detector)}")
    first, *more = stills.values()
    with closing(Progress(log, first.name)) as progress:
        if more:
            results = refine_lattices([first, *more], settings, progress)
        else:
            results = [attempt(refine_still, first, settings, progress)]
    return dict(zip(stills, results, strict=True))


def written(
    index: int,
    refined: "Refined",
    staging: Path,
    parameters: Any,
    run: "Run",
    log: Log,
    seconds: Mapping[str, float],
) -> Outcome:
    """Write the folder of a refined still, and tell of it in the log."""
    from dbex.report.summary import background, left_out, table, terms

    still = refined.still
    folder = staging / f"{index:04d}_{folder_name(still.name)}"
    folder.mkdir()
    log.line(f"\n{table(refined)}\n\n{left_out({**still.left_out, **refined.left_out})}")
    log.line(background(refined.background))
    log.line(terms(refined))
    log.line(f"least determined: {refined.worst_direction}\n")
    content = write_still(refined, folder, run, parameters.output.html, parameters.output.directory, seconds)
    told = {name: content[name] for name in ("verdict", "figures")}
    return Outcome(index, still.name, folder.name, told, content["summary"])


def folder_name(name: str) -> str:
    """A still's name as a folder can be called."""
    return re.sub(r"[^\w.-]+", "_", Path(name).name).strip("._") or "still"


def write_still(
    refined: "Refined", folder: Path, run: "Run", page: str | None, target: str, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Write all files of a refined still into `folder`, which becomes `target`, and give the content of dbex.json;
    `page` is what the report is called, None for none."""
    from dbex.io.finished import result_of
    from dbex.io.record import record, write_record
    from dbex.io.results import write_results
    from dbex.report.figures import write_picture
    from dbex.report.page import write_page
    from dbex.report.still_page import still_page
    from dbex.report.summary import summary

    began = time.perf_counter()
    write_results(refined, folder)
    content = record(refined, run)
    content["summary"] = summary(refined, target)
    write_picture(result_of(refined, content), "spots.png", folder)
    content["seconds"] |= {**seconds, "writing": time.perf_counter() - began}
    if page:
        write_page(still_page(result_of(refined, content)), folder / page)
    write_record(content, folder)
    return content


def finish_several(outcomes: Sequence[Outcome], staging: Path, parameters: Any, run: "Run") -> tuple[str, ...]:
    """Write what several stills have in common, and give the lines to end with."""
    from dbex.io.record import provenance, write_record
    from dbex.io.results import write_composite

    write_composite([staging / outcome.folder for outcome in outcomes if outcome.folder], staging)
    refined = [outcome.index for outcome in outcomes if outcome.folder]
    stills = [
        {
            "index": outcome.index,
            "id": refined.index(outcome.index) if outcome.folder else None,
            "still": outcome.name,
            "folder": outcome.folder,
            "verdict": outcome.told.get("verdict"),
            "figures": outcome.told.get("figures"),
            "failure": outcome.reason,
        }
        for outcome in outcomes
    ]
    content = {**provenance(run), "stills": stills}
    if parameters.output.html:
        from dbex.cli.pages import page_of_several
        from dbex.report.page import write_page

        write_page(page_of_several(staging, content, parameters.output.html), staging / parameters.output.html)
    write_record(content, staging)
    lines = [f"{outcome.name}: {outcome.lines[0] if outcome.folder else 'not refined'}" for outcome in outcomes]
    return (*lines, f"{len(refined)} of {len(outcomes)} stills refined; results in {parameters.output.directory}")


if __name__ == "__main__":
    sys.exit(run())
