"""Engines lose a worker and go on."""

import math
import os
import signal
import sys
from pathlib import Path

import pytest

from dbex.batch import parsl_configs
from dbex.batch.executors import local_processes, parsl_workers

PATIENCE_S = 120


def local(folder):
    return local_processes(1)


def parsl(folder):
    pytest.importorskip("parsl", reason="Parsl is not installed")
    return parsl_workers(Path(parsl_configs.__file__).with_name("local.py"), folder)


@pytest.mark.parametrize("workers", [local, pytest.param(parsl, marks=pytest.mark.slow)])
def test_a_task_that_kills_its_worker_is_a_loss_and_the_next_one_is_done(workers, tmp_path, monkeypatch):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    with workers(tmp_path) as engine:
        assert engine.ahead >= 1
        lost = engine.submit(signal.raise_signal, signal.SIGKILL)
        assert isinstance(lost.exception(timeout=PATIENCE_S), engine.losses)
        assert engine.submit(math.sqrt, 4.0).result(timeout=PATIENCE_S) == 2.0
        wrong = engine.submit(math.sqrt, -1.0).exception(timeout=PATIENCE_S)
        assert isinstance(wrong, ValueError)
        assert not isinstance(wrong, engine.losses)


def test_a_worker_is_replaced_after_so_many_tasks():
    with local_processes(1, stills_per_worker=2) as engine:
        workers = [engine.submit(os.getpid).result(timeout=PATIENCE_S) for _ in range(5)]
    assert workers[0] == workers[1]
    assert workers[2] == workers[3]
    assert len(set(workers)) == 3
