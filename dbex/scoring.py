"""Figures of merit over the boxes and pixels of a refined still, for pictures and tables: Z, χ² and offsets in bins.

Z is (data − model) / σ of a pixel; a perfect model and perfect variances make it a normal deviate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dbex.still import BoxTable, Floats, Ints, PixelTable
from nanobrag_torch.config import DetectorConfig

#: Percentiles of a normal deviate at −2, −1, 0, 1 and 2 sigma.
PERCENTILES = (2.275, 15.866, 50.0, 84.134, 97.725)
#: Fewer members than this make no bin of their own.
FEWEST_IN_BIN = 20


@dataclass(frozen=True)
class Bins:
    """Means of something over bins of x: edges (n + 1,), the mean of the members' x (n,), how many members (n,), their
    mean (n,) and its esd (n,)."""

    edges: Floats
    x: Floats
    count: Ints
    mean: Floats
    esd: Floats

    def __len__(self) -> int:
        return len(self.x)


def z_scores(pixels: PixelTable) -> Floats:
    """Z (n,) of every pixel, used or not."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (pixels.data - pixels.background - pixels.bragg) / np.sqrt(pixels.variance)


def resolution_A(boxes: BoxTable, direction: Sequence[float]) -> Floats:
    """Resolution (n,) of the boxes from their diffracted rays and the beam's direction of travel: 1/|s1 − s0|."""
    wavenumber = np.linalg.norm(boxes.s1, axis=1, keepdims=True)
    s0 = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    return np.asarray(1 / np.maximum(np.linalg.norm(boxes.s1 - wavenumber * s0, axis=1), 1e-12))


def even_edges(x: Floats, bins: int) -> Floats:
    """Edges of bins of x with about as many members each: fewer bins where there are few members or few values."""
    number = max(1, min(bins, len(x) // FEWEST_IN_BIN))
    return np.unique(np.quantile(x, np.linspace(0, 1, number + 1))) if len(x) else np.zeros(0)


def means(x: Floats, values: Floats, bins: int) -> Bins:
    """The mean of `values` in bins of x with about as many members each; members that are no number are left out."""
    known = np.isfinite(x) & np.isfinite(values)
    x, values = x[known], values[known]
    edges = even_edges(x, bins)
    if len(edges) < 2:
        edges = np.array([x.min() - 0.5, x.max() + 0.5]) if len(x) else np.zeros(1)
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    return _means_of(edges, place, x, values, len(edges) - 1)


def means_by_number(number: Ints, values: Floats) -> Bins:
    """The mean of `values` for every whole number that occurs, such as that of a panel; `x` is the number."""
    numbers, place = np.unique(number, return_inverse=True)
    return _means_of(np.append(numbers - 0.5, numbers[-1:] + 0.5), place, number.astype(float), values, len(numbers))


def _means_of(edges: Floats, place: Ints, x: Floats, values: Floats, bins: int) -> Bins:
    count = np.bincount(place, minlength=bins)
    total = np.maximum(count, 1)
    mean = np.bincount(place, values, bins) / total
    square = np.bincount(place, values**2, bins) / total
    esd = np.sqrt(np.maximum(square - mean**2, 0) / total)
    full = count > 0
    middle = np.bincount(place, x, bins) / total
    return Bins(edges, middle[full], count[full], mean[full], esd[full])


@dataclass(frozen=True)
class Percentiles:
    """Percentiles (n, 5) of something at −2, −1, 0, 1 and 2 sigma of a normal deviate, in n bins about x (n,)."""

    x: Floats
    count: Ints
    values: Floats


def percentiles(x: Floats, values: Floats, bins: int) -> Percentiles:
    """The percentiles of `values` in bins of x with about as many members each."""
    found = means(x, values, bins)
    place = np.clip(np.searchsorted(found.edges, x, side="right") - 1, 0, max(len(found.edges) - 2, 0))
    kept = [np.percentile(values[place == i], PERCENTILES) for i in np.unique(place)]
    return Percentiles(found.x, found.count, np.array(kept).reshape(-1, len(PERCENTILES)))


def normal_density(z: Floats) -> Floats:
    """The density of a normal deviate."""
    return np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def correlations(covariance: Floats) -> Floats:
    """The correlation matrix of a covariance; NaN in the rows of numbers without a variance."""
    with np.errstate(invalid="ignore", divide="ignore"):
        esd = np.sqrt(np.diag(covariance))
        return np.asarray(covariance / np.outer(esd, esd))


def worst_pair(correlation: Floats) -> tuple[int, int] | None:
    """The two different numbers that are correlated most, either way; None where there are no two."""
    apart = np.where(np.tri(len(correlation), k=-1, dtype=bool), np.abs(correlation), np.nan)
    if not np.isfinite(apart).any():
        return None
    first, second = np.unravel_index(int(np.nanargmax(apart)), apart.shape)
    return int(second), int(first)


@dataclass(frozen=True)
class Offsets:
    """Predicted minus observed centroids of the boxes that were observed: their rows (n,), the offset (n, 2) on a plane
    perpendicular to the beam, and along and across the line from the beam to the spot (n,), all in pixels."""

    box: Ints
    on_plane: Floats
    radial: Floats
    tangential: Floats

    @property
    def length(self) -> Floats:
        """The lengths (n,)."""
        return np.asarray(np.linalg.norm(self.on_plane, axis=1))


def offsets(
    boxes: BoxTable, predicted_px: Floats, detector: Sequence[DetectorConfig], direction: Sequence[float]
) -> Offsets:
    """The offsets of centroids (n, 2) from the observed ones."""
    known = np.flatnonzero(np.isfinite(boxes.xy_observed_px).all(1) & np.isfinite(predicted_px).all(1))
    panel = boxes.panel[known]
    ends = [
        seen_along_beam(lab_mm(detector, panel, xy[known]), direction) for xy in (predicted_px, boxes.xy_observed_px)
    ]
    size = np.array([float(p.pixel_size_mm) for p in detector])[panel][:, None]
    away = (ends[0] - ends[1]) / size
    outward = ends[1] / np.maximum(np.linalg.norm(ends[1], axis=1, keepdims=True), 1e-9)
    radial = (away * outward).sum(1)
    tangential = away[:, 1] * outward[:, 0] - away[:, 0] * outward[:, 1]
    return Offsets(known, away, radial, tangential)


def lab_mm(detector: Sequence[DetectorConfig], panel: Ints, xy_px: Floats) -> Floats:
    """Points (n, 3) of the laboratory frame, mm from the crystal, of positions (fast, slow) (n, 2) on panels (n,)."""
    fast, slow = (np.array([getattr(p, f"{name}_axis") for p in detector], dtype=float) for name in ("fast", "slow"))
    size, x0, y0, distance = (
        np.array([float(getattr(p, name)) for p in detector])[panel][:, None]
        for name in ("pixel_size_mm", "origin_fast_mm", "origin_slow_mm", "distance_mm")
    )
    normal = np.cross(fast, slow)
    along = (x0 + xy_px[:, :1] * size) * fast[panel] + (y0 + xy_px[:, 1:] * size) * slow[panel]
    return np.asarray(along + distance * normal[panel])


def seen_along_beam(points_mm: Floats, direction: Sequence[float]) -> Floats:
    """Points (n, 2) as one sees them who looks along the beam (n, 3 to n, 2), mm from it: the laboratory's x to the
    right, and up for a horizontal beam."""
    s0 = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    across = np.array([1.0, 0.0, 0.0]) - s0[0] * s0
    if np.linalg.norm(across) < 1e-6:
        across = np.array([0.0, 1.0, 0.0])
    across /= np.linalg.norm(across)
    return np.stack([points_mm @ across, points_mm @ np.cross(across, s0)], axis=1)


@dataclass(frozen=True)
class RockingCurve:
    """How much of its full intensity each spot shows, by the pixels, as far as the structure factors are right: rows
    (n,), observed and its esd (n,), relative to a node on the Ewald sphere."""

    box: Ints
    observed: Floats
    esd: Floats


def rocking_curve(boxes: BoxTable, least_snr: float) -> RockingCurve:
    """The spots whose expected full intensity would stand out by `least_snr` sigma."""
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = boxes.intensity * boxes.partiality / boxes.prior_intensity
        esd = np.sqrt(boxes.variance) * boxes.partiality / boxes.prior_intensity
        known = np.isfinite(observed) & np.isfinite(esd) & (esd < 1 / least_snr)
    box = np.flatnonzero(known)
    return RockingCurve(box, observed[box], esd[box])


def box_z(pixels: PixelTable, boxes: int) -> Floats:
    """(data - model) summed over the used pixels of each box, over its rms; NaN for a box without any."""
    box = pixels.box[pixels.used]
    residual = (pixels.data - pixels.background - pixels.bragg)[pixels.used]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            np.bincount(box, residual, boxes) / np.sqrt(np.bincount(box, pixels.variance[pixels.used], boxes))
        )
