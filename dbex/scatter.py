"""How numbers of many stills scatter: medians, robust widths, outliers, and where crystals' axes point."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dbex.still import Bools, Floats

#: The standard deviation of a normal deviate over its median absolute deviation.
MAD_TO_SIGMA = 1.4826
#: Further from the median than so many widths, its own esd included, a still is an outlier; fewer stills have none.
OUTLIER_WIDTHS, FEWEST_STILLS = 5.0, 5


@dataclass(frozen=True)
class Spread:
    """How many stills have a number, their median, the robust standard deviation about it, and the median esd."""

    stills: int
    median: float
    width: float
    esd: float


def spread(values: Floats, esds: Floats) -> Spread:
    """The spread of the values that are numbers; NaN where there is none."""
    known = np.isfinite(values)
    if not known.any():
        return Spread(0, float("nan"), float("nan"), float("nan"))
    median = float(np.median(values[known]))
    width = MAD_TO_SIGMA * float(np.median(np.abs(values[known] - median)))
    sure = np.isfinite(esds) & known
    return Spread(int(known.sum()), median, width, float(np.median(esds[sure])) if sure.any() else float("nan"))


def distance_in_widths(values: Floats, esds: Floats) -> Floats:
    """How far (n,) each value is from the median, over the width of all and its own esd together; NaN where unknown."""
    found = spread(values, esds)
    own = np.where(np.isfinite(esds), esds, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(values - found.median) / np.sqrt(found.width**2 + own**2))


def outlying(values: Floats, esds: Floats) -> Bools:
    """Which values (n,) are outliers."""
    if np.isfinite(values).sum() < FEWEST_STILLS:
        return np.zeros(len(values), bool)
    return np.asarray(np.nan_to_num(distance_in_widths(values, esds)) > OUTLIER_WIDTHS)


def poles(U: Floats, axis: int, direction: Sequence[float] = (0.0, 0.0, -1.0)) -> Floats:
    """Where a crystal axis points, (n, 2) in the unit disc: column `axis` of U (n, 3, 3) and its opposite, whichever
    points to the source, in Lambert's equal-area projection along the beam, x to the right and y up."""
    s0 = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    across = np.array([1.0, 0.0, 0.0]) - s0[0] * s0
    across /= np.linalg.norm(across)
    pointing = U[:, :, axis]
    toward = -(pointing @ s0)
    pointing = pointing * np.where(toward < 0, -1.0, 1.0)[:, None]
    flat = np.stack([pointing @ across, pointing @ np.cross(across, s0)], axis=1)
    return np.asarray(flat / np.sqrt(1 + np.abs(toward))[:, None])
