"""Results that appear whole or not at all."""

import fcntl
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dbex.errors import BadInput

#: The file that marks a folder of results as complete; its "files" lists everything of the run.
MARKER = "dbex.json"


@contextmanager
def staged(directory: str | Path) -> Iterator[Path]:
    """A new folder beside `directory` that becomes it when the block ends, and vanishes when the block raises.

    The block has to write MARKER. What earlier runs into the same `directory` left when they were killed is removed.
    Raises BadInput where `directory` is no folder and cannot become one, OSError where the disk fails.
    """
    target = Path(os.path.realpath(directory))
    beside = folder_above(target, directory)
    prefix = f".{target.name}.unfinished-{re.sub(r'[^a-zA-Z0-9.]', '_', platform.node())}-"
    remove_abandoned(beside, prefix)
    try:
        staging, lock = locked_folder(beside, prefix)
    except OSError as error:
        raise BadInput(
            f"output.directory={directory} cannot be made in {beside} ({error.strerror}): expected a place that you "
            "may write to"
        ) from error
    try:
        staging.chmod(0o777 & ~current_umask())
        yield staging
        publish(staging, target)
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(staging):
            error.filename = str(target / Path(error.filename).relative_to(staging))
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def folder_above(target: Path, directory: str | Path) -> Path:
    """The nearest folder above `target` that is there. Raises BadInput where `target` cannot become a folder."""
    if target.exists() and not target.is_dir():
        raise BadInput(f"output.directory={directory} is a file: expected a folder or a new name")
    if target.exists() and not os.access(target, os.W_OK):
        raise BadInput(f"output.directory={directory} cannot be written to: expected a folder that you may change")
    beside = next(parent for parent in target.parents if parent.exists())
    if not beside.is_dir():
        raise BadInput(f"output.directory={directory} lies in {beside}, which is a file: expected a folder")
    return beside


def locked_folder(beside: Path, prefix: str) -> tuple[Path, int]:
    """A new folder and the descriptor that holds it for as long as this process lives; raises OSError."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=beside))
        lock = os.open(folder, os.O_RDONLY)
        locked(lock)
        if folder.exists():  # another run may have taken it for abandoned before it was locked
            return folder, lock
        os.close(lock)


def remove_abandoned(beside: Path, prefix: str) -> None:
    """Remove the unfinished folders of processes of this host that are gone: nobody holds them."""
    for folder in beside.iterdir() if os.access(beside, os.R_OK) else ():
        if not folder.name.startswith(prefix) or folder.is_symlink():
            continue
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        if locked(lock):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def locked(descriptor: int) -> bool:
    """Whether this process now holds a folder: not where another does, nor where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def publish(staging: Path, target: Path) -> None:
    """Make the folder `staging`, which must hold MARKER, the folder `target`, on the disk before it shows.

    A target that exists is replaced file by file: its marker goes first and comes back last, so that a folder which
    is caught in between does not look finished; what an earlier run left there and this one did not write is removed.
    """
    files = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file()]
    if Path(MARKER) not in files:
        raise ValueError(f"{staging} holds no {MARKER}: expected a complete set of results")
    for path in [*files, *{file.parent for file in files}]:
        sync(staging / path)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(target)
        sync(target.parent)
        return
    earlier = files_of_run(target)
    (target / MARKER).unlink(missing_ok=True)
    for file in files:
        if file != Path(MARKER):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).replace(target / file)
    for file in earlier.difference(files):
        remove(target, file)
    sync(target)
    (staging / MARKER).replace(target / MARKER)
    sync(target)


def files_of_run(target: Path) -> set[Path]:
    """The files that the finished run in `target` lists as its own, relative to it; none where there is no run."""
    try:
        listed = json.loads((target / MARKER).read_text(encoding="utf-8")).get("files", [])
    except (OSError, ValueError, AttributeError):
        return set()
    paths = {Path(name) for name in listed if isinstance(name, str)}
    return {path for path in paths if not path.is_absolute() and ".." not in path.parts}


def remove(target: Path, file: Path) -> None:
    """Delete `file` of `target` and the folder that it leaves empty."""
    (target / file).unlink(missing_ok=True)
    if file.parent != Path() and (target / file.parent).is_dir() and not any((target / file.parent).iterdir()):
        (target / file.parent).rmdir()


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all; raises OSError."""
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current_umask() -> int:
    """The process's umask, which mkdtemp does not apply."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
