"""The ledger of a sweep: what is to be done and what became of it, in an SQLite file that survives a killed run.

One process writes it, the one that hands out the work; any other on the same machine may read it meanwhile.
"""

import errno
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

FILE = "ledger.sqlite"
#: The stills of one set of output files; work is handed out set by set, in each the longest first.
SET = 1000
#: How often a still is given to a worker before it counts as lost.
ATTEMPTS = 3

SCHEMA = f"""
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS stills (
    key TEXT, lattice INTEGER, number INTEGER, experiments TEXT, reflections TEXT, experiment_id INTEGER, spots INTEGER,
    state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, name TEXT, verdict TEXT, reason TEXT, figures TEXT,
    seconds REAL, memory_MB REAL, ended REAL, PRIMARY KEY (key, lattice));
CREATE INDEX IF NOT EXISTS queue ON stills (state, lattice, number / {SET}, -spots, number);
CREATE INDEX IF NOT EXISTS numbers ON stills (number);
"""


class State(str, Enum):
    """What a still can be; `refined` can be used, `poor fit` and `not converged` have a result that should not be."""

    WAITING = "waiting"
    RUNNING = "running"
    REFINED = "refined"
    POOR_FIT = "poor fit"
    NOT_CONVERGED = "not converged"
    BAD_INPUT = "bad input"
    LOST = "lost"


#: States that have a result on the disk.
WITH_RESULT = (State.REFINED, State.POOR_FIT, State.NOT_CONVERGED)


@dataclass(frozen=True)
class Task:
    """One image to refine: `key`, the hash of all that goes into it, its files, the stills on it, a lattice each, by
    their places in the .expt and their `numbers` in the order of the input, and how many spots they have together.

    A file that cannot be read is a task with a number and without an experiment.
    """

    key: str
    numbers: tuple[int, ...]
    experiments: str
    reflections: str
    experiment_ids: tuple[int, ...]
    spots: int


@dataclass(frozen=True)
class Outcome:
    """What became of one still: its state, the verdict of the fit and the reason in words, figures, and what it took;
    `memory_MB` is the most that its worker had held by then."""

    state: State
    name: str = ""
    verdict: str = ""
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    memory_MB: float = 0.0


@dataclass(frozen=True)
class Entry:
    """A still of the ledger: its number, its .expt and place in it (None in a file that cannot be read), its task's key
    and its place among the lattices there, and what became of it."""

    number: int
    experiments: str
    experiment_id: int | None
    key: str
    lattice: int
    outcome: Outcome


@dataclass(frozen=True)
class Pace:
    """Where a sweep stands: stills by state, those ended since `began` (unix time), the most memory of a worker."""

    counts: dict[State, int]
    ended: int
    began: float
    now: float
    memory_MB: float

    @property
    def total(self) -> int:
        """All stills."""
        return sum(self.counts.values())

    @property
    def left(self) -> int:
        """Stills that have no outcome yet."""
        return self.counts.get(State.WAITING, 0) + self.counts.get(State.RUNNING, 0)

    @property
    def per_second(self) -> float:
        """Stills that ended a second."""
        return self.ended / max(self.now - self.began, 1e-9)


class Ledger:
    """The file in the folder of a run; made where it is absent. Raises OSError where the disk fails."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        with disk_errors(self.path):
            self._base = sqlite3.connect(self.path, isolation_level=None)
            self._base.row_factory = sqlite3.Row
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file; what was told it is kept."""
        with disk_errors(self.path):
            self._base.close()

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """A change that happens as a whole or not at all."""
        with disk_errors(self.path), self._base:
            self._base.execute("BEGIN IMMEDIATE")
            yield self._base

    def fact(self, name: str) -> Any:
        """What was remembered under a name; None where nothing was."""
        with disk_errors(self.path):
            row = self._base.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row["value"])

    def remember(self, name: str, value: Any) -> None:
        """Keep a plain value under a name."""
        with self.changing() as base:
            base.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def enlist(self, tasks: Iterable[Task]) -> None:
        """Make these the stills of the run: what is known by its key keeps its outcome, all else waits."""
        with self.changing() as base:
            base.execute("UPDATE stills SET number = NULL")
            for task in tasks:
                files = (task.experiments, task.reflections)
                stills = zip(task.numbers, task.experiment_ids or (None,), strict=True)
                base.executemany(
                    "INSERT INTO stills (key, lattice, number, experiments, reflections, experiment_id, spots, state)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, 'waiting')"
                    " ON CONFLICT (key, lattice) DO UPDATE SET number = excluded.number",
                    [(task.key, lattice, n, *files, i, task.spots) for lattice, (n, i) in enumerate(stills)],
                )
            base.execute("DELETE FROM stills WHERE number IS NULL")

    def tasks(self, state: State) -> Iterator[Task]:
        """The tasks of which a still is in some state."""
        with disk_errors(self.path):
            keys = self._base.execute("SELECT DISTINCT key FROM stills WHERE state = ?", (state,)).fetchall()
        for row in keys:
            yield self.task(row["key"])

    def task(self, key: str) -> Task:
        """The task of a key."""
        with disk_errors(self.path):
            rows = self._base.execute("SELECT * FROM stills WHERE key = ? ORDER BY lattice", (key,)).fetchall()
        numbers = tuple(row["number"] for row in rows)
        ids = tuple(row["experiment_id"] for row in rows if row["experiment_id"] is not None)
        return Task(key, numbers, rows[0]["experiments"], rows[0]["reflections"], ids, rows[0]["spots"])

    def take(self, number: int) -> list[Task]:
        """The next tasks to work on, now running: those with most spots of the first set that has any waiting."""
        with self.changing() as base:
            keys = base.execute(
                "SELECT key FROM stills WHERE state = 'waiting' AND lattice = 0"
                f" ORDER BY number / {SET}, -spots, number LIMIT ?",
                (number,),
            ).fetchall()
            base.executemany(
                "UPDATE stills SET state = 'running', attempts = attempts + 1 WHERE key = ?",
                [(row["key"],) for row in keys],
            )
        return [self.task(row["key"]) for row in keys]

    def end(self, task: Task, outcomes: Sequence[Outcome]) -> None:
        """Write down what became of the stills of a task."""
        now = time.time()
        with self.changing() as base:
            for lattice, o in enumerate(outcomes):
                words = (o.state, o.name, o.verdict, o.reason, json.dumps(o.figures))
                base.execute(
                    "UPDATE stills SET state = ?, name = ?, verdict = ?, reason = ?, figures = ?, seconds = ?,"
                    " memory_MB = ?, ended = ? WHERE key = ? AND lattice = ?",
                    (*words, o.seconds, o.memory_MB, now, task.key, lattice),
                )

    def give_back(self, task: Task, reason: str) -> None:
        """A worker was lost with this task: it waits for another, or is lost after its last attempt."""
        with self.changing() as base:
            (attempts,) = base.execute("SELECT MAX(attempts) FROM stills WHERE key = ?", (task.key,)).fetchone()
            state = State.WAITING if attempts < ATTEMPTS else State.LOST
            words = f"lost with its worker {attempts} times: {reason}" if state == State.LOST else reason
            base.execute(
                "UPDATE stills SET state = ?, reason = ?, ended = ? WHERE key = ?",
                (state, words, time.time() if state == State.LOST else None, task.key),
            )

    def renew(self, task: Task) -> None:
        """Let a task wait as if it had never been worked on."""
        with self.changing() as base:
            base.execute(
                "UPDATE stills SET state = 'waiting', attempts = 0, reason = NULL, ended = NULL WHERE key = ?",
                (task.key,),
            )

    def entries(self) -> Iterator[Entry]:
        """Every still with what became of it, in the order of the input."""
        with disk_errors(self.path):
            for row in self._base.execute("SELECT * FROM stills ORDER BY number"):
                place = (row["number"], row["experiments"], row["experiment_id"], row["key"], row["lattice"])
                yield Entry(*place, outcome_of(row))

    def pace(self) -> Pace:
        """Where the run stands."""
        began = self.fact("began") or 0.0
        with disk_errors(self.path):
            rows = self._base.execute("SELECT state, COUNT(*) FROM stills GROUP BY state").fetchall()
            ended, memory = self._base.execute(
                "SELECT COUNT(CASE WHEN ended >= ? THEN 1 END), MAX(memory_MB) FROM stills", (began,)
            ).fetchone()
        counts = Counter({State(state): count for state, count in rows})
        there = {state: counts[state] for state in State if counts[state]}
        return Pace(there, ended, began, time.time(), memory or 0.0)


def outcome_of(row: sqlite3.Row) -> Outcome:
    """What a row says became of its task."""
    words = (row["name"] or "", row["verdict"] or "", row["reason"] or "")
    figures = json.loads(row["figures"] or "{}")
    return Outcome(State(row["state"]), *words, figures, row["seconds"] or 0.0, row["memory_MB"] or 0.0)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """SQLite's complaints about the disk as the OSError that any other file would raise."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        full = getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error
