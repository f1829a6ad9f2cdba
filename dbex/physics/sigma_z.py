"""σ-Z: whether residuals of background pixels are as large as their variances say, by intensity and by panel."""

import numpy as np
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.still import Floats, PixelTable, SigmaZ, SigmaZCheck

#: Quantile bins of the intensity.
BINS = 6
#: A pixel is background where the model's Bragg part is below this fraction of the background's sigma. At a tenth the
#: tails of real spots, wider than any model's, already show.
BRAGG_LIMIT = 0.02
#: Pixels farther off are no noise: the fit weighs them down as well.
OUTLIER_Z = 6.0
#: Numbers of a plane, which each box's background takes from its residuals.
PLANE = 3


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


def background_sigma_z(pixels: PixelTable) -> SigmaZCheck:
    """σ-Z of the background of a refined still's boxes, by photons expected and by panel.

    Used pixels with next to no Bragg scattering and no more than 6 sigma off count; what the plane of a box took from
    its residuals is given back: mean Z² is 1 where the variances are right.
    """
    residual = pixels.data - pixels.background - pixels.bragg
    spots = pixels.bragg + pixels.other_lattices
    dark = np.maximum(pixels.variance - np.maximum(spots, 0.0), 0.0)
    used = np.bincount(pixels.box[pixels.used], minlength=int(pixels.box.max(initial=-1)) + 1)
    free = np.maximum(used - PLANE, 0)[pixels.box] / np.maximum(used[pixels.box], 1)
    chosen = pixels.used & (np.abs(spots) < BRAGG_LIMIT * np.sqrt(dark)) & (free > 0)
    chosen &= np.abs(residual) < OUTLIER_Z * np.sqrt(pixels.variance)
    z = residual[chosen] / np.sqrt(pixels.variance[chosen] * free[chosen])
    return sigma_z(z, (pixels.background + pixels.bragg)[chosen], pixels.panel[chosen])


def _spread(z: Floats, intensity: Floats) -> SigmaZ:
    if not len(z):
        return SigmaZ(0, np.nan, np.nan, np.nan)
    square = z * z
    rms = float(np.sqrt(square.mean()))
    esd = float(square.std() / (2 * rms * np.sqrt(len(z)))) if rms > 0 else np.nan
    return SigmaZ(len(z), float(intensity.mean()), rms, esd)
