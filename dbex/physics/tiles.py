"""Tiles of neighbouring pixels of an image's background: mean, variance and third cumulant beside slow changes.

A plane is taken off each tile. What is brighter or darker than the noise can be, spots and hot pixels, is clipped at
limits so wide that the variance of noise loses less than a thousandth; a tile that loses more than a few pixels is
not background.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from dbex.still import Bools, Floats, Ints

#: Edge of a tile: small enough that background is a plane in it, with pixels enough for a variance of 18 %.
TILE_PX = 8
PIXELS = TILE_PX**2
#: Numbers of a plane.
PLANE = 3
#: A tile needs three quarters of its pixels, and may lose so many to clipping.
LEAST_PIXELS = 48
MOST_CLIPPED = 2
#: Clipping, in standard deviations: a Gaussian loses 1.5e-5 of its variance beyond five.
CLIP_SIGMAS = 5.0

_OFFSET = (np.arange(TILE_PX) - (TILE_PX - 1) / 2) / TILE_PX
_BASIS = np.stack(
    [np.ones(PIXELS), np.tile(_OFFSET, TILE_PX), np.repeat(_OFFSET, TILE_PX)], axis=1
)  # (pixel, 1 fast slow)
_PRODUCTS = (_BASIS[:, :, None] * _BASIS[:, None, :]).reshape(PIXELS, PLANE**2)


@dataclass(frozen=True)
class PixelNoise:
    """What a pixel of mean m on panel i varies by, as robust as medians are: `slope` m + `at_zero`[i], never below
    `least`, in image units; `skew` is the third cumulant over the variance: the gain where photons are all the noise;
    `excess` is the relative variance of tiles' variances beyond chance: parts of a detector differ.
    """

    slope: float
    at_zero: Floats
    skew: float
    least: float
    excess: float

    def variance(self, mean: Floats, panel: Ints | int) -> Floats:
        """Variance for means (…) of panel or panels."""
        return np.maximum(self.slope * mean + self.at_zero[panel], self.least)


@dataclass(frozen=True)
class Tiles:
    """One row a tile (n): its panel, mean, unbiased `variance` and `third` cumulant about its plane, in image units;
    `covariance` of neighbours along rows and columns, NaN where a pixel is missing; how many pixels it has, and the
    mean of the tiles around it with their number of pixels: its own noise is not in that."""

    panel: Ints
    mean: Floats
    variance: Floats
    third: Floats
    covariance: Floats
    pixels: Ints
    guide: Floats
    guide_pixels: Ints

    def __len__(self) -> int:
        return len(self.panel)

    def where(self, keep: Bools) -> "Tiles":
        """The tiles that are kept."""
        return Tiles(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def tiles_of(images: Sequence[NDArray[Any]], trusted: Sequence[Bools], noise: PixelNoise | None) -> Tiles:
    """The tiles of all panels, clipped by `noise` where it is given."""
    parts = [_tiles(i, *pair, noise) for i, pair in enumerate(zip(images, trusted, strict=True))]
    return Tiles(*(np.concatenate([getattr(part, name) for part in parts]) for name in Tiles.__dataclass_fields__))


def residuals_of(
    images: Sequence[NDArray[Any]], trusted: Sequence[Bools], noise: PixelNoise
) -> Iterator[tuple[int, Floats, Floats]]:
    """Panel, then mean and residual of every pixel (k,) of its tiles about their planes, these scaled so that their
    expected square is the pixel's variance."""
    for i, (image, trust) in enumerate(zip(images, trusted, strict=True)):
        values, used, planes, _ = _clipped(i, _cut(image), _cut(trust), noise)
        count = used.sum(axis=1)
        free = np.sqrt(count / np.maximum(count - PLANE, 1))
        kept = used & _background(values, used, planes, i, noise)[:, None]
        yield i, planes[kept], ((values - planes) * free[:, None])[kept]


@dataclass(frozen=True)
class BackgroundValues:
    """Values (k,) of a panel's background pixels, the number of the tile of each (k,), the mean variance of tiles about
    their planes, and mean and variance of each tile."""

    panel: int
    values: Floats
    tile: Ints
    tile_variance: float
    means: Floats
    variances: Floats

    def dark_variance(self, gain: float, pedestal: float, least: float) -> float:
        """The variance beside that of photons, `least` or more, with which the mean Z² of the tiles is 1."""
        photons = gain * np.maximum(self.means - pedestal, 0.0)

        def excess(dark: float) -> float:
            return float(np.mean(self.variances / (photons + dark))) - 1

        most = float(self.variances.max(initial=least))
        return float(brentq(excess, least, most)) if excess(least) > 0 else least


def background_values(
    images: Sequence[NDArray[Any]], trusted: Sequence[Bools], noise: PixelNoise
) -> Iterator[BackgroundValues]:
    """The background pixels of each panel as they are, those that `noise` clips left out."""
    for i, (image, trust) in enumerate(zip(images, trusted, strict=True)):
        values, used, planes, _ = _clipped(i, _cut(image), _cut(trust), noise)
        good = _background(values, used, planes, i, noise)
        _, mean, variance, _, _ = _moments(values, used, planes)
        tile, pixel = np.nonzero(used & good[:, None])
        typical = float(variance[good].mean()) if good.any() else 0.0
        yield BackgroundValues(i, values[tile, pixel], tile, typical, mean[good], variance[good])


def _cut(image: NDArray[Any]) -> NDArray[Any]:
    """Rows of pixels (tile, pixel); the tiles' grid is (slow // 8, fast // 8), what is left over is not used."""
    slow, fast = (length // TILE_PX for length in image.shape)
    whole = image[: slow * TILE_PX, : fast * TILE_PX]
    return whole.reshape(slow, TILE_PX, fast, TILE_PX).swapaxes(1, 2).reshape(slow * fast, PIXELS)


def _clipped(
    panel: int, values: NDArray[Any], trusted: Bools, noise: PixelNoise | None
) -> tuple[Floats, Bools, Floats, Ints]:
    """Values as floats, the pixels that are used, the planes, and how many pixels each tile lost to clipping."""
    values = values.astype(np.float64)
    used = trusted
    if noise is None:
        return values, used, _planes(values, used), np.zeros(len(values), dtype=np.int64)
    reference = np.broadcast_to(_medians(values, trusted)[:, None], values.shape)
    for sigmas in (1.5 * CLIP_SIGMAS, CLIP_SIGMAS, CLIP_SIGMAS):
        spread = sigmas * np.sqrt(noise.variance(reference, panel))
        # Counts of few photons are skewed: the second term of Cornish and Fisher's expansion.
        above = spread + noise.skew * (sigmas**2 - 1) / 6
        difference = values - reference
        used = trusted & (difference < above) & (difference > -spread)
        reference = _planes(values, used)
    return values, used, reference, (trusted & ~used).sum(axis=1)


def _medians(values: Floats, used: Bools) -> Floats:
    """Median of the used pixels of each tile, infinite where there is none."""
    ordered = np.sort(np.where(used, values, np.inf), axis=1)
    count = used.sum(axis=1)
    middle = np.take_along_axis(ordered, (np.maximum(count - 1, 0) // 2)[:, None], axis=1)[:, 0]
    return np.where(count > 0, middle, 0.0)


def _planes(values: Floats, used: Bools) -> Floats:
    """The least-squares plane of each tile at all of its pixels; its mean where there are too few for a plane."""
    matrix = (used @ _PRODUCTS).reshape(-1, PLANE, PLANE)
    right = np.where(used, values, 0.0) @ _BASIS
    few = used.sum(axis=1) < LEAST_PIXELS // 2
    matrix[few] = np.eye(PLANE)
    right[few] = 0.0
    return np.asarray(np.linalg.solve(matrix, right[:, :, None])[:, :, 0] @ _BASIS.T)


def _moments(values: Floats, used: Bools, planes: Floats) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """Count, mean, variance, third cumulant and covariance of neighbours of each tile."""
    count = used.sum(axis=1)
    safe = np.maximum(count, LEAST_PIXELS)
    rest = np.where(used, values - planes, 0.0)
    square = rest * rest
    mean = np.where(used, values, 0.0).sum(axis=1) / safe
    variance = square.sum(axis=1) / (safe - PLANE)
    # Σ(1 − h)³ less the small off-diagonal terms for a leverage h = 3/n, exact for a constant.
    third = (square * rest).sum(axis=1) / (safe - 3 * PLANE + 2 * PLANE**2 / safe)
    return count, mean, variance, third, _covariance(rest, variance, count)


def _covariance(rest: Floats, variance: Floats, count: Ints) -> Floats:
    """Mean product of neighbours along rows and columns, what the plane takes from it given back: of a pixel's own
    variance, and, for each of its four neighbours, of the covariance itself."""
    pairs = 2 * TILE_PX * (TILE_PX - 1)
    square = rest.reshape(-1, TILE_PX, TILE_PX)
    products = (square[:, 1:] * square[:, :-1]).sum(axis=(1, 2)) + (square[:, :, 1:] * square[:, :, :-1]).sum(
        axis=(1, 2)
    )
    hat = _BASIS @ np.linalg.inv(_BASIS.T @ _BASIS) @ _BASIS.T
    row, column = np.divmod(np.arange(PIXELS), TILE_PX)
    apart = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    taken = hat[apart == 1].sum() / 2
    return np.where(count == PIXELS, (products + taken * variance) / (pairs - 4 * taken), np.nan)


def _background(values: Floats, used: Bools, planes: Floats, panel: int, noise: PixelNoise) -> Bools:
    """Tiles with enough pixels whose variance is within what chance allows."""
    count, mean, variance, _, _ = _moments(values, used, planes)
    return (count >= LEAST_PIXELS) & _usual(
        variance, noise.variance(mean, panel), np.maximum(count, LEAST_PIXELS), noise
    )


def _usual(variance: Floats, expected: Floats, pixels: Ints, noise: PixelNoise) -> Bools:
    """Whether variances of tiles are within 4.5 standard deviations of a χ² law as wide as theirs: Wilson-Hilferty."""
    spread = variance_of_variance(expected, pixels, noise.skew) + noise.excess * expected**2
    free = np.maximum(2 * expected**2 / spread, 0.5)  # below, a photon in a tile is an event and no χ² law
    limit = [np.maximum(1 - 2 / (9 * free) + z * np.sqrt(2 / (9 * free)), 0) ** 3 for z in (-4.5, 4.5)]
    return np.asarray((variance >= limit[0] * expected) & (variance <= limit[1] * expected))


def variance_of_variance(expected: Floats, pixels: Ints, skew: float) -> Floats:
    """Variance of a tile's variance: Gaussian, and the fourth cumulant of photons, skew² v."""
    return 2 * expected**2 / (pixels - PLANE) + skew**2 * expected / pixels


def _tiles(panel: int, image: NDArray[Any], trusted: Bools, noise: PixelNoise | None) -> Tiles:
    values, used, planes, clipped = _clipped(panel, _cut(image), _cut(trusted), noise)
    count, mean, variance, third, covariance = _moments(values, used, planes)
    good = (count >= LEAST_PIXELS) & (clipped <= MOST_CLIPPED)
    if noise is not None:
        good &= _usual(variance, noise.variance(mean, panel), np.maximum(count, LEAST_PIXELS), noise)
    grid = (image.shape[0] // TILE_PX, image.shape[1] // TILE_PX)
    around = _around((count * good).reshape(grid)).ravel()
    guide = _around((count * mean * good).reshape(grid)).ravel() / np.maximum(around, 1)
    keep = good & (around >= LEAST_PIXELS)
    index = np.full(len(count), panel, dtype=np.int64)
    return Tiles(index, mean, variance, third, covariance, count, guide, around.astype(np.int64)).where(keep)


def _around(grid: NDArray[Any]) -> NDArray[Any]:
    """The sum over the eight neighbours of each place of a grid."""
    slow, fast = grid.shape
    padded = np.pad(grid, 1)
    shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return np.asarray(sum(padded[i : i + slow, j : j + fast] for i, j in shifts))
