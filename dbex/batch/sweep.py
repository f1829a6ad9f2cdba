"""Many stills, each refined by itself: hands the tasks of a ledger to an engine until none is left, and loses none.

In the folder of a run lie the ledger, `spool` with a file for each result, and `lock`, which the one process holds that
hands out the work.
"""

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dbex.batch.enlist import Pair, tasks_of
from dbex.batch.executors import Engine
from dbex.batch.ledger import FILE, WITH_RESULT, Ledger, Outcome, Pace, State, Task
from dbex.batch.task import work
from dbex.data_load import Shared
from dbex.errors import BadInput
from dbex.io.record import sha256, versions
from dbex.io.spool import told_of
from dbex.refinement.settings import Settings

LOCK = "lock"
#: The files that all stills share.
FILES = ("structure_factors", "mask", "sigma_map", "noise")
#: How long to wait for a result before the pace is told again, s.
PATIENCE_S = 1.0


@dataclass(frozen=True)
class Asked:
    """What is done to every still: the files and numbers that all share, the settings, and threads of a worker, which
    change nothing of the result."""

    shared: Shared
    settings: Settings
    threads: int = 1

    def identity(self) -> dict[str, Any]:
        """All that a result depends on beside the still itself, files by the hash of their bytes."""
        shared = asdict(self.shared)
        for name in FILES:
            shared[name] = sha256(shared[name]) if shared[name] else None
        return {**shared, **asdict(self.settings), "version of dbex": versions()["dbex"]}


@contextmanager
def opened(folder: Path) -> Iterator[Ledger]:
    """The ledger of the run in `folder`, which is made where it is absent, for this process alone.

    Raises BadInput where the folder holds something else or another process is at work in it.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"output.directory={folder} is a file: expected a folder or a new name")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE).exists() and not (folder / LOCK).exists():
        raise BadInput(
            f"output.directory={folder} holds files but no sweep: expected a new name or the folder of a sweep"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(
                f"another process is at work in {folder}: wait for it or interrupt it (dbex.status {folder} names it)"
            ) from error
        with closing(Ledger(folder)) as ledger:
            yield ledger


def at_work(folder: Path) -> bool:
    """Whether a process of this machine is at work in the folder of a run."""
    with (folder / LOCK).open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def begin(folder: Path, ledger: Ledger, pairs: list[Pair], asked: Asked) -> None:
    """Bring the ledger up to date: the stills of these files, and what of them is still to be done.

    A still that was at work when its run was killed is done where its result is there; it waits where not, as do those
    that were lost. Raises BadInput where another refinement was asked for before.
    """
    identity, before = asked.identity(), ledger.fact("asked")
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in identity.items()}
    if before is not None and before != plain:
        differ = [name for name in plain if before.get(name) != plain[name]]
        changes = ", ".join(f"{name} was {before.get(name)} and is {plain[name]}" for name in differ)
        raise BadInput(
            f"the sweep in {folder} was begun with other parameters ({changes}): give those to go on with it, "
            "or another output.directory to begin anew"
        )
    ledger.remember("asked", plain)
    ledger.remember("shared", asdict(asked.shared))
    ledger.remember("settings", asdict(asked.settings))
    ledger.enlist(tasks_of(pairs))
    ledger.remember("began", time.time())
    ledger.remember("owner", f"process {os.getpid()} on {platform.node()}")
    for state in (State.RUNNING, State.LOST, *WITH_RESULT):
        for task in ledger.tasks(state):
            recover(folder, ledger, task, state)


def asked_before(ledger: Ledger) -> Asked:
    """What the run of a ledger was asked to do. Raises BadInput for the ledger of an earlier version."""
    shared, settings = ledger.fact("shared"), ledger.fact("settings")
    if shared is None or settings is None:
        raise BadInput(f"{ledger.path} is of an earlier version: give its dbex.refine_many command once more")
    plain: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    return Asked(Shared(**shared), Settings(**plain))


def recover(folder: Path, ledger: Ledger, task: Task, state: State) -> None:
    """Settle a task that an earlier run left: by its result if that is there."""
    file = result_file(folder, task.key)
    if not file.is_file():
        ledger.renew(task)
    elif state not in WITH_RESULT:
        names = Outcome.__dataclass_fields__
        told = [{name: still[name] for name in names} for still in told_of(file)]
        ledger.end(task, [Outcome(**still | {"state": State(still["state"])}) for still in told])


def result_file(folder: Path, key: str) -> Path:
    """Where the result of a task lies."""
    return folder / "spool" / key[:3] / f"{key}.zip"


def sweep(folder: Path, ledger: Ledger, engine: Engine, asked: Asked, tell: Callable[[Pace], None]) -> None:
    """Do all that waits; at most `engine.ahead` tasks are handed out at once.

    A task whose worker was lost waits again, up to ATTEMPTS times in all. Raises OSError where the disk is full: what
    is done is kept.
    """
    pending: dict[Future[list[Outcome]], Task] = {}
    while True:
        for task in ledger.take(engine.ahead - len(pending)):
            file = result_file(folder, task.key).absolute()
            pending[engine.submit(work, task, asked.shared, asked.settings, asked.threads, file)] = task
        tell(ledger.pace())
        if not pending:
            return
        done, _ = wait(pending, PATIENCE_S, FIRST_COMPLETED)
        for future in sorted(done, key=lambda future: future.exception() is not None):
            settle(ledger, pending.pop(future), future, engine.losses)


def settle(
    ledger: Ledger, task: Task, future: "Future[list[Outcome]]", losses: tuple[type[BaseException], ...]
) -> None:
    """Write down how a task ended; raises what is neither its own fault nor its worker's."""
    error = future.exception()
    if error is None:
        ledger.end(task, future.result())
    elif isinstance(error, losses):
        ledger.give_back(task, " ".join(str(error).split()))
    else:
        raise error
