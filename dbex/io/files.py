"""The edge where files enter: they exist, and what their reader says of them becomes one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dbex.errors import BadInput


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[Path]:
    """The path of a file that exists and holds something; any error of its reader becomes BadInput.

    `kind` is what the file should be, as in "an experiment list (.expt)".
    """
    file = Path(path)
    if not file.is_file():
        raise BadInput(f"{file} does not exist: expected {kind}; check the path")
    if file.stat().st_size == 0:
        raise BadInput(f"{file} is empty: expected {kind}; write it again")
    try:
        yield file
    except BadInput:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        message = f"{file} cannot be read as {kind}: it is truncated, damaged or of another kind ({said})"
        raise BadInput(f"{message}; write it again") from error
