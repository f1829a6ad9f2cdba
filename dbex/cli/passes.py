"""Whether the passes over pixels run compiled: as the user asks, or where that repays itself."""

from dbex.cli.console import Log
from dbex.errors import BadInput
from nanobrag_torch import compiling

#: CPU seconds: of compiling all passes, and what they save on a still of 36,000 pixels (benchmarks, docs/performance).
COMPILING_S, SAVED_S = 200.0, 0.6


def prepare(choice: str, stills: int, log: Log) -> None:
    """Compile what this machine lacks when `choice` is yes, or auto and `stills` repay it; no runs plain functions.

    Raises BadInput where compiling was asked for and cannot be done.
    """
    if choice == "no":
        compiling.disable()
        return
    if compiling.disabled() or not compiling.missing() or (choice == "auto" and stills * SAVED_S < COMPILING_S):
        return
    log.line("compiling the passes over pixels for this machine, once (minutes); compile=no goes on without")
    try:
        compiling.build_all()
    except compiling.CompilationError as error:
        if choice == "yes":
            raise BadInput(f"the passes cannot be compiled here ({error}): install g++, or give compile=no") from error
        log.line(f"they cannot be compiled here and run plain: {error}")
