"""The golden images of the original nanoBragg: where they are and which of them are judged here."""

import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden"

#: Cases that need a piece which is not built yet.
LATER = {
    "curved_custom": "curved detectors",
    "curved_mosflm_right": "curved detectors",
    "water": "the water background",
    "water_fluence": "the water background",
    "nonbragg_water": "the amorphous background of nonBragg",
}

#: Cases that show what the C program returns in spite of physics, with the case that shows what is right.
QUIRKS = {"thick_quirk": "thick_layers", "oversample_3_quirk": "oversample_3"}


def all_cases() -> dict[str, dict]:
    """Records by name; none where the folder is absent."""
    path = FOLDER / "cases.json"
    return {case["name"]: case for case in json.loads(path.read_text())} if path.exists() else {}


def judged_cases() -> list[str]:
    """Names of the cases whose image is compared; one that skips by name where the folder is absent."""
    names = [name for name in all_cases() if name not in LATER and name not in QUIRKS]
    return names or [pytest.param("", id="shared/golden", marks=pytest.mark.skip(reason=f"{FOLDER} is absent"))]


def image(name: str) -> np.ndarray:
    with np.load(FOLDER / "images.npz") as images:
        return images[name].astype(np.float64)
