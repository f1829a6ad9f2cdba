"""One straight line through the panels' mean backgrounds and variances: what many quote as gain and read-out noise.

It takes all panels for alike. Where their pedestals differ, a pedestal passes for light: the slope is less than the
gain, and the variance at value 0 says nothing of the read-out noise.
"""

from dataclasses import dataclass

import numpy as np

from dbex.physics.tiles import Tiles
from dbex.still import Floats

#: Fewer panels give no line with an esd that can be believed.
FEWEST_PANELS = 8


@dataclass(frozen=True)
class PanelLine:
    """variance = gain · mean + variance_at_zero through so many panels, in image units, with esds from their scatter
    about it."""

    panels: int
    gain: float
    gain_esd: float
    variance_at_zero: float
    variance_at_zero_esd: float


def panel_line(tiles: Tiles) -> PanelLine | None:
    """The line, each panel's variance taken to err in proportion to its mean; None for few panels, or dark ones."""
    mean, variance = panel_means(tiles)
    if len(mean) < FEWEST_PANELS or mean.min() <= 0 or np.ptp(mean) == 0:
        return None
    design = np.column_stack([mean, np.ones(len(mean))]) / mean[:, None]
    solve = np.linalg.pinv(design)
    slope, at_zero = solve @ (variance / mean)
    residual = variance / mean - design @ (slope, at_zero)
    # of each panel's own residual, whatever its size
    esds = np.sqrt(((solve * residual) ** 2).sum(1) * len(mean) / (len(mean) - 2))
    return PanelLine(len(mean), float(slope), float(esds[0]), float(at_zero), float(esds[1]))


def panel_means(tiles: Tiles) -> tuple[Floats, Floats]:
    """Mean and variance within tiles of every panel that has some, over its pixels."""
    pixels = np.bincount(tiles.panel, tiles.pixels)
    there = pixels > 0
    mean, variance = (np.bincount(tiles.panel, tiles.pixels * values) for values in (tiles.mean, tiles.variance))
    return mean[there] / pixels[there], variance[there] / pixels[there]
