"""dbex.refine_joint: refines all stills of an experiment list jointly, for what they share.

What takes time to import is imported where it is used, so that help and complaints come at once.
"""

import fcntl
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbex.cli.console import Log, started
from dbex.cli.engines import engine_of, led
from dbex.cli.joint_amplitudes import refined_amplitudes
from dbex.cli.joint_results import Ending, lines_of, write_joint
from dbex.cli.parameters import READING, absolute, fetched, joint_scope, require_files, settings_of, shared_of
from dbex.cli.questions import answered
from dbex.cli.refine import run_of
from dbex.errors import BadInput
from dbex.io.atomic import staged
from dbex.memory import keep_memory

if TYPE_CHECKING:
    from dbex.batch.executors import Engine
    from dbex.data_load import Stills
    from dbex.joint.shared import Units
    from dbex.joint.solve import Visits
    from dbex.refinement.settings import Settings
    from dbex.still import Still

COMMAND = "dbex.refine_joint"
HELP = """\
usage: dbex.refine_joint stills.expt stills.refl structure.mtz mask=mask.pkl [key=value ...] [parameters.phil]
       dbex.refine_joint run [key=value ...]

Refines all stills of an experiment list jointly against their raw pixels: the detector, and on request wavelength and
cell, are the same for all; orientation, scale and widths are each still's own. Given the folder of a sweep of
dbex.refine_many it takes the stills that were refined there, from the crystals found and with the files named there.

  dbex.refine_joint stills.expt stills.refl structure.mtz mask=mask.pkl refine.detector=distance,shift,tilt nproc=2
  dbex.refine_joint run refine.detector_unit=panel nproc=16

A run that was cut short goes on from the stills that it had begun when the same command is given again.

options:
  -c, --show-config        show all parameters with their defaults and what they mean
  -a, --attributes-level N with -c: 0 without explanations, 2 with types
  -h, --help               show this
  --version                show the version

Results, in output.directory (joint by default, run/joint for a sweep), which appears only once all is complete:
  joint.expt, joint.refl        every still and its reflections, updated, for DIALS
  detector.expt                 beam and detector, for dials.import reference_geometry=detector.expt
  dbex.html                     the report: what is shared, every still, what was merged, for a browser
  joint.json                    what is shared with esds and covariance, a table of the stills, figures of merging
  structure_factors.mtz         with refine.structure_factors=apart|merged: |F|² of all stills together
  unmerged.mtz, merged.mtz      full intensities: all observations, a batch a still; their means, Friedel mates apart
  dbex.json, dbex.log           how the run was started, with which programs; what was told on the way

exit status: 0 when all stills took part, 1 when some were left out (joint.json says why) or for bad input.
"""


#: Where results go unless said otherwise; what makes a folder that of a sweep, and where it tells how its stills ended.
DIRECTORY, LEDGER, TABLE = "joint", "ledger.sqlite", "stills.csv"
#: A level of the detector's hierarchy below which there is none.
EVERY_PANEL = 1000


def run() -> int:
    """The console script: 0 when all stills took part, 1 for less or for bad input, 130 when interrupted."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError for what cannot be read or written."""
    if answered(COMMAND, HELP, joint_scope, arguments):
        return 0
    return refine(arguments)


def refine(arguments: Sequence[str]) -> int:
    """Refine the stills that the arguments name; 1 when some of them were left out, else 0."""
    sweep, others = sweep_among(arguments)
    parameters, modified = fetched(joint_scope(), others)
    if sweep is None:
        require_files(parameters, COMMAND)
    else:
        begin_with_sweep(parameters, sweep)
    settings = settings_of(parameters, parameters.refine.shot_beam)
    refuse_degenerate(parameters.refine)

    def lead(engine: "Engine | None") -> int:
        with staged(parameters.output.directory) as staging, closing(Log(staging / "dbex.log")) as log:
            log.line(f"{COMMAND} {metadata.version('dbex')}\n")
            log.line(f"The following parameters have been modified:\n\n{modified}\n")
            run = run_of(arguments, modified, settings, COMMAND)
            left_out = refine_into(staging, parameters, sweep, run, log, engine)
        print(f"results in {parameters.output.directory}")
        return 1 if left_out else 0

    return led(parameters, lead)


def sweep_among(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The folder of a sweep that the arguments name, if any, and all other arguments. Raises BadInput."""
    folders = [argument for argument in arguments if "=" not in argument and Path(argument).is_dir()]
    if len(folders) > 1:
        raise BadInput(f"{' and '.join(folders)} are folders: expected one, that of a sweep of dbex.refine_many")
    if folders and not (Path(folders[0]) / LEDGER).is_file():
        raise BadInput(f"{folders[0]} holds no {LEDGER}: expected the folder of a sweep of dbex.refine_many")
    return Path(folders[0]) if folders else None, [argument for argument in arguments if argument not in folders]


def begin_with_sweep(parameters: Any, sweep: Path) -> None:
    """Set what follows from the sweep: its stills stand near, results go into its folder. Raises BadInput for what the
    sweep has said already."""
    files = parameters.input
    given = {
        **{f"input.{name}": getattr(files, name) for name in ("experiments", "reflections", "structure_factors")},
        **{name: getattr(parameters, name) for name in READING},
    }
    twice = [name for name, value in given.items() if value is not None]
    if twice:
        raise BadInput(f"{twice[0]} is given beside {sweep}, a sweep that says it already: leave it out")
    if parameters.output.directory == DIRECTORY:
        parameters.output.directory = str(sweep / DIRECTORY)
    if parameters.refine.start == "auto":
        parameters.refine.start = "near"


def refuse_degenerate(refine: Any) -> None:
    """Raise BadInput where wavelength and cell move together: as far as all cells go with it, no spot moves."""
    together = "wavelength" in refine.beam or ("wavelength" in refine.shot_beam and refine.cell == "still")
    if together and "cell" in refine.crystal:
        raise BadInput(
            "wavelength and cell lengths scale together without moving a spot: expected one of them held; leave cell "
            "out of refine.crystal, or refine wavelengths from shot to shot (refine.shot_beam) with refine.cell=shared"
        )


def refine_into(staging: Path, parameters: Any, sweep: Path | None, run: Any, log: Log, engine: "Engine | None") -> int:
    """Refine all stills and write the results into `staging`; gives how many stills were left out."""
    from dbex.cli.passes import prepare
    from dbex.io.record import write_record
    from dbex.io.results import plain
    from dbex.joint.shared import Sharing
    from dbex.joint.solve import solve
    from dbex.joint.visits import Visitor
    from dbex.report.joint_page import joint_page
    from dbex.report.page import library_file, write_page

    if parameters.output.html:
        library_file()
    work_quietly(parameters.threads)
    refine = parameters.refine
    with kept_between_runs(parameters, run) as spool:
        stills, read, states = stills_to_refine(parameters, sweep, spool)
        if parameters.executor == "process":
            prepare(parameters.compile, len(stills), log)
        units = units_of(stills, refine)
        sharing = Sharing(tuple(refine.detector), tuple(refine.beam), refine.cell == "shared", units)
        detector, beam = stills.bench(0)
        settings = with_wavelength_prior(run.settings, refine, float(beam.wavelength_A))
        visitor = Visitor(read, settings, sharing, detector, spool)
        with visiting(parameters, spool, engine) as visits:
            joint = solve(visitor, range(len(stills)), beam, visits, refine.max_iterations, log.line)
            squares = None
            if refine.structure_factors != "known":
                joint, squares = refined_amplitudes(refine, joint, visitor, visits, stills.amplitudes, log.line)
            models = fresh_folder(spool / "models")
            tasks = [(place, joint.task(place)) for place in range(len(joint.begun))]
            ended = list(visits(Ending(visitor, models), tasks))
        content = write_joint(staging, models, visitor, joint, ended, run, states, squares)
    if parameters.output.html:
        write_page(joint_page(plain(content)), staging / parameters.output.html)
    for line in lines_of(content):
        log.line(line)
    write_record({key: content[key] for key in ("command", "modified_parameters", "settings", "versions")}, staging)
    return len(joint.left_out)


def stills_to_refine(
    parameters: Any, sweep: Path | None, spool: Path
) -> tuple[Any, "Callable[[int], Still]", dict[str, Any] | None]:
    """The stills, how one of them is read in whatever process, and of a sweep how many stills ended how."""
    from dbex.batch.swept import swept_stills
    from dbex.data_load import StillFiles

    if sweep is not None:
        swept, states = swept_stills(sweep, (spool / "stills.jsonl").absolute())
        return swept, swept.read, {"folder": str(sweep.resolve()), "states": states}
    given = parameters.input
    files = StillFiles(absolute(given.experiments), absolute(given.reflections), shared_of(parameters))
    return files.stills(), files.read, None


@contextmanager
def kept_between_runs(parameters: Any, run: Any) -> Iterator[Path]:
    """The folder in which the stills' parts lie, beside the results: it vanishes when the block ends well, and is found
    again by the same command when it was cut short. Raises BadInput where another process works in it."""
    from dbex.io.record import sha256

    sweep, others = sweep_among(shlex.split(run.command)[1:])
    target = Path(parameters.output.directory).resolve()
    spool = target.with_name(f".{target.name}.stills")
    spool.mkdir(parents=True, exist_ok=True)
    named = [*(name.rpartition("=")[2] for name in others), *([] if sweep is None else [str(sweep / TABLE)])]
    files = [name for name in named if Path(name).is_file()]
    asked = json.dumps([run.command, *(sha256(name) for name in files), metadata.version("dbex")])
    with (spool.with_name(f".{target.name}.lock")).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"another process refines into {target}: wait for it, or give another name") from error
        known = spool / "asked.json"
        if not known.is_file() or known.read_text(encoding="utf-8") != asked:
            fresh_folder(spool)
            known.write_text(asked, encoding="utf-8")
        yield spool
        shutil.rmtree(spool)
        Path(lock.name).unlink()


def fresh_folder(folder: Path) -> Path:
    """A folder, new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def units_of(stills: "Stills", refine: Any) -> "Units | None":
    """The parts of the detector that move by themselves, None for the detector as a whole. Raises BadInput."""
    from dbex.joint.shared import Units

    if refine.detector_unit == "detector":
        return None
    level = refine.detector_level if refine.detector_unit == "group" else EVERY_PANEL
    groups = stills.panel_groups(0, level)
    if len(groups) < 2:
        raise BadInput(
            f"refine.detector_unit={refine.detector_unit} finds one unit in the detector: expected several; leave it "
            "out, or give another refine.detector_level"
        )
    names, panels = zip(*groups, strict=True)
    return Units(panels, names, refine.unit_shift, refine.unit_tilt)


def with_wavelength_prior(settings: "Settings", refine: Any, wavelength_A: float) -> "Settings":
    """The settings with a prior of wavelengths that move from shot to shot."""
    if "wavelength" not in refine.shot_beam:
        return settings
    return replace(settings, priors={"wavelength": refine.wavelength_spread * wavelength_A})


def work_quietly(threads: int) -> None:
    """Set up a process that visits stills."""
    from torch import set_num_threads

    set_num_threads(threads)
    keep_memory()


@contextmanager
def visiting(parameters: Any, folder: Path, engine: "Engine | None") -> "Iterator[Visits]":
    """How stills are visited: here, or by the engine that was asked for, results in the order of the tasks."""
    from dbex.batch.visiting import Visiting

    if parameters.executor == "process" and parameters.nproc == 1:
        yield map
        return
    with engine_of(parameters, folder, engine) as started:
        yield Visiting(started, parameters.threads)


if __name__ == "__main__":
    sys.exit(run())
