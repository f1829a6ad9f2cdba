"""What a worker does: reads one still, refines it, and leaves the result as one file."""

import errno
import functools
import math
import resource
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import set_num_threads

from dbex.batch.ledger import Outcome, State, Task
from dbex.data_load import Shared, StillFiles
from dbex.errors import BadInput
from dbex.io.spool import write_result
from dbex.memory import give_back_memory, keep_memory
from dbex.refinement.lattices import attempt, refine_lattices
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


def work(task: Task, shared: Shared, settings: Settings, threads: int, file: Path) -> list[Outcome]:
    """What becomes of the stills of a task, their result in `file` where one has any. Raises OSError where the disk is
    full.

    Whatever else goes wrong is told in the outcomes: one still never stops the run.
    """
    prepare(threads)
    began = time.perf_counter()
    places = max(len(task.experiment_ids), 1)
    found: list[tuple[str, Refined | Exception]]
    try:
        found = results(task, shared, settings)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        found = [("", error)] * places
    spent = (time.perf_counter() - began) / places
    outcomes = [outcome_of(name, result, spent) for name, result in found]
    lattices = [result for _, result in found if isinstance(result, Refined)]
    if lattices:
        write_result(file, lattices, told(outcomes, [result for _, result in found]))
    del found, lattices
    give_back_memory()
    return outcomes


def results(task: Task, shared: Shared, settings: Settings) -> list[tuple[str, Refined | Exception]]:
    """The stills of a task by name, each refined or with the reason why not. Raises BadInput."""
    stills = StillFiles(task.experiments, task.reflections, shared).stills()
    names = [stills.name(index) for index in task.experiment_ids]
    read = stills.read_lattices(task.experiment_ids)
    whole = [still for still in read if not isinstance(still, BadInput)]
    if len(whole) > 1:
        refined = iter(refine_lattices(whole, settings))
    else:
        refined = iter([attempt(refine_still, still, settings) for still in whole])
    found = [still if isinstance(still, BadInput) else next(refined) for still in read]
    return list(zip(names, found, strict=True))


def told(outcomes: list[Outcome], results: list[Refined | Exception]) -> list[dict[str, Any]]:
    """What is kept of each lattice beside its models: the outcome, its place among the results, the estimates."""
    entries: list[dict[str, Any]] = []
    for outcome, result in zip(outcomes, results, strict=True):
        entry = asdict(outcome) | {"id": None, "estimates": []}
        if isinstance(result, Refined):
            entry["id"] = sum(known["id"] is not None for known in entries)
            entry["estimates"] = [asdict(estimate) for estimate in result.estimates]
        entries.append(entry)
    return entries


@functools.cache
def prepare(threads: int) -> None:
    """Set this process up, once."""
    set_num_threads(threads)
    keep_memory()


def outcome_of(name: str, result: Refined | Exception, seconds: float) -> Outcome:
    """The outcome of a still that was refined, however well, or why it was not."""
    memory_MB = peak_memory_MB()
    if isinstance(result, BadInput):
        return Outcome(State.BAD_INPUT, name, "", str(result), {}, seconds, memory_MB)
    if isinstance(result, Exception):
        where = traceback.extract_tb(result.__traceback__)[-1]
        reason = f"{type(result).__name__}: {result} ({Path(where.filename).name} line {where.lineno}): a fault of dbex"
        return Outcome(State.LOST, name, "", reason, {}, seconds, memory_MB)
    verdict = result.verdict
    figures = {key: float(value) for key, value in result.figures.items() if math.isfinite(value)}
    return Outcome(STATES[verdict.state], name, verdict.state, "; ".join(verdict.reasons), figures, seconds, memory_MB)


def peak_memory_MB() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
