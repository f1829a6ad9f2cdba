"""The edge where files enter: they exist, and what their reader says of them becomes one sentence."""

import contextlib
import faulthandler
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from dbex.errors import BadInput

Choices = ParamSpec("Choices")
Content = TypeVar("Content")
Reader = Callable[Concatenate[str | Path, Choices], Content]


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


def survives(read: Callable[[str], object], path: str | Path) -> bool:
    """Whether a reader in C++ ends when it is given a file, be it with an exception, or kills its process.

    It is tried in a copy of this process, since what is damaged may crash it where no exception can be caught.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of this process: the copy does nothing but read
        child = os.fork()
    if child == 0:
        faulthandler.disable()
        with contextlib.suppress(BaseException):
            read(str(path))
        os._exit(0)
    return not os.WIFSIGNALED(os.waitpid(child, 0)[1])


def kept_while_unchanged(read: Reader[Choices, Content]) -> Reader[Choices, Content]:
    """The reader of a file that many stills share, which reads it once as long as its size and time stay.

    The last content is kept, and must not be changed by who gets it; the other arguments must be hashable.
    """

    @functools.lru_cache(maxsize=1)
    def read_at(
        path: str | Path, size: int, modified_ns: int, *args: Choices.args, **kwargs: Choices.kwargs
    ) -> Content:
        return read(path, *args, **kwargs)

    @functools.wraps(read)
    def reader(path: str | Path, *args: Choices.args, **kwargs: Choices.kwargs) -> Content:
        if not Path(path).is_file():
            return read(path, *args, **kwargs)  # which says so
        status = Path(path).stat()
        return read_at(path, status.st_size, status.st_mtime_ns, *args, **kwargs)  # type: ignore[arg-type]

    return reader
