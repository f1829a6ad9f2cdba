"""Gain, pedestal and read-out noise of every panel of a detector that tells single photons apart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dbex.physics.photon_peaks import PhotonPeaks, photon_peaks
from dbex.physics.tiles import BackgroundValues
from dbex.still import Floats

#: Panels that show their photons, of all: with fewer the others are not like them.
LEAST_RESOLVED = 0.5


@dataclass(frozen=True)
class PanelNoise:
    """Gain, pedestal and read-out variance σ² of a panel in image units with their covariance (3, 3); `own` tells peaks
    of its own from the gain and σ² of the other panels, with which its mean and variance give the pedestal.

    `dark_variance` is what background varies by beyond its photons, σ² and whatever else makes it uneven.
    """

    gain: float
    pedestal: float
    variance: float
    covariance: Floats
    dark_variance: float
    own: bool


def panel_noise(backgrounds: Sequence[BackgroundValues]) -> tuple[PanelNoise, ...] | None:
    """The noise of each panel; None where too few tell photons apart."""
    found: list[PhotonPeaks | None] = []
    known: PhotonPeaks | None = None
    for background in backgrounds:
        found.append(photon_peaks(background.values, background.tile, background.tile_variance, known))
        known = found[-1] or known
    resolved = [peaks for peaks in found if peaks]
    if not resolved or len(resolved) < LEAST_RESOLVED * len(found):
        return None
    return tuple(
        PanelNoise(peaks.gain, peaks.pedestal, peaks.variance, peaks.covariance[:3, :3], _dark(peaks, background), True)
        if peaks
        else _like_the_others(background, resolved)
        for peaks, background in zip(found, backgrounds, strict=True)
    )


def _dark(peaks: PhotonPeaks, background: BackgroundValues) -> float:
    return background.dark_variance(peaks.gain, peaks.pedestal, peaks.variance)


def _like_the_others(background: BackgroundValues, resolved: Sequence[PhotonPeaks]) -> PanelNoise:
    """The mean gain and σ² of other panels, and the pedestal at which they explain a panel's mean and variance."""
    gains, variances = (np.array([getattr(peaks, name) for peaks in resolved]) for name in ("gain", "variance"))
    gain, variance = float(gains.mean()), float(variances.mean())
    if not len(background.values):
        return PanelNoise(gain, np.nan, variance, np.full((3, 3), np.nan), variance, False)
    signal = background.tile_variance - variance
    spread = np.cov(gains, variances) if len(resolved) > 1 else np.zeros((2, 2))
    by = np.array([[1.0, 0.0], [signal / gain**2, 1 / gain], [0.0, 1.0]])
    pedestal = float(background.values.mean()) - signal / gain
    return PanelNoise(gain, pedestal, variance, by @ spread @ by.T, variance, False)
