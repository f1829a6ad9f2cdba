"""The engine that a command was asked for: who does the work of many stills."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbex.errors import BadInput

if TYPE_CHECKING:
    from dbex.batch.executors import Engine


def led(parameters: Any, lead: "Callable[[Engine | None], int]") -> int:
    """The exit status of `lead`; of the ranks of an MPI job the first leads, with the others as its engine, and these
    work until it has done. Raises BadInput."""
    if parameters.executor != "mpi":
        return lead(None)
    from dbex.batch.executors import mpi_ranks

    with mpi_ranks() as engine:
        return 0 if engine is None else lead(engine)


@contextmanager
def engine_of(parameters: Any, folder: Path, ranks: "Engine | None") -> "Iterator[Engine]":
    """The engine that was asked for, its own files in `folder`; `ranks` is that of an MPI job. Raises BadInput."""
    from dbex.batch import executors, parsl_configs

    if ranks is not None:
        yield ranks
        return
    if parameters.executor == "parsl":
        if parameters.parsl_config is None:
            raise BadInput("executor=parsl needs parsl_config=: expected a Python file that defines config")
        shipped = Path(parsl_configs.__file__).parent / f"{parameters.parsl_config}.py"
        configuration = shipped if shipped.is_file() else parameters.parsl_config
        engine: AbstractContextManager[Engine] = executors.parsl_workers(configuration, folder / "parsl")
    else:
        engine = executors.local_processes(parameters.nproc or len(os.sched_getaffinity(0)))
    with engine as started:
        yield started
