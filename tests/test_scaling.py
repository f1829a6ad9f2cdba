"""The simulated queue where its time is known without it."""

import pytest

from benchmarks.task_queue import simulated

NEVER_S = 1e12


def test_equal_tasks_end_in_as_many_turns_as_it_takes():
    run = simulated(1000, 10, [2.0], 0.0, lost_every_s=NEVER_S)
    assert run.seconds == pytest.approx(200.0)
    assert run.working == pytest.approx(1.0)


def test_a_driver_that_cannot_follow_decides_how_long_it_takes():
    run = simulated(1000, 500, [1.0], 0.01, lost_every_s=NEVER_S)
    assert run.seconds == pytest.approx(1000 * 0.01 + 1.0)
    assert run.driver > 0.9
    assert run.working == pytest.approx(1000 / (run.seconds * 500))


def test_one_worker_does_again_what_it_lost_and_waits_for_its_successor():
    """With a loss every 50 s tasks of 1 s are lost 20 times in 1000, and cost half a second and the restart."""
    run = simulated(20_000, 1, [1.0], 0.0, lost_every_s=50.0, restart_s=10.0)
    lost = 20_000 / 50
    assert run.seconds == pytest.approx(20_000 + lost * (0.5 + 10.0), rel=0.1)
