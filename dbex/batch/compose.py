"""What a sweep leaves: composite files of a thousand stills each and one table, in the order of the input.

They depend on the stills and the parameters alone, to the byte: neither on the number of workers nor on the hour.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dbex.batch.ledger import SET, Entry, Ledger, State
from dbex.batch.sweep import result_file
from dbex.io.atomic import sync
from dbex.io.files import reading
from dbex.io.spool import Spooled, read_result, write_set

TABLE = "stills.csv"
#: Which set of composite files the stills of a state go to.
KINDS = {State.REFINED: "refined", State.POOR_FIT: "doubtful", State.NOT_CONVERGED: "doubtful"}
#: The columns that every still has; those of figures and estimates follow.
COLUMNS = ("number", "experiments", "experiment", "name", "state", "verdict", "reason", "set", "id")


@dataclass(frozen=True)
class Place:
    """A still's row in the table so far, and its result if it has one."""

    row: dict[str, Any]
    kind: str | None
    file: Path
    lattice: int


def compose(folder: Path, ledger: Ledger) -> None:
    """Write the composite files and the table of a run whose stills have all ended; raises OSError."""
    rows, sets = folder / ".rows.jsonl", set()
    columns: dict[str, None] = dict.fromkeys(COLUMNS)
    with rows.open("w", encoding="utf-8") as stream:
        for number, members in groupby(ledger.entries(), key=lambda entry: entry.number // SET):
            places = [place_of(folder, entry) for entry in members]
            for kind in sorted(set(KINDS.values())):
                chosen = [place for place in places if place.kind == kind]
                if chosen:
                    stem = f"{kind}_{number:03d}"
                    write_set(results_of(chosen, stem), folder / stem)
                    sets.add(stem)
            for place in places:
                columns.update(dict.fromkeys(place.row))
                stream.write(json.dumps(place.row) + "\n")
    write_table(rows, list(columns), folder / TABLE)
    for path in folder.iterdir():
        if path.suffix in (".expt", ".refl") and path.stem not in sets and path.stem.split("_")[0] in KINDS.values():
            path.unlink()  # of an earlier outcome


def place_of(folder: Path, entry: Entry) -> Place:
    """A still's row of the table, and where its result is."""
    outcome = entry.outcome
    words = (outcome.name, outcome.state.value, outcome.verdict, outcome.reason)
    row: dict[str, Any] = dict(
        zip(COLUMNS, (entry.number, entry.experiments, entry.experiment_id, *words), strict=False)
    )
    row |= {"set": "", "id": ""} | {name: outcome.figures[name] for name in sorted(outcome.figures)}
    return Place(row, KINDS.get(outcome.state), result_file(folder, entry.key), entry.lattice)


def results_of(places: list[Place], stem: str) -> Iterator[Spooled]:
    """Read the results, and complete the rows with where they go and the estimates."""
    for index, place in enumerate(places):
        result = read_result(place.file, place.lattice)
        place.row.update({"set": stem, "id": index})
        place.row.update(orientation(result.experiment.crystal))
        for estimate in result.told["estimates"]:
            unit = f" ({estimate['unit']})" if estimate["unit"] not in ("", "1") else ""
            place.row[estimate["name"] + unit] = estimate["after"]
            place.row[f"esd of {estimate['name']}"] = estimate["esd"]
        yield result


def orientation(crystal: Any) -> dict[str, float]:
    """The elements of a dxtbx crystal's U by the names of their columns."""
    names = [f"U_{row}{column}" for row in (1, 2, 3) for column in (1, 2, 3)]
    return dict(zip(names, crystal.get_U(), strict=True))


def read_table(folder: Path) -> list[dict[str, str]]:
    """The rows of the table that a sweep left in `folder`; raises BadInput."""
    with (
        reading(folder / TABLE, "the table of a sweep (stills.csv)") as file,
        file.open(encoding="utf-8", newline="") as stream,
    ):
        return list(csv.DictReader(stream))


def write_table(rows: Path, columns: list[str], file: Path) -> None:
    """The rows, which are removed, as a table: empty where a still has no such number."""
    unfinished = file.with_name(f".{file.name}")
    with rows.open(encoding="utf-8") as lines, unfinished.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(json.loads(line) for line in lines)
    sync(unfinished)
    unfinished.replace(file)
    rows.unlink()
