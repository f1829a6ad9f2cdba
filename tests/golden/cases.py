"""The golden images of the original nanoBragg: where they are and which of them are judged here."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden"

#: Cases that show what the C program returns in spite of physics, with the case that shows what is right.
QUIRKS = {"thick_quirk": "thick_layers", "oversample_3_quirk": "oversample_3"}

ALL = {case["name"]: case for case in json.loads((FOLDER / "cases.json").read_text())} if FOLDER.exists() else {}

JUDGED = [name for name in ALL if name not in QUIRKS]


def named(names):
    """Names for parametrize; one that skips by name where the folder is absent."""
    return list(names) if ALL else [pytest.param("", id="absent", marks=pytest.mark.skip(reason=f"{FOLDER} is absent"))]
