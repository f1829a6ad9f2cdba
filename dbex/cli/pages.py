"""The pages of a run by the kind of folder it left: of one still, of several, of a sweep, of a joint refinement."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dbex.batch.ledger import FILE as LEDGER
from dbex.errors import BadInput
from dbex.io.finished import CONTENT_OF_JOINT, RECORD, read_content, read_still, require
from dbex.report.joint_page import joint_page
from dbex.report.overview_page import StillRow, overview_page
from dbex.report.page import Page
from dbex.report.spots import MOST_PIXELS
from dbex.report.still_page import still_page

#: Where the pages of a sweep's single stills lie, each in the folder of its run.
STILLS = "stills"
#: What a joint refinement leaves.
JOINT = "joint.json"
#: The outcome of a still by the verdict on its fit; others can be used.
OUTCOMES = {"poor": "poor fit", "not converged": "not converged"}
HOW_SEVERAL = "Every still that was refined has a page of its own: its name leads there."
HOW_SWEEP = (
    "A sweep keeps no pixels. dbex.report RUN still=N refines still N again, as the sweep did, and gives it a page of "
    "its own, to which its name then leads."
)


def pages_of(folder: Path, name: str, most_pixels: int | None = MOST_PIXELS) -> dict[str, Callable[[], Page]]:
    """The pages of the run in `folder` by their places in it, the first one the run's own; `name` is what each file is
    called. Raises BadInput where the folder holds no run."""
    if (folder / LEDGER).is_file():
        made = sorted((folder / STILLS).glob(f"*/{RECORD}"))
        found = {
            f"{STILLS}/{file.parent.name}/{name}": partial(page_of_still, file.parent, most_pixels) for file in made
        }
        return {name: partial(page_of_sweep, folder, name), **found}
    if (folder / JOINT).is_file():
        return {name: partial(page_of_joint, folder)}
    content = read_content(folder)
    if "stills" in content:
        folders = [still["folder"] for still in content["stills"] if still["folder"]]
        each = {f"{sub}/{name}": partial(page_of_still, folder / sub, most_pixels) for sub in folders}
        return {name: partial(page_of_several, folder, content, name), **each}
    if "estimates" not in content:
        raise BadInput(
            f"{folder / RECORD} is of no run that has a page: expected the output.directory of a dbex.refine"
        )
    return {name: partial(page_of_still, folder, most_pixels)}


def page_of_still(folder: Path, most_pixels: int | None) -> Page:
    """The page of the still in `folder`."""
    return still_page(read_still(folder), most_pixels)


def page_of_several(folder: Path, content: dict[str, Any], name: str) -> Page:
    """The page of the stills of one .expt, each in a folder of its own."""
    rows = [row_of_record(folder, still, name) for still in content["stills"]]
    foot = f"dbex {content['versions']['dbex']}, {content['started']}: {content['command']}"
    return overview_page(f"DBEX: {len(rows)} stills", rows, f"{RECORD} beside this page", HOW_SEVERAL, foot)


def row_of_record(folder: Path, still: dict[str, Any], name: str) -> StillRow:
    """The row of one of several stills, from its own dbex.json."""
    if still["folder"] is None:
        return StillRow(still["index"], still["still"], "bad input", reason=still["failure"] or "")
    content = read_content(folder / still["folder"])
    verdict = content["verdict"]
    return StillRow(
        still["index"],
        still["still"],
        OUTCOMES.get(verdict["state"], "refined"),
        verdict["state"],
        "; ".join(verdict["reasons"]),
        {key: value for key, value in content["figures"].items() if value is not None},
        {e["name"]: (e["after"], math.nan if e["esd"] is None else e["esd"], e["unit"]) for e in content["estimates"]},
        np.array(content["models"]["after"]["crystal"]["U"], dtype=float),
        f"{still['folder']}/{name}" if name else None,
    )


def page_of_joint(folder: Path) -> Page:
    """The page of a joint refinement."""
    content = read_content(folder, JOINT)
    require(content, CONTENT_OF_JOINT, folder / JOINT)
    return joint_page(content)


def page_of_sweep(folder: Path, name: str) -> Page:
    """The page of a sweep; it depends on its results alone."""
    from dbex.batch.compose import TABLE, read_table

    folders = [file.parent.name for file in (folder / STILLS).glob(f"*_*/{RECORD}")]
    made = {int(each.partition("_")[0]): each for each in folders}
    rows = [row_of_table(row, made, name) for row in read_table(folder)]
    return overview_page(f"DBEX: {len(rows)} stills", rows, TABLE, HOW_SWEEP)


def row_of_table(row: dict[str, str], made: dict[int, str], name: str) -> StillRow:
    """The row of a still of stills.csv; `made` has the folders of the stills that have a page."""
    number = int(row["number"])
    place = f"still {row['experiment'] or 0} of {Path(row['experiments']).name}"
    esds = {key.removeprefix("esd of "): value for key, value in row.items() if key.startswith("esd of ") and value}
    estimates, figures = {}, {}
    for key, text in row.items():
        parameter, _, bracket = key.partition(" (")
        if parameter in esds and text:
            estimates[parameter] = (float(text), float(esds[parameter]), bracket.removesuffix(")"))
        elif text and is_number(text):
            figures[key] = float(text)
    U = [figures.pop(f"U_{i}{j}", math.nan) for i in (1, 2, 3) for j in (1, 2, 3)]
    return StillRow(
        number,
        row["name"] or place,
        row["state"],
        row["verdict"],
        " ".join(row["reason"].split()),
        figures,
        estimates,
        np.array(U).reshape(3, 3) if np.isfinite(U).all() else None,
        f"{STILLS}/{made[number]}/{name}" if number in made else None,
    )


def is_number(text: str) -> bool:
    """Whether a cell holds a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
