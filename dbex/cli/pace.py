"""How a sweep gets on, for people: counts by state, stills a second, time left."""

import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from dbex.cli.console import Log

if TYPE_CHECKING:
    from dbex.batch.ledger import Pace

#: Seconds between lines where there is no terminal.
LINE_EVERY_S = 10.0


def counted(pace: "Pace") -> str:
    """Stills by state: 20 stills: 12 waiting, 2 running, 6 refined."""
    states = ", ".join(f"{count} {state.value}" for state, count in pace.counts.items())
    return f"{pace.total} stills: {states}"


def timed(pace: "Pace") -> str:
    """Stills a second and the time that is left, as far as they can be told yet."""
    if not pace.ended:
        return "none has ended yet"
    left = timedelta(seconds=round(pace.left / pace.per_second))
    return f"{pace.per_second:.3g} stills/s, {left} left"


def in_words(memory_MB: float) -> str:
    """An amount of memory."""
    return f"{memory_MB:.0f} MB"


class PaceDisplay:
    """Shows the pace: a bar that renews itself on a terminal, a line now and then elsewhere and in the log."""

    def __init__(self, log: Log) -> None:
        self._log, self._told = log, 0.0
        self._bar: Any = tqdm(unit=" stills", dynamic_ncols=True) if sys.stderr.isatty() else None

    def close(self) -> None:
        """Take the display away."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, pace: "Pace") -> None:
        """Show where the sweep stands."""
        if self._bar is not None:
            self._bar.total, self._bar.n = pace.total, pace.total - pace.left
            self._bar.initial = self._bar.n - pace.ended
            self._bar.set_postfix_str(counted(pace).partition(": ")[2])
        now = time.monotonic()
        if now - self._told < LINE_EVERY_S and pace.left:
            return
        self._told = now
        line = f"{counted(pace)}; {timed(pace)}; {in_words(pace.memory_MB)} at most a worker"
        (self._log.line if self._bar is None else self._log.note)(line)
