"""What a command tells the person who started it: lines, a progress display, one sentence for an error."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from dbex.errors import BadInput


class Log:
    """Lines on standard output and in a file, as DIALS' programs write theirs."""

    def __init__(self, file: Path, mode: str = "w") -> None:
        self._stream: IO[Any] = file.open(mode, encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def line(self, text: str = "") -> None:
        """A line for the person and for the file."""
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """A line for the file alone."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def failure(self, text: str) -> None:
        """A sentence on standard error, and in the file."""
        complain(text)
        self.note(text)


class Progress:
    """Shows a solver's iterations: a display that renews itself on a terminal, a line each elsewhere and in the log."""

    def __init__(self, log: Log, name: str) -> None:
        self._log = log
        self._bar: Any = tqdm(desc=name, unit=" steps", leave=False, mininterval=0) if sys.stderr.isatty() else None

    def close(self) -> None:
        """Take the display away."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, iteration: Any) -> None:
        """Show one dbex.still.Iteration."""
        step = f"χ²/pixel {iteration.chi2_per_pixel:.4f}, step {iteration.step_in_esds:.3g} esds"
        refused = "" if iteration.accepted else ", refused"
        text = f"  {iteration.stage} {iteration.number}: {step}, damping {iteration.damping:.1e}{refused}"
        if self._bar is None:
            self._log.line(text)
        else:
            self._log.note(text)
            self._bar.set_postfix_str(f"{iteration.stage}: {step}", refresh=False)
            self._bar.update()


def complain(sentence: str) -> None:
    """One sentence on standard error."""
    print(sentence, file=sys.stderr, flush=True)


def started(command: str, main: Callable[[Sequence[str]], int]) -> int:
    """A console script from the arguments of its process to its exit status; when it is asked to end it tidies up."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without χ still gets the rest of the line
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return exit_status(command, lambda: main(sys.argv[1:]))


def exit_status(command: str, work: Callable[[], int]) -> int:
    """Do the work and tell its exit status: 1 with one sentence for bad input, 130 when interrupted.

    Any other exception is a fault of the program and keeps its traceback.
    """
    try:
        return work()
    except BadInput as error:
        complain(f"{command}: {' '.join(str(error).split())}")
        return 1
    except KeyboardInterrupt:
        complain(f"{command}: interrupted, nothing was written")
        return 130
    except BrokenPipeError:
        # Whoever read our lines has gone (`| head`): say no more, also not while Python closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{command}: {where}{error.strerror or error}")
        return 1
