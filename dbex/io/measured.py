"""The noise that dbex.estimate_noise wrote, panel by panel."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dbex.errors import BadInput
from dbex.io.files import reading
from dbex.still import NoiseModel

KIND = "what dbex.estimate_noise writes to output.json="
#: A pedestal nearer to zero, in esds, is none.
SIGNIFICANT = 4.0


def read_noise(path: str | Path, panels: int) -> NoiseModel:
    """Gain, pedestal and read-out noise of each of so many panels.

    The noise is what background scatters by beyond its photons. Raises BadInput where the file does not give them.
    """
    with reading(path, KIND) as file:
        records = json.loads(file.read_text(encoding="utf-8"))["panels"]
        found = [_panel(record) for record in records]
    if len(found) != panels:
        raise BadInput(f"{path} has {len(found)} panels but the detector has {panels}: measure this detector's noise")
    gains, pedestals, sigmas = np.array(found).T
    missing = np.flatnonzero(~(np.isfinite(np.array(found)).all(axis=1) & (gains > 0) & (sigmas > 0)))
    if len(missing):
        raise BadInput(
            f"{path} has no gain and read-out noise for {len(missing)} of {panels} panels, panel {missing[0]} the "
            "first: the background did not determine them; give gain= and sigma_readout= instead"
        )
    return NoiseModel(
        float(gains.mean()),
        tuple(float(sigma) for sigma in sigmas / gains),
        "measured",
        tuple((float(gain), float(pedestal)) for gain, pedestal in zip(gains, pedestals, strict=True)),
    )


def _panel(record: dict[str, Any]) -> tuple[float, float, float]:
    """Gain, pedestal and σ of a panel; a pedestal that is not determined is zero."""

    def number(value: float | None) -> float:
        return float("nan") if value is None else float(value)

    gain = number(record["gain"]["value"])
    pedestal, esd = (number(record["pedestal"][name]) for name in ("value", "esd"))
    return gain, pedestal if abs(pedestal) > SIGNIFICANT * esd else 0.0, number(record["sigma_dark"])
