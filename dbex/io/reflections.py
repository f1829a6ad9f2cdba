"""Reflection tables (.refl): the indexed spots of one experiment."""

from pathlib import Path
from typing import Any

import numpy as np
from dials.array_family import flex
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.io.files import reading, survives
from dbex.still import Ints, Observed

KIND = "a reflection table (.refl)"


def read_table(path: str | Path) -> Any:
    """The whole flex.reflection_table of a file. Raises BadInput for what is none, and where a column is missing."""
    with reading(path, KIND) as file:
        if not survives(flex.reflection_table.from_file, file):
            raise BadInput(
                f"{file} cannot be read as {KIND}: it is damaged so that DIALS' reader breaks; write it again"
            )
        table = flex.reflection_table.from_file(str(file))
        _ = list(table.keys()), dict(table.experiment_identifiers())  # names that are no text are told here
    for column in ("miller_index", "id", "panel", "xyzobs.px.value"):
        if column not in table:
            raise BadInput(f"{path} has no column {column}: expected indexed reflections; run dials.index on it")
    if "bbox" not in table and "shoebox" not in table:
        raise BadInput(f"{path} has neither bbox nor shoebox: expected boxes around the spots; find spots again")
    return table


def rows_of(table: Any, experiments: Any, index: int, path: str | Path) -> Ints:
    """Rows of the table that belong to experiment `index` and are indexed.

    A table that names its experiments is matched by identifier, any other by number. Where any row carries the flag
    "indexed" only flagged rows count: a table of integrated reflections holds predictions too.
    """
    names = dict(table.experiment_identifiers())
    identifier = experiments[index].identifier
    ids = table["id"].as_numpy_array()
    if names and identifier:
        mine = [number for number, name in names.items() if name == identifier]
        if not mine and not set(names.values()) & set(experiments.identifiers()):
            raise BadInput(
                f"{path} is of experiment {next(iter(names.values()))} but the .expt is of {identifier}: "
                "give the .refl that was written with this .expt"
            )
        belongs = np.isin(ids, mine)
    else:
        if len(ids) and ids.max() >= len(experiments):
            raise BadInput(
                f"{path} has reflections of experiment {ids.max()} but the .expt has {len(experiments)}: "
                "give the .refl that was written with this .expt"
            )
        belongs = ids == index
    indexed = (_hkl(table) != 0).any(axis=1)
    if "flags" in table:
        flagged = table.get_flags(table.flags.indexed).as_numpy_array()
        indexed &= flagged if flagged.any() else True
    rows = np.flatnonzero(belongs & indexed)
    if not len(rows):
        raise BadInput(f"{path} has no indexed spot of experiment {index}: expected some; index the image first")
    return rows.astype(np.int64)


def spots_by_experiment(table: Any, experiments: Any) -> list[int]:
    """How many rows of the table each experiment has, indexed or not: a measure of the work that it will be."""
    names = dict(table.experiment_identifiers())
    ids = table["id"].as_numpy_array()
    counts = dict(zip(*(values.tolist() for values in np.unique(ids, return_counts=True)), strict=True))
    by_name = {name: counts.get(number, 0) for number, name in names.items()}
    identifiers = [experiment.identifier for experiment in experiments]
    return [by_name.get(name, 0) if names and name else counts.get(index, 0) for index, name in enumerate(identifiers)]


def observed(table: Any, rows: Ints, panels: int, path: str | Path) -> Observed:
    """The record of those rows. Raises BadInput for a panel that the detector has not, and for NaN."""
    panel = table["panel"].as_numpy_array().astype(np.int64)[rows]
    if panel.max() >= panels:
        raise BadInput(
            f"{path} has spots on panel {panel.max()} but the detector has {panels}: give the .refl of this .expt"
        )
    xy = table["xyzobs.px.value"].as_double().as_numpy_array().reshape(-1, 3)[rows, :2]
    intensity, variance = (_column(table, f"intensity.sum.{name}", rows) for name in ("value", "variance"))
    for name, values in (("xyzobs.px.value", xy), ("intensity.sum.value", intensity)):
        if not np.isfinite(values).all():
            raise BadInput(f"{path} holds NaN in column {name}: expected finite numbers; process the image again")
    return Observed(_hkl(table)[rows], panel, bboxes(table)[rows, :4], xy, intensity, variance, rows)


def select(table: Any, rows: Ints) -> Any:
    """A table of those rows, in that order."""
    return table.select(flex.size_t(rows.tolist()))


def bboxes(table: Any) -> Ints:
    """Boxes (n, 6) of all rows: x0, x1, y0, y1, z0, z1, upper bounds exclusive."""
    boxes = table["bbox"] if "bbox" in table else table["shoebox"].bounding_boxes()
    return np.array([part.as_numpy_array() for part in boxes.parts()], dtype=np.int64).T.reshape(-1, 6)


def _hkl(table: Any) -> Ints:
    return table["miller_index"].as_vec3_double().as_double().as_numpy_array().reshape(-1, 3).astype(np.int64)


def _column(table: Any, name: str, rows: Ints) -> NDArray[np.float64]:
    """A column of numbers, zeros where the table has none: spots that were found and not summed."""
    if name not in table:
        return np.zeros(len(rows))
    values: NDArray[np.float64] = table[name].as_numpy_array().astype(np.float64)[rows]
    return values
