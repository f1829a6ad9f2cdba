"""σ-Z: whether residuals of background pixels are as large as their variances say, by intensity and by panel."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.still import Floats

#: Quantile bins of the intensity.
BINS = 6


@dataclass(frozen=True)
class SigmaZ:
    """The rms of Z over some pixels with its esd, and their mean intensity; NaN where there is no pixel."""

    pixels: int
    intensity: float
    rms: float
    esd: float


@dataclass(frozen=True)
class SigmaZCheck:
    """σ-Z over all pixels, in bins of rising intensity with about as many pixels each, and by number of panel."""

    together: SigmaZ
    by_intensity: tuple[SigmaZ, ...]
    by_panel: dict[int, SigmaZ]


def sigma_z(z: Floats, intensity: Floats, panel: NDArray[np.integer], bins: int = BINS) -> SigmaZCheck:
    """Check residuals over their expected standard deviations, z (n,), of pixels of an expected intensity (n,), in any
    unit, on panels (n,). Intensity has to be the model's: that of the data would sort by the noise. Raises BadInput
    where the three differ in length."""
    if not z.shape == intensity.shape == panel.shape:
        raise BadInput(f"z, intensity and panel have shapes {z.shape}, {intensity.shape} and {panel.shape}: not equal")
    edges = np.unique(np.quantile(intensity, np.linspace(0, 1, bins + 1)[1:-1])) if len(z) else np.zeros(0)
    bin_of = np.searchsorted(edges, intensity, side="left")
    parts = (bin_of == i for i in range(len(edges) + 1))
    return SigmaZCheck(
        _spread(z, intensity),
        tuple(_spread(z[part], intensity[part]) for part in parts if part.any()),
        {int(i): _spread(z[panel == i], intensity[panel == i]) for i in np.unique(panel)},
    )


def _spread(z: Floats, intensity: Floats) -> SigmaZ:
    if not len(z):
        return SigmaZ(0, np.nan, np.nan, np.nan)
    square = z * z
    rms = float(np.sqrt(square.mean()))
    esd = float(square.std() / (2 * rms * np.sqrt(len(z)))) if rms > 0 else np.nan
    return SigmaZ(len(z), float(intensity.mean()), rms, esd)
