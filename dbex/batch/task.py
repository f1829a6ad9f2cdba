"""What a worker does: reads one still, refines it, and leaves the result as one file."""

import errno
import functools
import math
import resource
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import set_num_threads

from dbex.batch.ledger import Outcome, State, Task
from dbex.data_load import Stills
from dbex.errors import BadInput
from dbex.io.spool import write_result
from dbex.memory import give_back_memory, keep_memory
from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings
from dbex.still import Refined

#: The disk's complaints that no other still would escape: they end the run, which can go on later.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: The verdicts of dbex.refinement.verdict; `incomplete` agrees with the pixels too.
STATES = {
    "good": State.REFINED,
    "fair": State.REFINED,
    "incomplete": State.REFINED,
    "poor": State.POOR_FIT,
    "not converged": State.NOT_CONVERGED,
}


@dataclass(frozen=True)
class Shared:
    """What all stills of a run share: the files and numbers of dbex.data_load.read_stills, None where not given."""

    structure_factors: str
    mask: str | None = None
    mtz_columns: str | None = None
    gain: float | None = None
    sigma_readout: float | None = None
    sigma_map: str | None = None
    trusted_max: float | None = None


def work(task: Task, shared: Shared, settings: Settings, threads: int, file: Path) -> Outcome:
    """What becomes of one task, its result in `file` where it has one. Raises OSError where the disk is full.

    Whatever else goes wrong is told in the outcome: one still never stops the run.
    """
    prepare(threads)
    began = time.perf_counter()
    name = ""
    try:
        stills = stills_of(task.experiments, task.reflections, shared)
        (index,) = task.experiment_ids
        name = stills.name(index)
        refined = refine_still(stills.read(index), settings)
        outcome = outcome_of(refined, began)
        write_result(file, refined, asdict(outcome) | {"estimates": [asdict(item) for item in refined.estimates]})
    except BadInput as error:
        outcome = Outcome(State.BAD_INPUT, name, "", str(error), {}, time.perf_counter() - began, peak_memory_MB())
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name} line {where.lineno}): a fault of dbex"
        outcome = Outcome(State.LOST, name, "", reason, {}, time.perf_counter() - began, peak_memory_MB())
    give_back_memory()
    return outcome


@functools.cache
def prepare(threads: int) -> None:
    """Set this process up, once."""
    set_num_threads(threads)
    keep_memory()


@functools.lru_cache(maxsize=1)
def stills_of(experiments: str, reflections: str, shared: Shared) -> Stills:
    """The stills of one pair of files: a worker reads a composite file once."""
    return Stills(
        experiments,
        reflections,
        shared.structure_factors,
        shared.mask,
        shared.mtz_columns,
        shared.gain,
        shared.sigma_readout,
        shared.sigma_map,
        shared.trusted_max,
    )


def outcome_of(refined: Refined, began: float) -> Outcome:
    """The outcome of a still that was refined, however well."""
    return Outcome(
        STATES[refined.verdict.state],
        refined.still.name,
        refined.verdict.state,
        "; ".join(refined.verdict.reasons),
        {name: float(value) for name, value in refined.figures.items() if math.isfinite(value)},
        time.perf_counter() - began,
        peak_memory_MB(),
    )


def peak_memory_MB() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
