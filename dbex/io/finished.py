"""What a finished run left of a still, read back: dbex.json and pixels.h5."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from dbex.errors import BadInput
from dbex.io.files import reading
from dbex.io.results import plain
from dbex.still import BoxTable, PixelTable, Refined, StillResult

RECORD, PIXELS = "dbex.json", "pixels.h5"
#: What reports take from dbex.json and joint.json.
CONTENT_OF_STILL = (
    *("still", "verdict", "figures", "sigma_z", "estimates", "covariance", "worst_direction", "models", "terms"),
    *("left_out", "down_weighted_boxes", "noise", "structure_factors", "history", "seconds", "inputs", "command"),
    *("settings", "modified_parameters", "versions", "started", "peak_memory_MB"),
)
CONTENT_OF_JOINT = (
    *("shared", "covariance", "converged", "message", "outlier_rule", "stills", "left_out", "merging", "steps"),
    *("command", "modified_parameters", "versions", "started", "peak_memory_MB"),
)
Table = TypeVar("Table", BoxTable, PixelTable)


def read_content(folder: Path, name: str = RECORD) -> dict[str, Any]:
    """The content of a folder's dbex.json, or of another record; raises BadInput."""
    with reading(folder / name, f"what a run of DBEX left ({name})") as file:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def read_still(folder: Path) -> StillResult:
    """The result of the still in `folder`; raises BadInput."""
    content = read_content(folder)
    if "estimates" not in content:
        raise BadInput(f"{folder / RECORD} is of no single still: expected the folder that dbex.refine made for one")
    require(content, CONTENT_OF_STILL, folder / RECORD)
    with reading(folder / PIXELS, "the pixels of a refined still (pixels.h5)") as file, h5py.File(file) as stream:
        return StillResult(content, table(stream, "boxes", BoxTable), table(stream, "pixels", PixelTable))


def require(content: dict[str, Any], keys: tuple[str, ...], file: Path) -> None:
    """Raise BadInput where a record lacks what every run writes now."""
    absent = [key for key in keys if key not in content]
    if absent:
        raise BadInput(f"{file} has no {absent[0]!r}: it was written by an earlier version; refine again")


def table(stream: h5py.File, group: str, kind: type[Table]) -> Table:
    """The columns of a group as the record that they were written from; raises BadInput."""
    absent = [field.name for field in fields(kind) if field.name not in stream[group]]
    if absent:
        raise BadInput(
            f"{stream.filename} has no column {absent[0]} in /{group}: it was written by an earlier version; refine "
            "the still again"
        )
    columns: dict[str, np.ndarray] = {field.name: stream[group][field.name][()] for field in fields(kind)}
    if "used" in columns:
        columns["used"] = columns["used"].astype(bool)
    wide = {name: values.astype(np.int64) for name, values in columns.items() if values.dtype == np.int32}
    return kind(**columns | wide)


def result_of(refined: Refined, content: dict[str, Any]) -> StillResult:
    """The result of a still that is still in memory, `content` being what dbex.json will hold."""
    return StillResult(plain(content), refined.boxes, refined.pixels)
