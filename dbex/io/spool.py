"""Results of single images, one small file each, until they are put together in composite files.

A file is a zip with refined.expt, refined.refl and result.json; it appears whole or not at all.
"""

import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList, ExperimentListFactory

from dbex.io.atomic import sync
from dbex.io.results import name_experiments, plain, refined_experiment, reflection_table, set_ids
from dbex.still import Refined


@dataclass(frozen=True)
class Spooled:
    """A still's result that was read back: dxtbx's experiment, its reflection table, and what was told with it."""

    experiment: Any
    table: Any
    told: dict[str, Any]


def write_result(file: Path, lattices: Sequence[Refined], told: Sequence[dict[str, Any]]) -> None:
    """Write models and reflections of the refined lattices of an image; raises OSError.

    `told` is plain, an entry for every lattice, also those without a result; `id` says which result is its own.
    """
    experiments: Any = ExperimentList()
    table = flex.reflection_table()
    for index, refined in enumerate(lattices):
        experiment = refined_experiment(refined)
        experiments.append(experiment)
        part = unnamed(reflection_table(refined))
        set_ids(part, index)
        table.extend(part)
    members = {
        "refined.expt": experiments.as_json(),
        "refined.refl": table.as_msgpack(),
        "result.json": json.dumps(plain(told), allow_nan=False),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                for member, content in members.items():
                    archive.writestr(member, content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(file.parent)


def told_of(file: Path) -> list[dict[str, Any]]:
    """What was told of the lattices of an image; raises OSError."""
    with zipfile.ZipFile(file) as archive:
        told: list[dict[str, Any]] = json.loads(archive.read("result.json"))
        return told


def read_result(file: Path, lattice: int) -> Spooled:
    """The result of one lattice of an image; raises OSError."""
    told = told_of(file)[lattice]
    with zipfile.ZipFile(file) as archive:
        text = archive.read("refined.expt").decode("utf-8")
        table = flex.reflection_table.from_msgpack(archive.read("refined.refl"))
    experiments = ExperimentListFactory.from_json(text, check_format=False)
    return Spooled(experiments[told["id"]], table.select(table["id"] == told["id"]), told)


def unnamed(table: Any) -> Any:
    """The table, its ids no longer tied to identifiers."""
    for known in list(table.experiment_identifiers().keys()):
        del table.experiment_identifiers()[known]
    return table


def write_set(results: Iterable[Spooled], stem: Path) -> None:
    """Put results together in `stem`.expt and `stem`.refl, ids in their order, each file whole or not at all.

    An identifier that several stills have is kept by the first: DIALS wants them unique. Raises OSError.
    """
    experiments: Any = ExperimentList()
    table, identifiers = flex.reflection_table(), []
    for index, result in enumerate(results):
        set_ids(result.table, index)
        if result.experiment.identifier in identifiers:
            result.experiment.identifier = ""
        experiments.append(result.experiment)
        table.extend(result.table)
        identifiers.append(result.experiment.identifier)
    name_experiments(table, identifiers)
    for ending, content in ((".expt", experiments), (".refl", table)):
        unfinished = stem.with_name(f".{stem.name}{ending}")
        content.as_file(str(unfinished))
        sync(unfinished)
        unfinished.replace(stem.with_name(stem.name + ending))
