"""Visits to stills as tasks of an engine: results in the order of the tasks, whoever did them and in whatever order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dbex.batch.executors import Engine
from dbex.batch.ledger import ATTEMPTS
from dbex.batch.task import prepare
from dbex.errors import BadInput
from dbex.memory import give_back_memory

#: Results that may wait for an earlier one, for each task that keeps a worker busy.
WAITING_PER_TASK = 4


@dataclass(frozen=True)
class Visiting:
    """Does tasks by an engine whose workers have so many threads; a task whose worker was lost is given to another, up
    to ATTEMPTS times. Raises BadInput where that does not help, and what a task raises."""

    engine: Engine
    threads: int

    def __call__(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """The results of `work` for the tasks, one after the other."""
        waiting: deque[tuple[Any, Future[Any]]] = deque()
        left = iter(tasks)
        for task in left:
            waiting.append((task, self._begun(work, task)))
            if len(waiting) >= WAITING_PER_TASK * self.engine.ahead:
                yield self._ended(work, *waiting.popleft())
        while waiting:
            yield self._ended(work, *waiting.popleft())

    def _begun(self, work: Callable[[Any], Any], task: Any) -> "Future[Any]":
        return self.engine.submit(visit, work, task, self.threads)

    def _ended(self, work: Callable[[Any], Any], task: Any, future: "Future[Any]") -> Any:
        for _ in range(ATTEMPTS - 1):
            if not isinstance(future.exception(), self.engine.losses):
                break
            future = self._begun(work, task)
        error = future.exception()
        if isinstance(error, self.engine.losses):
            raise BadInput(
                f"{ATTEMPTS} workers were lost at the same task ({' '.join(str(error).split())}): expected memory for "
                "all of them; give a smaller nproc"
            ) from error
        return future.result()


def visit(work: Callable[[Any], Any], task: Any, threads: int) -> Any:
    """What a worker does with a task."""
    prepare(threads)
    result = work(task)
    give_back_memory()
    return result
