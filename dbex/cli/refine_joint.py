"""dbex.refine_joint: refines all stills of an experiment list jointly, for what they share.

What takes time to import is imported where it is used, so that help and complaints come at once.
"""

import multiprocessing
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbex.cli.console import Log, started
from dbex.cli.parameters import interpret, joint_scope, settings_of
from dbex.cli.refine import run_of
from dbex.errors import BadInput
from dbex.io.atomic import staged
from dbex.memory import give_back_memory, keep_memory

if TYPE_CHECKING:
    from dbex.joint.shared import Common
    from dbex.joint.solve import Joint, Visits
    from dbex.joint.visits import Visitor
    from dbex.observations import Observations
    from dbex.refinement.settings import Settings
    from dbex.still import Floats

COMMAND = "dbex.refine_joint"
HELP = """\
usage: dbex.refine_joint stills.expt stills.refl structure.mtz mask=mask.pkl [key=value ...] [parameters.phil]

Refines all stills of an experiment list jointly against their raw pixels: the detector, and on request wavelength and
cell, are the same for all; orientation, scale and widths are each still's own.

  dbex.refine_joint stills.expt stills.refl structure.mtz mask=mask.pkl refine.detector=distance,shift,tilt nproc=2

options:
  -c, --show-config        show all parameters with their defaults and what they mean
  -h, --help               show this
  --version                show the version

Results, in output.directory (joint by default), which appears only once all is complete:
  joint.expt, joint.refl        every still and its reflections, updated, for DIALS
  detector.expt                 beam and detector, for dials.import reference_geometry=detector.expt
  joint.json                    what is shared with esds and covariance, a table of the stills, figures of merging
  unmerged.mtz, merged.mtz      full intensities: all observations, a batch a still; their means, Friedel mates apart
  dbex.json, dbex.log           how the run was started, with which programs; what was told on the way

exit status: 0 when all stills took part, 1 when some were left out (joint.json says why) or for bad input.
"""


@dataclass(frozen=True)
class Ended:
    """A still of the joint solution: what the table tells of it, its cell and its intensities."""

    told: dict[str, Any]
    cell: tuple[float, ...]
    found: "Observations"


@dataclass(frozen=True)
class Ending:
    """Concludes stills and writes their models into folders of their own."""

    visitor: "Visitor"
    folder: Path

    def __call__(self, task: "tuple[int, tuple[int, Common, Floats]]") -> Ended:
        """The still of a task (its place in the results, the visitor's task)."""
        from dbex.io.results import write_models
        from dbex.joint.conclude import conclude
        from dbex.joint.merging import observations

        place, visit = task
        still, final = self.visitor.ended(visit)
        refined = conclude(still, self.visitor.settings, final)
        folder = self.folder / f"{place:07d}"
        folder.mkdir()
        write_models(refined, folder)
        cell = tuple(float(getattr(refined.crystal, f"cell_{n}")) for n in ("a", "b", "c", "alpha", "beta", "gamma"))
        told = {
            "index": still.index,
            "still": still.name,
            "figures": refined.figures,
            "estimates": [asdict(estimate) for estimate in refined.estimates],
            "left_out": refined.left_out,
        }
        found = observations(refined.boxes, place, refined.figures["esd_inflation"])
        give_back_memory()
        return Ended(told, cell, found)


def run() -> int:
    """The console script: 0 when all stills took part, 1 for less or for bad input, 130 when interrupted."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError for what cannot be read or written."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
    elif "--version" in arguments:
        print(f"{COMMAND} {metadata.version('dbex')}")
    elif {"-c", "--show-config"}.intersection(arguments):
        joint_scope().show(attributes_level=1)
    else:
        return refine(arguments)
    return 0


def refine(arguments: Sequence[str]) -> int:
    """Refine the stills that the arguments name; 1 when some of them were left out, else 0."""
    parameters, modified = interpret(arguments, joint_scope(), COMMAND)
    settings = settings_of(parameters, parameters.refine.shot_beam)
    refuse_degenerate(parameters.refine)
    with staged(parameters.output.directory) as staging, closing(Log(staging / "dbex.log")) as log:
        log.line(f"{COMMAND} {metadata.version('dbex')}\n")
        log.line(f"The following parameters have been modified:\n\n{modified}\n")
        run = run_of(arguments, modified, settings, COMMAND)
        left_out = refine_into(staging, parameters, run, log)
    print(f"results in {parameters.output.directory}")
    return 1 if left_out else 0


def refuse_degenerate(refine: Any) -> None:
    """Raise BadInput where wavelength and cell move together: as far as all cells go with it, no spot moves."""
    together = "wavelength" in refine.beam or ("wavelength" in refine.shot_beam and refine.cell == "still")
    if together and "cell" in refine.crystal:
        raise BadInput(
            "wavelength and cell lengths scale together without moving a spot: expected one of them held; leave cell "
            "out of refine.crystal, or refine wavelengths from shot to shot (refine.shot_beam) with refine.cell=shared"
        )


def refine_into(staging: Path, parameters: Any, run: Any, log: Log) -> int:
    """Refine all stills and write the results into `staging`; gives how many stills were left out."""
    from dbex.cli.passes import prepare
    from dbex.data_load import StillFiles
    from dbex.io.record import write_record
    from dbex.joint.shared import Sharing
    from dbex.joint.solve import solve
    from dbex.joint.visits import Visitor

    files = StillFiles(
        parameters.input.experiments,
        parameters.input.reflections,
        parameters.input.structure_factors,
        parameters.mask,
        parameters.mtz_columns,
        parameters.gain,
        parameters.sigma_readout,
        parameters.sigma_map,
        parameters.trusted_max,
        parameters.noise,
    )
    work_quietly(parameters.threads)
    refine = parameters.refine
    sharing = Sharing(tuple(refine.detector), tuple(refine.beam), refine.cell == "shared")
    stills = files.stills()
    prepare(parameters.compile, len(stills), log)
    detector, beam = stills.bench(0)
    spool = staging / "spool"
    spool.mkdir()
    visitor = Visitor(
        files.read, with_wavelength_prior(run.settings, refine, float(beam.wavelength_A)), sharing, detector, spool
    )
    with visiting(parameters.nproc, parameters.threads) as visits:
        joint = solve(visitor, range(len(stills)), beam, visits, refine.max_iterations, log.line)
        tasks = [(place, joint.task(place)) for place in range(len(joint.begun))]
        ended = list(visits(Ending(visitor, spool), tasks))
    content = write_joint(staging, spool, visitor, joint, ended, run)
    shutil.rmtree(spool)
    for line in lines_of(content):
        log.line(line)
    write_record({key: content[key] for key in ("command", "modified_parameters", "settings", "versions")}, staging)
    return len(joint.left_out)


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
def visiting(processes: int, threads: int) -> "Iterator[Visits]":
    """How stills are visited: here, or in so many processes side by side, results in the order of the tasks."""
    if processes == 1:
        yield map
        return
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(processes, context, initializer=work_quietly, initargs=(threads,)) as executor:
            yield executor.map
    except BrokenProcessPool as error:
        raise BadInput(
            f"one of the {processes} processes was killed: expected memory for all of them; give a smaller nproc"
        ) from error


def write_joint(
    staging: Path, spool: Path, visitor: "Visitor", joint: "Joint", ended: list[Ended], run: Any
) -> dict[str, Any]:
    """Write the files of the joint solution; gives the content of joint.json."""
    from dbex.io.record import provenance, write_json
    from dbex.io.results import write_composite, write_geometry
    from dbex.joint.conclude import conclude, shared_estimates
    from dbex.joint.outliers import OUTLIER_RULE

    still, final = visitor.ended(joint.task(0))
    refined = conclude(still, visitor.settings, final)
    shared, covariance = shared_estimates(joint, still, final)
    write_composite([spool / f"{place:07d}" for place in range(len(ended))], staging, "joint")
    write_geometry(refined, staging / "detector.expt")
    content = {
        "shared": [asdict(estimate) for estimate in shared],
        "covariance": covariance,
        "converged": joint.solution.converged,
        "message": joint.solution.message,
        "outlier_rule": OUTLIER_RULE,
        "stills": [
            {"id": place, "weight": weight, "pull": pull, "outlier": bool(weight < 1), "converged": told.converged}
            | end.told
            for place, (end, told, weight, pull) in enumerate(
                zip(ended, joint.state.visited, joint.state.weights, joint.state.pulls, strict=True)
            )
        ],
        "left_out": [{"index": b.index, "still": b.name, "reason": b.reason} for b in joint.left_out],
        "merging": merge(staging, ended, still.amplitudes, float(refined.beam.wavelength_A)),
        "steps": [{"round": number, **asdict(step)} for number, step in joint.steps],
        **provenance(run),
    }
    write_json(content, staging / "joint.json")
    return content


def merge(staging: Path, ended: list[Ended], amplitudes: Any, wavelength_A: float) -> dict[str, Any]:
    """Write unmerged.mtz and merged.mtz; gives the error of the model, and the agreement of random halves by
    shells of resolution, all last."""
    from dbex.io.merged import groups_of, in_asymmetric_unit, resolution_A, write_merged, write_unmerged
    from dbex.joint.merging import half_shells, known_squares, median_cell, merged, with_model_error
    from dbex.observations import together

    found, group_name = together([end.found for end in ended]), amplitudes.space_group
    cells = [end.cell for end in ended]
    cell = median_cell(cells)
    hkl, isym = in_asymmetric_unit(found.hkl, group_name)
    unique, group = groups_of(hkl, isym)
    squares = known_squares(found, group, len(unique), amplitudes)
    found, model_error = with_model_error(found, group)
    means = merged(found, group, len(unique))
    write_unmerged(staging / "unmerged.mtz", found, means.value[group], cells, wavelength_A, group_name)
    write_merged(staging / "merged.mtz", unique, means, cell, wavelength_A, group_name)
    shells = half_shells(found, group, len(unique), resolution_A(unique[:, :3], cell), squares)
    return {"relative_model_error": model_error, "shells": [asdict(shell) for shell in shells]}


def lines_of(content: dict[str, Any]) -> list[str]:
    """What was found, in a few lines."""
    lines = ["", f"{'shared':14}{'before':>14}{'after':>14}{'esd':>12}  unit"]
    lines += [
        f"{e['name']:14}{e['before']:14.5f}{e['after']:14.5f}{e['esd']:12.2g}  {e['unit']}" for e in content["shared"]
    ]
    lines.append("" if content["converged"] else f"not converged: {content['message']}")
    outliers = [
        f"{s['still']} ({s['pull']:.1f} esds, weight {s['weight']:.2f})" for s in content["stills"] if s["outlier"]
    ]
    lines.append(f"outliers ({content['outlier_rule']}): {', '.join(outliers) or 'none'}")
    lines += [f"left out: {left['still']}: {left['reason']}" for left in content["left_out"]]
    if content["merging"]["shells"]:
        whole = content["merging"]["shells"][-1]
        lines.append(
            f"merged {whole['d_max_A']:.2f} to {whole['d_min_A']:.2f} Å: CC½ {whole['cc_half']:.3f}, R of halves "
            f"{whole['r_half']:.3f} over {whole['reflections']} reflections seen {whole['multiplicity']:.1f} times"
        )
    return lines


if __name__ == "__main__":
    sys.exit(run())
