"""Full intensities of many stills as one: means by reflection, and how well random halves of them agree.

An observation's variance is that of its pixels plus that of its partiality, which is a part of the intensity itself.
Taken of the single observation the latter would give weight to what came out too small; it is taken of the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from dbex.observations import Means, Observations
from dbex.refinement.predictions import keys
from dbex.still import Amplitudes, BoxTable, Floats, Ints

#: Times that means and the variances that follow them are brought into agreement.
RENEWALS = 5
#: Shells of resolution.
SHELLS = 8
#: Reflections that at least so many observations share are told apart in halves.
FEWEST = 2
#: The median of the square of a normal number.
MEDIAN_SQUARE = 0.4549
#: Fewer pulls tell no error, and no error is larger than this.
FEWEST_PULLS, MOST_ERROR = 50, 10.0


def observations(boxes: BoxTable, still: int, noise: float) -> Observations:
    """Those of a still's boxes that the pixels determine; variances are raised by `noise`², the misfit of its model."""
    good = np.isfinite(boxes.intensity) & np.isfinite(boxes.variance) & (boxes.variance > 0)
    relative = (boxes.partiality_esd / boxes.partiality)[good]
    value = boxes.intensity[good]
    pixels = np.maximum(boxes.variance[good] - (value * relative) ** 2, 0.0) * noise**2
    number = np.full(len(value), still, dtype=np.int64)
    return Observations(
        boxes.hkl[good], number, value, pixels, relative * noise, boxes.partiality[good], boxes.xy_px[good],
        boxes.panel[good],
    )  # fmt: skip


def merged(found: Observations, group: Ints, groups: int) -> Means:
    """Inverse-variance weighted means over the observations of each group (n,)."""
    mean = np.bincount(group, found.value, groups) / np.maximum(np.bincount(group, minlength=groups), 1)
    for _ in range(RENEWALS):
        weight = 1 / found.variance(np.maximum(mean, 0.0)[group])
        total = np.bincount(group, weight, groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.bincount(group, weight * found.value, groups) / total
    count = np.bincount(group, minlength=groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        chi2 = np.bincount(group, weight * (found.value - mean[group]) ** 2, groups) / (count - 1)
        sigma = np.sqrt(np.where(count > 1, np.maximum(1.0, chi2), 1.0) / total)
    return Means(mean, sigma, count)


@dataclass(frozen=True)
class Shell:
    """Agreement of random halves in a shell of resolution: limits (Å), reflections with two or more observations,
    observations for each, CC½, R = Σ|I₁ - I₂| / Σ(I₁ + I₂), and the correlation of the means with F²."""

    d_max_A: float
    d_min_A: float
    reflections: int
    multiplicity: float
    cc_half: float
    r_half: float
    cc_F2: float


def half_shells(
    found: Observations, group: Ints, groups: int, d_A: Floats, F_squared: Floats, seed: int = 0
) -> tuple[Shell, ...]:
    """Shells of equal numbers of reflections, and all together last; `d_A` and `F_squared` (m,) are of the groups.

    Each reflection's observations are dealt out to the halves in turn, in random order.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(group)), group))
    first_of = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=groups))])
    half = np.empty(len(group), dtype=np.int64)
    half[order] = (np.arange(len(group)) - first_of[group[order]] + rng.integers(0, 2, groups)[group[order]]) % 2
    halves = [merged(found.select(half == side), group[half == side], groups) for side in (0, 1)]
    whole = merged(found, group, groups)
    shared = np.flatnonzero((halves[0].count > 0) & (halves[1].count > 0))
    by_resolution = shared[np.argsort(-d_A[shared], kind="stable")]
    parts = [part for part in np.array_split(by_resolution, SHELLS) if len(part) > FEWEST]
    return tuple(
        Shell(
            float(d_A[part].max()),
            float(d_A[part].min()),
            len(part),
            float(whole.count[part].mean()),
            _correlation(halves[0].value[part], halves[1].value[part]),
            float(
                np.abs(halves[0].value[part] - halves[1].value[part]).sum()
                / np.abs(halves[0].value[part] + halves[1].value[part]).sum()
            ),
            _correlation(whole.value[part], F_squared[part]),
        )
        for part in [*parts, *([by_resolution] if len(by_resolution) > FEWEST else [])]
    )


def _correlation(x: Floats, y: Floats) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def known_squares(found: Observations, group: Ints, groups: int, amplitudes: Amplitudes) -> Floats:
    """|F|² (m,) of the list for each group of observations (n,), NaN where it has none."""
    known = dict(zip(keys(amplitudes.hkl).tolist(), (amplitudes.F**2).tolist(), strict=True))
    first = np.full(groups, -1)
    first[group[::-1]] = np.arange(len(group))[::-1]
    return np.array([known.get(key, np.nan) for key in keys(found.hkl[first]).tolist()])


def with_model_error(found: Observations, group: Ints) -> tuple[Observations, float]:
    """The observations with the relative error that the model of the crystal leaves in each, and that error: the one
    with which two observations of a reflection differ as their variances say.

    A node is no Gaussian, and a finite number of blocks no smooth node: what the sphere cuts out of it differs from the
    model by a part of itself, from reflection to reflection.
    """
    order = np.argsort(group, kind="stable")
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    paired = first[np.diff(np.append(first, len(order))) > 1]
    one, other = found.select(order[paired]), found.select(order[paired + 1])
    mean = np.maximum((one.value + other.value) / 2, 0.0)
    variance = one.variance(mean) + other.variance(mean)
    error = extra_error((one.value - other.value) ** 2, variance, 2**0.5 * mean)
    return replace(found, relative_error=np.sqrt(found.relative_error**2 + error**2)), error


def extra_error(squares: Floats, variance: Floats, scale: Floats) -> float:
    """The factor c with which variances + (c scale)² make the median of squares over variances that of a normal number;
    0 where they need nothing or there are too few."""
    if len(squares) < FEWEST_PULLS:
        return 0.0

    def beyond(c: float) -> float:
        return float(np.median(squares / (variance + (c * scale) ** 2))) - MEDIAN_SQUARE

    return float(brentq(beyond, 0.0, MOST_ERROR, xtol=1e-4)) if beyond(0.0) > 0 > beyond(MOST_ERROR) else 0.0


def median_cell(cells: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The cell in the middle of many, number by number."""
    return tuple(float(value) for value in np.median(np.array(cells), axis=0))
