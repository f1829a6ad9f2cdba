"""A simulated queue: one driver that hands out and collects tasks, one after the other, and workers that do them.

A worker that is lost loses its task, which waits again, and another stands in its place after a restart.
"""

import heapq
from collections import deque
from dataclasses import dataclass

import numpy as np

#: A worker is lost once in so many seconds of work, and after so many another stands in its place.
LOST_EVERY_S, RESTART_S = 36_000.0, 60.0


@dataclass(frozen=True)
class Run:
    """What a simulated queue took: seconds until the last task, the part of them that workers worked, and the part
    that the driver was busy."""

    seconds: float
    working: float
    driver: float


def simulated(tasks, workers, task_s, driver_s, seed=0, lost_every_s=LOST_EVERY_S, restart_s=RESTART_S):
    """A queue of so many tasks, whose times are drawn from `task_s`; every task costs the driver `driver_s`."""
    rng = np.random.default_rng(seed)
    times = deque(rng.choice(task_s, tasks).tolist())
    until_lost = deque(rng.exponential(lost_every_s, 2 * tasks).tolist())
    free = [0.0] * workers  # when each worker asks for a task
    driver, worked, last, handed = 0.0, 0.0, 0.0, 0
    while times:
        driver = max(driver, heapq.heappop(free)) + driver_s
        seconds, lost, handed = times.popleft(), until_lost.popleft() if until_lost else np.inf, handed + 1
        if lost < seconds:
            times.append(seconds)
            heapq.heappush(free, driver + lost + restart_s)
            continue
        worked, last = worked + seconds, max(last, driver + seconds)
        heapq.heappush(free, driver + seconds)
    return Run(last, worked / (last * workers), handed * driver_s / last)
