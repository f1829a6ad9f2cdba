"""Engines that do tasks in other processes: this machine's, a cluster's through Parsl, or the ranks of an MPI job.

An engine gives a Future for every task and says which exceptions of a Future mean that a worker was lost, not that the
task is at fault. None distributes work by its own means: Pebble, Parsl and mpi4py do.
"""

import multiprocessing
import os
import runpy
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from dbex.errors import BadInput

#: A worker is replaced after so many stills, whatever it may have kept of them.
STILLS_PER_WORKER = 200
#: Tasks handed out for each worker that may be far away: one at work and one that waits beside it.
AHEAD_PER_WORKER = 2
#: Workers of a block whose configuration leaves their number to the node.
WORKERS_OF_A_NODE = 64


@dataclass(frozen=True)
class Engine:
    """`submit(function, *args)` gives a Future; `ahead` tasks keep all workers busy; `losses` are what a Future raises
    when its worker was lost."""

    submit: Callable[..., "Future[Any]"]
    ahead: int
    losses: tuple[type[BaseException], ...]


@contextmanager
def local_processes(workers: int, stills_per_worker: int = STILLS_PER_WORKER) -> Iterator[Engine]:
    """Processes of this machine, each started afresh, that end with the process that began them."""
    pools = [new_pool(workers, stills_per_worker)]

    def submit(function: Callable[..., Any], *args: Any) -> "Future[Any]":
        with interrupt_held():
            try:
                future: Future[Any] = pools[-1].schedule(function, args)
            except RuntimeError:  # all workers were lost at once, while none was at work
                pools.append(new_pool(workers, stills_per_worker))
                future = pools[-1].schedule(function, args)
        return future

    try:
        yield Engine(submit, workers, (ProcessExpired, BrokenProcessPool))
    finally:
        for pool in pools:
            pool.stop()
            pool.join()


@contextmanager
def interrupt_held() -> Iterator[None]:
    """Ctrl-C waits until a worker is started: one that is cut off in the middle complains in a traceback. What is
    started here never sees it: workers end with the process that began them."""
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
        if caught and callable(before):
            before(caught[0], None)


def new_pool(workers: int, stills_per_worker: int) -> ProcessPool:
    """Workers that share nothing with this process."""
    context = multiprocessing.get_context("spawn")
    return ProcessPool(workers, stills_per_worker, follow_parent, context=context)


def follow_parent() -> None:
    """End this worker when the process that began it has gone, even if killed: nobody would take its results."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def parsl_workers(configuration: str | Path, run_directory: Path) -> Iterator[Engine]:
    """Workers wherever a Parsl configuration file puts them; it defines `config`, a parsl.Config. Raises BadInput.

    Parsl's own files go into `run_directory`. Retries are the ledger's, so that a lost still is counted.
    """
    try:
        import parsl
        from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
    except ImportError as error:
        raise BadInput("executor=parsl needs Parsl, which is not installed: pip install 'dbex[parsl]'") from error
    if shutil.which("interchange.py") is None:
        raise BadInput("executor=parsl does not find Parsl's own programs on the PATH: activate its environment first")
    config = configuration_of(configuration, parsl)
    config.run_dir, config.retries = str(run_directory), 0
    with parsl.load(config) as kernel:

        def submit(function: Callable[..., Any], *args: Any) -> "Future[Any]":
            future: Future[Any] = parsl.python_app(function, data_flow_kernel=kernel)(*args)
            return future

        yield Engine(submit, AHEAD_PER_WORKER * workers_of(config), (ManagerLost, WorkerLost))


@contextmanager
def mpi_ranks() -> Iterator[Engine | None]:
    """The ranks of the MPI job that this process is part of: an engine for the first, whose workers are the others;
    None for these, once the first has left. Raises BadInput.

    A rank that dies takes the job with it, as MPI has it: no loss is seen, the run goes on when it is started again.
    """
    try:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor
    except ImportError as error:
        raise BadInput("executor=mpi needs mpi4py, which is not installed: pip install 'dbex[mpi]'") from error
    ranks = MPI.COMM_WORLD.Get_size()
    if ranks < 2:
        raise BadInput(
            "executor=mpi finds one rank: expected a start by mpiexec or srun with one rank more than workers, such as "
            "mpiexec -n 9 dbex.refine_many ... executor=mpi"
        )
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as pool:
        yield None if pool is None else Engine(pool.submit, AHEAD_PER_WORKER * (ranks - 1), ())


def configuration_of(file: str | Path, parsl: Any) -> Any:
    """The `config` that a Python file defines. Raises BadInput."""
    if not Path(file).is_file():
        raise BadInput(f"parsl_config={file} does not exist: expected a Python file that defines config")
    try:
        config = runpy.run_path(str(file)).get("config")
    except Exception as error:
        raise BadInput(f"parsl_config={file} cannot be run ({error}): expected Python that defines config") from error
    if not isinstance(config, parsl.Config):
        raise BadInput(f"parsl_config={file} defines no config: expected config = parsl.Config(...)")
    return config


def workers_of(config: Any) -> int:
    """The most workers that a Parsl configuration can have at once."""
    total = 0
    for executor in config.executors:
        each = getattr(executor, "max_workers_per_node", 1)
        provider = getattr(executor, "provider", None)
        nodes = getattr(provider, "max_blocks", 1) * getattr(provider, "nodes_per_block", 1)
        total += int(nodes * (each if each != float("inf") else WORKERS_OF_A_NODE))
    return max(total, 1)
