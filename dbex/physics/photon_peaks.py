"""Gain, pedestal and read-out noise where single photons are told apart: the comb of peaks in a panel's histogram.

A pixel that counts k photons holds pedestal + gain · k with the variance σ² + k τ², τ being the spread of the gain over
pixels. How often each k occurs is free: neither slopes of the background, nor spots, nor what differs over the panel
enter, only where peaks stand and how wide they are (expectation and maximisation, Dempster, Laird & Rubin 1977). Esds
are those of tiles' scores (White's sandwich), so that neighbours may err together.

The start comes from the characteristic function φ(f) of the values: −ln |φ| = 2 π² σ² f² + λ (1 − cos 2π f gain).
"""

from dataclasses import dataclass

import numpy as np

from dbex.still import Floats, Ints

#: Pixels below which no histogram is looked at, and bins of the first guess's gain when values are no whole numbers.
LEAST_PIXELS, FINE_BINS = 2000, 400
#: The comb is there where |φ| at one over the gain is so many times its noise.
LEAST_COMB = 8.0
#: Peaks wider than this fraction of the gain run into each other.
WIDEST = 0.36
#: Fewer pixels than this fraction off the zeroth peak, or off all others, tell no gain.
LEAST_LIT = 0.02
#: Pixels that the peak of no photon must hold.
LEAST_DARK = 100
#: How far Poisson counts of any mixture of means may seem to break s₁² ≤ 2 s₀ s₂; a comb one tooth too low does by far.
BROKEN = 1.6
#: A gain with a larger relative esd is none.
LARGEST_ESD = 0.05
#: Highest frequency looked at, in bins: whole numbers repeat at 1.
HIGHEST_FREQUENCY = 0.45
#: Peaks of whole numbers that are narrower (σ² in units) are too few points for a width.
NARROWEST = 0.4
#: Photons that the variance of tiles tells, and those that the peaks tell, agree within this factor.
ALIKE = 2.0
#: Nats a pixel that a comb may lack of a histogram: real panels lack 0.004 to 0.04, those of two gains 0.08.
LARGEST_MISFIT = 0.05
#: Gains that are tried at first.
GUESSES = 400
#: Peaks at most, steps at most, and the change of the log-likelihood per pixel that ends them.
MOST_PEAKS, STEPS, SETTLED = 80, 600, 1e-8


@dataclass(frozen=True)
class PhotonPeaks:
    """Gain, pedestal, read-out variance σ² and variance a photon τ² of a panel in image units, and their covariance
    (4, 4) in this order."""

    gain: float
    pedestal: float
    variance: float
    variance_a_photon: float
    covariance: Floats


def photon_peaks(
    values: Floats, tile: Ints, tile_variance: float, like: PhotonPeaks | None = None
) -> PhotonPeaks | None:
    """The comb in values (n,) of background pixels, numbered by the tile that they lie in; `tile_variance` is their
    usual variance within a tile, which says where about the peak of no photon is. Another panel's comb, `like`, is the
    start where the values give none by themselves. None where peaks are not told apart."""
    if len(values) < LEAST_PIXELS:
        return None
    whole = bool(np.all(values == np.rint(values)))
    width = 1.0 if whole else float(np.ptp(values)) / FINE_BINS
    if width == 0:
        return None
    low = values.min()
    index = np.rint((values - low) / width).astype(np.int64)
    counts = np.bincount(index).astype(np.float64)
    guess = _guess(counts, tile_variance / width**2) or (like and (like.gain / width, like.variance / width**2))
    if not guess:
        return None
    gain, variance = guess
    place = np.arange(len(counts), dtype=np.float64)
    mean = float(np.average(place, weights=counts))
    photons = max((tile_variance / width**2 - variance) / gain**2, 0.0)
    # A tooth too many below is found out, one too few is a bad fit.
    for below in (0, 1):
        comb = _Comb(counts, gain, _phase(counts, gain, mean - (photons + below) * gain), variance)
        comb.settle()
        if comb.is_one(tile_variance / width**2):
            break
    else:
        return None
    if whole and comb.variance < NARROWEST:
        return None
    covariance = comb.covariance(index, tile)
    if covariance is None or not 0 < covariance[0, 0] < (LARGEST_ESD * comb.gain) ** 2:
        return None
    first = comb.first_tooth()
    # Numbers of the tooth of no photon from those of the comb's first, in the image's units.
    by = np.array([[1.0, 0, 0, 0], [first, 1.0, 0, 0], [0, 0, 1.0, first], [0, 0, 0, 1.0]])
    by *= np.array([width, width, width**2, width**2])[:, None]
    gain, pedestal, variance, spread = by @ (comb.gain, comb.pedestal, comb.variance, comb.spread)
    return PhotonPeaks(gain, pedestal + low, variance, spread, by @ covariance @ by.T)


def _guess(counts: Floats, tile_variance: float) -> tuple[float, float] | None:
    """Gain and σ² in bins for which −ln |φ| is as the module says, by least squares; None where there is no comb with
    about as many photons as the variance within tiles says."""
    length = 8 * len(counts)
    phi = np.abs(np.fft.rfft(counts, length)) / counts.sum()
    frequency = np.arange(len(phi)) / length
    seen = (frequency > 0) & (frequency < HIGHEST_FREQUENCY) & (phi > LEAST_COMB / np.sqrt(counts.sum()))
    f, fall, weight = frequency[seen], -np.log(phi[seen]), phi[seen] ** 2
    if len(f) < 3:
        return None
    gains = np.geomspace(1 / HIGHEST_FREQUENCY, len(counts) / 2, GUESSES)
    wide = 2 * np.pi**2 * f**2
    comb = 1 - np.cos(2 * np.pi * np.outer(gains, f))
    # Normal equations of two unknowns, σ² and λ, for every gain.
    aa, ab, bb = np.sum(weight * wide**2), comb @ (weight * wide), comb**2 @ weight
    ay, by = np.sum(weight * wide * fall), comb @ (weight * fall)
    determinant = np.maximum(aa * bb - ab**2, np.finfo(float).tiny)
    variance, photons = (ay * bb - by * ab) / determinant, (by * aa - ay * ab) / determinant
    misfit = -(variance * ay + photons * by)  # but for what all gains share
    good = seen[np.minimum(np.rint(length / gains).astype(np.int64), len(seen) - 1)]
    good &= (photons > 0) & (variance < (WIDEST * gains) ** 2)
    good &= (tile_variance - variance) / gains**2 > photons / ALIKE**2
    if not good.any():
        return None
    best = int(np.argmin(np.where(good, misfit, np.inf)))
    return float(gains[best]), float(max(variance[best], 0.0))


def _phase(counts: Floats, gain: float, near: float) -> float:
    """The place of the comb's tooth nearest to a place, in bins."""
    turn = np.angle(np.sum(counts * np.exp(2j * np.pi * np.arange(len(counts)) / gain))) / (2 * np.pi)
    return float((turn + np.rint(near / gain - turn)) * gain)


class _Comb:
    """A comb of Gaussian peaks that settles on a histogram, in bins; `share` (k,) is how often k photons occur."""

    def __init__(self, counts: Floats, gain: float, pedestal: float, variance: float) -> None:
        self.counts = counts
        self.place = np.arange(len(counts), dtype=np.float64)
        self.gain, self.pedestal = gain, pedestal
        self.variance, self.spread = max(variance, 0.05), 0.0
        peaks = int(np.clip(np.ceil((len(counts) - pedestal) / gain) + 1, 3, MOST_PEAKS))
        self.photons = np.arange(peaks, dtype=np.float64)
        self.share = np.full(peaks, 1 / peaks)

    def _densities(self) -> tuple[Floats, Floats, Floats]:
        """Distance from each peak and density of each (place, peak), variance (peak)."""
        variance = self.variance + self.spread * self.photons
        away = self.place[:, None] - self.pedestal - self.gain * self.photons
        return away, np.exp(-0.5 * away**2 / variance) / np.sqrt(2 * np.pi * variance), variance

    def settle(self) -> None:
        """Repeat expectation and maximisation until the likelihood stands."""
        total, before = self.counts.sum(), -np.inf
        for _ in range(STEPS):
            _, density, variance = self._densities()
            joint = density * self.share
            mixed = np.maximum(joint.sum(1), 1e-300)
            now = float(self.counts @ np.log(mixed)) / total
            if now - before < SETTLED:
                return
            before = now
            member = joint / mixed[:, None] * self.counts[:, None]
            self._maximise(member, variance)

    def _maximise(self, member: Floats, variance: Floats) -> None:
        often = member.sum(0)
        self.share = often / often.sum()
        weight = often / variance
        where = (self.place @ member) / np.maximum(often, 1e-300)
        k = np.average(self.photons, weights=weight)
        centre = np.average(where, weights=weight)
        self.gain = float(np.sum(weight * (self.photons - k) * where) / np.sum(weight * (self.photons - k) ** 2))
        self.pedestal = float(centre - self.gain * k)
        away = self.place[:, None] - self.pedestal - self.gain * self.photons
        square = (member * away**2).sum(0) / np.maximum(often, 1e-300)
        # A line through the peaks' variances, their own likelihood's weights.
        weight = often / variance**2
        k, centre = np.average(self.photons, weights=weight), np.average(square, weights=weight)
        slope = np.sum(weight * (self.photons - k) * square) / np.sum(weight * (self.photons - k) ** 2)
        self.spread = float(np.clip(slope, 0.0, centre / max(k, 1e-6) * 0.9))
        self.variance = float(max(centre - self.spread * k, 0.05))

    def first_tooth(self) -> int:
        """Which tooth is that of no photon: teeth below it hold no more than wings of the noise.

        Any mixture of Poisson laws has shares s for which k! s_k are moments of e^-λ, convex in k by their logarithms:
        from the tooth of no photon on, s₁² ≤ 2 s₀ s₂ for any three in a row, and the tooth before it breaks this.
        """
        share = self.share
        rising = np.arange(min(int(np.argmax(share)), len(share) - 2))
        broken = share[rising + 1] ** 2 > BROKEN * 2 * share[rising] * share[rising + 2]
        return int(np.flatnonzero(broken)[-1]) + 1 if broken.any() else 0

    def is_one(self, tile_variance: float) -> bool:
        """Whether peaks are told apart, the first is that of no photon, which some pixels must show, and there are as
        many photons as the variance within tiles says: no comb that slow changes of the background drew."""
        first = self.first_tooth()
        variance = self.variance + first * self.spread
        dark, lit = self.share[first] * self.counts.sum(), 1 - self.share.max()
        if not (variance < (WIDEST * self.gain) ** 2 and lit > LEAST_LIT and dark > LEAST_DARK):
            return False
        mean = float(self.share @ (self.photons - first))
        _, density, _ = self._densities()
        seen = self.counts > 0
        often = self.counts[seen] / self.counts.sum()
        if float(often @ np.log(often / (density @ self.share)[seen].clip(1e-300))) > LARGEST_MISFIT:
            return False
        return bool(mean / ALIKE < (tile_variance - variance) / self.gain**2 < mean * ALIKE)

    def covariance(self, index: Ints, tile: Ints) -> Floats | None:
        """Covariance (4, 4) of gain, pedestal, σ² and τ² from the scores of tiles; None where they do not give one."""
        away, density, variance = self._densities()
        kept = self.share > 1e-7
        mixed = np.maximum(density @ self.share, 1e-300)[:, None]
        member = density * self.share / mixed
        pull = member * away / variance
        widen = member * 0.5 * (away**2 / variance**2 - 1 / variance)
        columns = [pull @ self.photons, pull.sum(1), widen.sum(1), widen @ self.photons]
        largest = int(np.argmax(self.share))
        others = np.flatnonzero(kept & (np.arange(len(kept)) != largest))
        shares = (density[:, others] - density[:, largest, None]) / mixed
        fixed = self.spread <= 0
        if fixed:
            columns = columns[:3]
        score = np.column_stack([*columns, shares])
        information = (score * self.counts[:, None]).T @ score
        numbers = np.unique(tile, return_inverse=True)[1]
        table = np.zeros((numbers.max() + 1, score.shape[1]))
        np.add.at(table, numbers, score[index])
        try:
            inverse = np.linalg.inv(information)
        except np.linalg.LinAlgError:
            return None
        found = (inverse @ (table.T @ table) @ inverse)[: len(columns), : len(columns)]
        return np.pad(found, (0, 1)) if fixed else found
