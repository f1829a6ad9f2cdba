"""Gain, read-out noise and pedestal of a still from its own background: the line of variance against mean.

A pixel of mean m that counts photons with a gain g (image units per photon), a pedestal p and a read-out noise σ has
the variance v = g (m − p) + σ² = g m + v₀ and the third cumulant g² (m − p), where the read-out noise is symmetric
(Janesick's photon transfer curve). The line gives g and v₀; the third cumulant parts v₀ into σ² and p.

The noise of a tile's mean would bend the line, so tiles are placed and weighted by the mean of the tiles around them,
an instrumental variable. Esds are those of the tiles' own scatter about the line.

Where read-out noise is far below a photon, peaks of single photons tell gain, pedestal and noise of each panel by
themselves (dbex.physics.photon_peaks), whatever differs between its parts; the line of all panels still weighs pixels
whose pedestals nobody takes off.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.physics.panel_line import PanelLine, panel_line
from dbex.physics.panel_noise import PanelNoise, panel_noise
from dbex.physics.sigma_z import sigma_z
from dbex.physics.tiles import PixelNoise, Tiles, background_values, residuals_of, tiles_of, variance_of_variance
from dbex.still import Bools, Floats, Ints, SigmaZCheck

#: Passes of clipping; the last two differ by less than a thousandth.
PASSES = 3
#: The median of the square of a standard normal number.
MEDIAN_OF_SQUARE = 0.4549
#: Quantile bins of the mean, through whose medians the line for clipping is drawn.
BINS = 12
#: The least variance that clips and weighs, in typical ones: of a dark tile one stray photon must not be an outlier.
LEAST_VARIANCE = 1e-3
#: The least variance that weighs, in typical ones: darker tiles would hold the line by themselves.
LEAST_WEIGHED = 0.1
#: Below this misfit panels are uniform, so that intercepts of their own and pedestals mean something.
UNIFORM = 2.0
#: Fewer tiles give no esd that can be believed.
LEAST_TILES = 30
#: Fewer panels do not tell how panels differ.
LEAST_PANELS = 8
#: The largest relative esd of a gain that counts as measured.
LARGEST_RELATIVE_ESD = 0.15
#: The slope's leverage in esds below which the spread of means is not told apart from their own noise.
LEAST_LEVERAGE = 8.0
#: A variance at zero that is missing is nothing beside so many times its size in photons of the dimmest tiles.
NEGLIGIBLE = 0.02
#: What is told apart from zero, in esds.
SIGNIFICANT = 4.0


@dataclass(frozen=True)
class Estimate:
    """A number with its esd, both NaN where there is none."""

    value: float
    esd: float

    @property
    def differs_from_zero(self) -> bool:
        """Whether the number is farther from zero than chance takes it."""
        return bool(abs(self.value) > SIGNIFICANT * self.esd)


NONE = Estimate(float("nan"), float("nan"))


@dataclass(frozen=True)
class NoiseRecord:
    """What the background of one panel, or of all together (`panel` None), says of the noise, in image units.

    `gain` is per photon; `variance_at_zero` is v₀, what a pixel of value 0 varies by; `pedestal` is from the third
    cumulant; `sigma_readout` is the read-out noise with the pedestal where that differs from zero, else with none.
    `mean_range` holds the 5 and 95 % quantiles of the tiles' means. `correlation` is that of neighbouring pixels.
    `skewness` is the third cumulant over the variance: the gain, or less where read-out noise adds to the variance.
    `misfit` is how many times as much tiles scatter about the line as chance explains.
    `sigma_dark` is what background scatters by beyond its photons, read-out noise and whatever else makes it uneven.
    `own_gain` tells a gain measured here from one taken over from all panels; `words` say what is not determined.
    """

    panel: int | None
    tiles: int
    mean_range: tuple[float, float]
    gain: Estimate
    own_gain: bool
    variance_at_zero: Estimate
    sigma_readout: Estimate
    sigma_dark: float
    pedestal: Estimate
    skewness: Estimate
    correlation: Estimate
    misfit: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class NoiseMeasurement:
    """The record of all panels together and one for each.

    `uniform` says whether lines of one slope, with an intercept for each panel, explain the tiles; if not, the gain is
    that of one line through all of them, which weighs pixels. `gain_scatter` is how much panels' gains differ (rms,
    relative) beyond their esds, NaN where fewer than two are determined. `noise` is the model that clipped.
    `resolved` says on how many panels single photons are told apart: where it is not 0 the panels' gains, pedestals
    and noise are those of the photons' peaks, or like them. `weighing` scales the variance that is recommended, so that
    mean Z² of the tiles is 1 also where one line does not hold for all. `panel_line` is the straight line through the
    panels' means, to compare with, None for few panels.
    """

    together: NoiseRecord
    panels: tuple[NoiseRecord, ...]
    uniform: bool
    gain_scatter: float
    noise: PixelNoise | None
    resolved: int = 0
    weighing: float = 1.0
    panel_line: PanelLine | None = None

    @property
    def determined(self) -> bool:
        """Whether the gain of all panels together is measured."""
        return self.together.own_gain

    @property
    def recommended(self) -> tuple[float, float] | None:
        """Gain and σ that weigh pixels as the background scatters: variance = gain · value + σ², with no pedestal.

        A σ that is not told apart from zero is its esd, since no read-out noise is exactly zero. None where the gain
        is not measured, or a pedestal leaves no variance at value zero.
        """
        at_zero, gain = self.together.variance_at_zero, self.together.gain.value
        nothing = max(SIGNIFICANT * at_zero.esd, NEGLIGIBLE * gain * self.together.mean_range[0])
        if not self.determined or at_zero.value < -nothing:
            return None
        return gain * self.weighing, float(np.sqrt(max(at_zero.value, at_zero.esd) * self.weighing))


def estimate_noise(images: Sequence[NDArray[Any]], masks: Sequence[Bools]) -> NoiseMeasurement:
    """Measure the noise of a still from one array (slow, fast) a panel in image units and the masks of its background
    (True where a pixel is trusted and no known spot is near). Raises BadInput where the two do not fit."""
    if len(images) != len(masks) or any(a.shape != b.shape for a, b in zip(images, masks, strict=False)):
        raise BadInput("images and masks differ in number or shape of panels: expected one mask for each image")
    tiles, noise = _clipped_tiles(images, masks, apart=True)
    uniform = _misfit(tiles, noise) < UNIFORM
    if not uniform:
        tiles, noise = _clipped_tiles(images, masks, apart=False)
    found = replace(_measurement(tiles, noise, uniform, len(images)), panel_line=panel_line(tiles))
    if not uniform and found.recommended:
        gain, sigma = found.recommended
        z2 = tiles.variance / np.maximum(gain * tiles.mean + sigma**2, noise.least if noise else 0.0)
        found = replace(found, weighing=float(np.average(z2, weights=tiles.pixels)))
    peaks = panel_noise(list(background_values(images, masks, noise))) if noise else None
    return with_peaks(found, peaks) if peaks else found


def with_peaks(found: NoiseMeasurement, peaks: Sequence[PanelNoise]) -> NoiseMeasurement:
    """A measurement whose panels have what the peaks of single photons say."""
    panels = tuple(
        replace(
            record,
            gain=Estimate(peak.gain, float(np.sqrt(peak.covariance[0, 0]))),
            own_gain=peak.own,
            pedestal=Estimate(peak.pedestal, float(np.sqrt(peak.covariance[1, 1]))),
            variance_at_zero=_at_zero(peak),
            sigma_readout=_root(Estimate(peak.variance, float(np.sqrt(peak.covariance[2, 2])))),
            sigma_dark=float(np.sqrt(peak.dark_variance)),
            words=(),
        )
        for record, peak in zip(found.panels, peaks, strict=True)
    )
    return replace(found, panels=panels, gain_scatter=_scatter(panels), resolved=sum(peak.own for peak in peaks))


def _at_zero(peak: PanelNoise) -> Estimate:
    """v₀ = σ² − gain · pedestal."""
    by = np.array([-peak.pedestal, -peak.gain, 1.0])
    return Estimate(peak.variance - peak.gain * peak.pedestal, float(np.sqrt(by @ peak.covariance @ by)))


def _clipped_tiles(
    images: Sequence[NDArray[Any]], masks: Sequence[Bools], apart: bool
) -> tuple[Tiles, PixelNoise | None]:
    """Tiles clipped by lines through their own medians, with those lines; `apart` gives each panel an intercept."""
    tiles = tiles_of(images, masks, None)
    for _ in range(PASSES):
        noise = pixel_noise(tiles, len(images), apart)
        if noise is None:
            break
        tiles = tiles_of(images, masks, noise)
    return tiles, noise


def pixel_noise(tiles: Tiles, panels: int, apart: bool) -> PixelNoise | None:
    """The noise that clips and weighs: a line through medians, which spots and bad regions do not reach, with one
    intercept or, `apart`, one for each panel; None where there is nothing to draw a line through."""
    if len(tiles) < LEAST_TILES or not tiles.variance.any():
        return None
    # Where most tiles hold no photon, their median says nothing.
    middle: Callable[[Floats], Any] = np.median if np.median(tiles.variance) > 0 else np.mean
    typical = float(middle(tiles.variance))
    skew = max(float(middle(tiles.third)) / typical, 0.0)
    group = tiles.panel if apart else np.zeros(len(tiles), dtype=np.int64)
    x, y = (values - _middles(values, group, middle)[group] for values in (tiles.guide, tiles.variance))
    bins = np.array_split(np.argsort(x), BINS)
    x, y, width = (np.array([middle(values[part]) for part in bins]) for values in (x, y, tiles.variance))
    weight = 1 / np.maximum(width, LEAST_WEIGHED * typical + np.finfo(float).tiny) ** 2
    x -= np.average(x, weights=weight)
    spread = float(np.sum(weight * x**2))
    slope = max(float(np.sum(weight * x * y)) / spread, 0.0) if spread > 0 else 0.0
    at_zero = _middles(tiles.variance - slope * tiles.guide, group, middle)
    at_zero = np.pad(at_zero, (0, panels - len(at_zero))) if apart else np.full(panels, at_zero[0])
    noise = PixelNoise(slope, at_zero, skew, LEAST_VARIANCE * typical, 0.0)
    return replace(noise, excess=_excess(tiles, noise))


def _excess(tiles: Tiles, noise: PixelNoise) -> float:
    """How much more than chance variances of tiles scatter about the line, relative and squared, by the median."""
    expected = noise.variance(tiles.guide, tiles.panel)
    chance = variance_of_variance(expected, tiles.pixels, noise.skew)
    squares = (tiles.variance - expected) ** 2
    scale = float(np.median(squares / chance)) / MEDIAN_OF_SQUARE
    return max(scale - 1.0, 0.0) * float(np.median(chance / expected**2))


def _middles(values: Floats, group: Ints, middle: Callable[[Floats], Any]) -> Floats:
    """The median, or the mean, of each group, zero where a group has no member."""
    middles = np.zeros(group.max() + 1)
    for i in np.unique(group):
        middles[i] = middle(values[group == i])
    return middles


def _misfit(tiles: Tiles, noise: PixelNoise | None) -> float:
    """How much more than by chance tiles scatter about lines of one slope, an intercept for each panel."""
    return _Line(tiles, _weights(tiles, noise), tiles.panel, tiles.panel).misfit if noise else 0.0


class _Line:
    """The line of variance against mean with one slope and an intercept for each group, and how each tile moves it.

    `moves` (n,) is what the slope owes to each tile's own residual, so that the sum of its squares is its variance;
    `misfit` is the mean square of residuals over what chance explains. Tiles of one number in `apart` err together.
    """

    def __init__(self, tiles: Tiles, weight: Floats, group: Ints, apart: Ints) -> None:
        self.apart = apart
        total = np.bincount(group, weight)
        used = np.count_nonzero(total)
        total = np.where(total > 0, total, 1.0)

        def within(values: Floats) -> Floats:
            return np.asarray(values - (np.bincount(group, weight * values) / total)[group])

        leverage = weight * within(tiles.guide)
        reach = float(np.sum(leverage * tiles.mean))
        noise = float(np.sqrt(np.sum(leverage**2 * tiles.variance / tiles.pixels)))
        self.leverage_esds = reach / noise if noise > 0 else 0.0
        self.slope = float(np.sum(leverage * tiles.variance)) / reach if reach else np.nan
        residual = within(tiles.variance - self.slope * tiles.mean)
        free = len(tiles) / max(len(tiles) - 1 - used, 1)
        self.moves = np.sqrt(free) * leverage * residual / (reach or np.nan)
        self.misfit = float(np.mean(weight * residual**2)) * free

    @property
    def gain(self) -> Estimate:
        """The slope with its esd."""
        return Estimate(self.slope, _esd(self.moves, self.apart))


def _esd(moves: Floats, apart: Ints) -> float:
    """The esd of a number that tiles move so far: those with one number in `apart` err together."""
    return float(np.sqrt(np.sum(np.bincount(apart, moves) ** 2)))


def _weights(tiles: Tiles, noise: PixelNoise) -> Floats:
    """1/variance of a tile's distance from the line, from the means around it alone: its own would draw the line."""
    variance = noise.variance(tiles.guide, tiles.panel)
    variance = np.maximum(variance, LEAST_WEIGHED * np.median(variance))
    scatter = variance_of_variance(variance, tiles.pixels, noise.skew)
    photons = np.clip(noise.slope * tiles.guide, 0, variance)
    of_mean = noise.slope**2 * (variance - 2 * photons) / tiles.pixels
    return np.asarray(1 / np.maximum(scatter + of_mean, 0.5 * scatter))


def _measurement(tiles: Tiles, noise: PixelNoise | None, uniform: bool, count: int) -> NoiseMeasurement:
    together = _record(None, tiles, noise, uniform, None)
    shared = together.gain if together.own_gain else None
    panels = []
    for panel in range(count):
        panels.append(_record(panel, tiles.where(tiles.panel == panel), noise, uniform, shared))
    return NoiseMeasurement(together, tuple(panels), uniform, _scatter(panels), noise)


def _record(
    panel: int | None, tiles: Tiles, noise: PixelNoise | None, uniform: bool, shared: Estimate | None
) -> NoiseRecord:
    """The record of tiles; `shared` is the gain of all panels, taken where these tiles alone do not give one.

    Where the detector is not uniform all panels share one intercept, and none has a gain or a pedestal of its own.
    """
    if noise is None or len(tiles) < LEAST_TILES or not tiles.variance.any():
        few = f"{len(tiles)} tiles of background: expected at least {LEAST_TILES}"
        why = (few if len(tiles) < LEAST_TILES else "pixels do not differ at all",)
        return NoiseRecord(
            panel, len(tiles), (np.nan, np.nan), NONE, False, NONE, NONE, np.nan, *(NONE,) * 3, np.nan, why
        )
    weight = _weights(tiles, noise)
    single = np.arange(len(tiles))
    # Panels that do not keep to one line err as panels, if there are enough of them to tell.
    apart = tiles.panel if not uniform and len(np.unique(tiles.panel)) >= LEAST_PANELS else single
    line = _Line(tiles, weight, tiles.panel if uniform else 0 * single, apart)
    low, high = (float(number) for number in np.quantile(tiles.guide, (0.05, 0.95)))
    words = _undetermined(line.gain, line.leverage_esds, low, high)
    if panel is not None and not uniform:
        words = ("the detector is not uniform", *words)
    gain, moves = (shared or NONE, None) if words else (line.gain, line.moves)
    at_zero, parted, pedestal = _offsets(tiles, weight, gain, moves, apart)
    pedestal = NONE if words or not uniform else pedestal
    sigma = _root(parted if pedestal.differs_from_zero else at_zero)
    skewness, correlation = _skewness(tiles, weight), _correlation(tiles, weight)
    return NoiseRecord(
        panel, len(tiles), (low, high), gain, not words, at_zero, sigma, sigma.value or sigma.esd, pedestal, skewness,
        correlation, line.misfit, words,
    )  # fmt: skip


def _undetermined(gain: Estimate, leverage_esds: float, low: float, high: float) -> tuple[str, ...]:
    """Why a gain cannot be had, in words; none where it can."""
    if leverage_esds < LEAST_LEVERAGE:
        return (f"the background is flat, its means lie between {low:.4g} and {high:.4g}",)
    if not gain.value > 0 or gain.esd > LARGEST_RELATIVE_ESD * gain.value:
        return (f"means between {low:.4g} and {high:.4g} give a gain of {gain.value:.3g} ± {gain.esd:.2g} only",)
    return ()


def _offsets(
    tiles: Tiles, weight: Floats, gain: Estimate, moves: Floats | None, apart: Ints
) -> tuple[Estimate, Estimate, Estimate]:
    """v₀, σ² and pedestal at a gain; `moves` is what the gain owes to each tile, None for a gain of other tiles."""
    foreign = gain.esd if moves is None else 0.0
    own = 0.0 if moves is None else moves

    def estimate(part: Floats, values: Floats, slope: float) -> Estimate:
        """The weighted mean of values that change by `slope` with the gain."""
        value = float(np.sum(part * values))
        moved = part * (values - value) + slope * own
        return Estimate(value, float(np.hypot(_esd(moved, apart), slope * foreign)))

    part = weight / weight.sum()
    at_zero = estimate(part, tiles.variance - gain.value * tiles.mean, -float(np.sum(part * tiles.mean)))
    # The variance of a third cumulant goes with v³, that of a variance with v².
    part = weight**1.5 / np.sum(weight**1.5)
    third = float(np.sum(part * tiles.third))
    pedestal = estimate(part, tiles.mean - tiles.third / gain.value**2, 2 * third / gain.value**3)
    parted = estimate(part, tiles.variance - tiles.third / gain.value, third / gain.value**2)
    return at_zero, parted, pedestal


def _root(square: Estimate) -> Estimate:
    """σ from σ²; zero below zero, with the esd that σ² allows."""
    value = float(np.sqrt(max(square.value, 0.0)))
    most = float(np.sqrt(square.esd))
    return Estimate(value, min(square.esd / (2 * value), most) if value > 0 else most)


def _skewness(tiles: Tiles, weight: Floats) -> Estimate:
    """Third cumulant over variance."""
    part = weight / np.sum(weight * tiles.variance)
    value = float(np.sum(part * tiles.third))
    return Estimate(value, float(np.sqrt(np.sum((part * (tiles.third - value * tiles.variance)) ** 2))))


def _correlation(tiles: Tiles, weight: Floats) -> Estimate:
    """Correlation of neighbouring pixels over the tiles that miss none."""
    whole = np.isfinite(tiles.covariance)
    if np.count_nonzero(whole) < LEAST_TILES:
        return NONE
    # The weights go with the variance to the power -2, those of a ratio of variances with the power -1.
    part = np.sqrt(weight[whole])
    covariance, variance = tiles.covariance[whole], tiles.variance[whole]
    value = float(np.sum(part * covariance) / np.sum(part * variance))
    moved = part * (covariance - value * variance) / np.sum(part * variance)
    return Estimate(value, float(np.sqrt(np.sum(moved**2))))


def background_z(images: Sequence[NDArray[Any]], masks: Sequence[Bools], measurement: NoiseMeasurement) -> SigmaZCheck:
    """σ-Z of the background with the recommended gain and σ; raises BadInput where nothing is recommended."""
    if measurement.recommended is None or measurement.noise is None:
        raise BadInput("no gain and read-out noise are recommended: expected a background that determines them")
    gain, sigma = measurement.recommended
    z, means, panels = [], [], []
    for panel, mean, residual in residuals_of(images, masks, measurement.noise):
        variance = gain * mean + sigma**2
        lit = variance > measurement.noise.least  # in the dark Z is the remainder of two zeros
        z.append(residual[lit] / np.sqrt(variance[lit]))
        means.append(mean[lit])
        panels.append(np.full(np.count_nonzero(lit), panel))
    return sigma_z(np.concatenate(z), np.concatenate(means), np.concatenate(panels))


def _scatter(panels: Sequence[NoiseRecord]) -> float:
    """rms difference of panels' gains beyond their esds, relative to their mean."""
    own = [record.gain for record in panels if record.own_gain]
    if len(own) < 2:
        return float("nan")
    value, esd = np.array([(gain.value, gain.esd) for gain in own]).T
    weight = 1 / esd**2
    mean = np.average(value, weights=weight)
    excess = np.sum(weight * (value - mean) ** 2) - (len(own) - 1)
    beyond = excess / (weight.sum() - np.sum(weight**2) / weight.sum())
    return float(np.sqrt(max(beyond, 0.0)) / mean)
