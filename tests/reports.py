"""The JSON that an acceptance test writes, also when it fails."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def acceptance_report(
    test: str,
    parameter: str,
    *,
    tolerances: dict[str, Any],
    inputs: Sequence[Path] = (),
    dtype: str = "float64",
    file: str | None = None,
    top_level: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Collects the figures of one acceptance test ("DB-AT-020") and writes `<file>.json` when it ends.

    The folder is plans/active/DB-AT-NNN/reports/default, or what DBATNNN_ARTIFACT_DIR says; the file's name is
    `parameter` unless another is given. The verdict is "passed" where the body ends, else "failed" with the reason.
    Values named in `top_level` stand beside it, where scripts look for them; null if the body never got so far.
    """
    values: dict[str, Any] = {}
    record = {
        "test": test,
        "parameter": parameter,
        "values": values,
        "tolerances": tolerances,
        "device": "cpu",
        "dtype": dtype,
        "versions": versions(),
        "inputs": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs},
        "verdict": "failed",
    }
    try:
        yield values
        record["verdict"] = "passed"
    except BaseException as error:
        record["reason"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        record |= {name: values.pop(name, None) for name in top_level}
        folder = artifact_folder(test)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{file or parameter}.json").write_text(json.dumps(record, indent=1, default=_plain) + "\n")


def artifact_folder(test: str) -> Path:
    """Where the reports of "DB-AT-020" go."""
    return Path(os.environ.get(f"{test.replace('-', '')}_ARTIFACT_DIR", ROOT / f"plans/active/{test}/reports/default"))


def versions() -> dict[str, str]:
    """What the figures were made with."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for package in ("dxtbx", "dials", "gemmi"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not recorded"
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | torch.Tensor | np.generic):
        return value.tolist()
    return str(value)
