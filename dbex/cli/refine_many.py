"""dbex.refine_many: refines many stills, each by itself, in many processes, and goes on where it was interrupted.

What takes time to import is imported where it is used, so that help and complaints come at once.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from glob import glob, has_magic
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbex.cli.console import Log, complain, started
from dbex.cli.engines import engine_of, led
from dbex.cli.pace import PaceDisplay, counted, in_words
from dbex.cli.parameters import ENGINE_PHIL, fetched, refine_scope, require_files, settings_of, shared_of
from dbex.cli.questions import answered
from dbex.errors import BadInput

if TYPE_CHECKING:
    from dbex.batch.executors import Engine
    from dbex.batch.ledger import Ledger
    from dbex.batch.sweep import Asked

COMMAND = "dbex.refine_many"
HELP = """\
usage: dbex.refine_many *.expt *.refl structure.mtz mask=mask.pkl [nproc=N] [key=value ...] output.directory=run

Refines many stills, each by itself: those of all .expt, of one or more stills each, every .expt with its .refl. The
parameters are those of dbex.refine. File names may be quoted patterns, such as "shots/*.expt".

A run that was interrupted, killed or ran out of disk goes on when the same command is given again: no finished still is
done twice, none is lost. dbex.status run shows from elsewhere how far it is.

  dbex.refine_many indexed.expt indexed.refl structure.mtz mask=mask.pkl nproc=8 output.directory=run

options:
  -c, --show-config        show all parameters with their defaults and what they mean
  -a, --attributes-level N with -c: 0 without explanations, 2 with types
  -h, --help               show this
  --version                show the version

Results, in output.directory:
  refined_000.expt, .refl ...   the first thousand stills, those that were refined, for DIALS; and so on
  doubtful_000.expt, .refl ...  the same of stills whose fit is poor or has not converged
  dbex.html                     the report: outcomes, distributions, outliers, a table, for a browser
  stills.csv                    a row for every still: state, reason, figures, parameters with esds
  dbex.json                     the parameters, the files and the versions, and how many stills ended how
  dbex.log, ledger.sqlite       what happened when; seconds and memory of every still
  spool                         the single results, needed to go on: remove it when the run is over

exit status: 0 when every still was refined, 1 when some were not or for bad input, 130 when interrupted.
"""
#: So many stills that were not refined are told one by one; the table has all.
TOLD = 20


def run() -> int:
    """The console script."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError."""
    if answered(COMMAND, HELP, lambda: refine_scope(ENGINE_PHIL), arguments):
        return 0
    return refine_many(arguments)


def refine_many(arguments: Sequence[str]) -> int:
    """Refine the stills that the arguments name."""
    files, others = split(arguments)
    parameters, modified = fetched(refine_scope(ENGINE_PHIL), others)
    for ending, key in ((".expt", "experiments"), (".refl", "reflections")):
        files[ending] += [name for name in (getattr(parameters.input, key),) if name]
        setattr(parameters.input, key, files[ending][0] if files[ending] else None)
    require_files(parameters)
    from dbex.batch.enlist import pairs_of
    from dbex.batch.sweep import begin, opened
    from dbex.report.page import library_file

    pairs = pairs_of(files[".expt"], files[".refl"])
    asked, folder = asked_of(parameters), Path(parameters.output.directory)
    check_shared(asked, pairs)
    if parameters.output.html:
        library_file()

    def lead(ranks: "Engine | None") -> int:
        with opened(folder) as ledger, closing(Log(folder / "dbex.log", "a")) as log:
            log.line(f"{shlex.join([COMMAND, *arguments])}\n{COMMAND} {metadata.version('dbex')}\n")
            log.line(f"The following parameters have been modified:\n\n{modified}\n")
            begin(folder, ledger, pairs, asked)
            log.line(f"{counted(ledger.pace())}")
            return finished(folder, ledger, parameters, ranks, asked, modified, log)

    return led(parameters, lead)


def finished(
    folder: Path,
    ledger: "Ledger",
    parameters: Any,
    ranks: "Engine | None",
    asked: "Asked",
    modified: str,
    log: Log,
) -> int:
    """Do what is left of a run and write its results; gives the exit status."""
    from dbex.batch.compose import compose
    from dbex.batch.sweep import sweep
    from dbex.cli.passes import prepare
    from dbex.report.page import write_page

    try:
        if left := ledger.pace().left:
            if parameters.executor == "process":
                prepare(parameters.compile, left, log)
            with engine_of(parameters, folder, ranks) as engine, closing(PaceDisplay(log)) as display:
                sweep(folder, ledger, engine, asked, display)
        compose(folder, ledger)
        if parameters.output.html:
            from dbex.cli.pages import page_of_sweep

            write_page(page_of_sweep(folder, parameters.output.html), folder / parameters.output.html)
    except KeyboardInterrupt:
        log.failure(f"{COMMAND}: interrupted: {counted(ledger.pace())}; the same command goes on")
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{COMMAND}: {where}{error.strerror or error}: what is done is kept; mend this and repeat the command")
        return 1
    pace = ledger.pace()
    write_summary(folder, ledger, asked, modified)
    return tell_end(folder, ledger, log, counted(pace), pace.memory_MB)


def split(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The .expt and .refl files among the arguments, patterns expanded, and all other arguments."""
    files: dict[str, list[str]] = {".expt": [], ".refl": []}
    others = []
    for argument in arguments:
        ending = Path(argument).suffix
        if ending not in files or ("=" in argument and not Path(argument).exists()):
            others.append(argument)
        elif has_magic(argument) and not Path(argument).exists():
            found = sorted(glob(argument))
            if not found:
                raise BadInput(f"{argument} matches no file: expected the names of {ending} files")
            files[ending] += found
        else:
            if not Path(argument).is_file():
                raise BadInput(f"{argument}: no such file")
            files[ending].append(argument)
    return files, others


def asked_of(parameters: Any) -> "Asked":
    """What is done to every still."""
    from dbex.batch.sweep import Asked

    return Asked(shared_of(parameters), settings_of(parameters), parameters.threads)


def check_shared(asked: "Asked", pairs: Sequence[tuple[str, str]]) -> None:
    """Raise BadInput for what is wrong with the files that all stills share, before any is refined."""
    from dbex.io.experiments import read_experiments
    from dbex.io.masks import panel_shapes, read_map, read_mask
    from dbex.io.structure_factors import read_amplitudes

    read_amplitudes(asked.shared.structure_factors, asked.shared.mtz_columns)
    for experiments_file, _ in pairs:
        try:
            shapes = panel_shapes(read_experiments(experiments_file)[0].detector)
        except BadInput:
            continue
        if asked.shared.mask:
            read_mask(asked.shared.mask, shapes)
        if asked.shared.sigma_map:
            read_map(asked.shared.sigma_map, shapes)
        return


def write_summary(folder: Path, ledger: "Ledger", asked: "Asked", modified: str) -> None:
    """Write dbex.json."""
    from dbex.io.record import versions

    pace = ledger.pace()
    content = {
        "stills": pace.total,
        "states": {state.value: count for state, count in pace.counts.items()},
        "modified_parameters": modified,
        "asked": asked.identity(),
        "peak_memory_of_a_worker_MB": pace.memory_MB,
        "versions": versions(),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / "dbex.json").write_text(text + "\n", encoding="utf-8")


def tell_end(folder: Path, ledger: "Ledger", log: Log, counts: str, memory_MB: float) -> int:
    """Tell how the stills ended, those that were not refined first; gives the exit status."""
    from dbex.batch.ledger import State

    failed = [entry for entry in ledger.entries() if entry.outcome.state != State.REFINED]
    for entry in failed[:TOLD]:
        outcome = entry.outcome
        place = outcome.name or f"still {entry.experiment_id or 0} of {Path(entry.experiments).name}"
        log.failure(f"{COMMAND}: {place}: {outcome.state.value}: {' '.join(outcome.reason.split())}")
    if len(failed) > TOLD:
        log.failure(f"{COMMAND}: {len(failed) - TOLD} more were not refined: {folder}/stills.csv has all")
    log.line(f"{counts}; {in_words(memory_MB)} at most a worker; results in {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run())
