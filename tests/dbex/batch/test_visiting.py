"""Visits come back in the order of their tasks, whoever did them; one whose worker was lost is done by another."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dbex.batch.executors import Engine, local_processes
from dbex.batch.ledger import ATTEMPTS
from dbex.batch.visiting import Visiting
from dbex.errors import BadInput
from tests.conftest import ROOT

PATIENCE_S = 120
#: What two ranks are asked to do: the second works for the first, and is told when that has done.
RANKS = """
import math
from dbex.batch.executors import mpi_ranks
from dbex.batch.visiting import Visiting
with mpi_ranks() as engine:
    print("a worker" if engine is None else list(Visiting(engine, 1)(math.sqrt, [4.0, 9.0, 16.0])), flush=True)
"""


def slow_first(task):
    time.sleep(0.2 if task == 0 else 0.0)
    return task


def die_once(file):
    """End the worker that does this, but not the second one."""
    if not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die(task):
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_the_order_of_the_tasks():
    with ThreadPoolExecutor(3) as pool:
        visits = Visiting(Engine(pool.submit, 3, ()), 1)
        assert list(visits(slow_first, range(40))) == list(range(40))


def test_what_a_task_raises_is_raised():
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(Visiting(Engine(pool.submit, 1, ()), 1)(lambda task: 1 / task, [1, 0]))


def test_a_task_whose_worker_was_lost_is_done_by_another(tmp_path):
    with local_processes(1) as engine:
        assert list(Visiting(engine, 1)(die_once, [str(tmp_path / "first")])) == ["done"]


def test_a_task_that_kills_every_worker_is_told():
    with local_processes(1) as engine, pytest.raises(BadInput, match=f"{ATTEMPTS} workers were lost"):
        list(Visiting(engine, 1)(die, [0]))


def ranks(number):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    words = ["mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", str(number), sys.executable, "-c", RANKS]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mpiexec")


def test_the_second_of_two_ranks_works_for_the_first():
    run = ranks(2)
    assert run.returncode == 0
    assert sorted(run.stdout.splitlines()) == ["[2.0, 3.0, 4.0]", "a worker"]


def test_a_single_rank_is_told_how_to_be_started():
    run = ranks(1)
    assert run.returncode != 0
    assert "BadInput: executor=mpi finds one rank" in run.stderr


def test_without_mpi4py_the_engine_says_what_to_install(monkeypatch):
    from dbex.batch.executors import mpi_ranks

    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(BadInput, match=r"pip install 'dbex\[mpi\]'"), mpi_ranks():
        pass
