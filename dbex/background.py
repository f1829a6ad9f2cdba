"""A plane of background under every spot, from the trusted pixels around it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbex.rois import BoxPixels
from dbex.still import Bools, Floats, Ints

#: A pixel is an outlier beyond this many deviance residuals: in Poisson noise one pixel in 15,000 is.
OUTLIER_Z = 4.0
#: Rounds of weighting by the last plane and dropping what lies off it.
ROUNDS = 8
#: Three parameters on fewer pixels than this are no measurement.
FEWEST_PIXELS = 12
#: Least variance of a pixel, photons²: below it a run of zeros would weigh without bound.
LEAST_VARIANCE = 0.05


@dataclass(frozen=True)
class Planes:
    """Planes b0 + b1 (x - xc) + b2 (y - yc) of n boxes, x and y pixel centres and (xc, yc) the box's centre.

    `coefs` and `esds` (n, 3), `covariance` (n, 3, 3), `good` (n,): enough pixels, finite, and not below zero over the
    whole box; `inliers` (n, p) are the pixels that the plane rests on.
    """

    coefs: Floats
    esds: Floats
    covariance: Floats
    good: Bools
    inliers: Bools


def plane_basis(bbox: Ints, pixels: BoxPixels) -> Floats:
    """1, x - xc, y - yc of the pixels of boxes (n, 4), as (n, p, 3)."""
    dx = pixels.fast + 0.5 - 0.5 * (bbox[:, 0] + bbox[:, 1])[:, None]
    dy = pixels.slow + 0.5 - 0.5 * (bbox[:, 2] + bbox[:, 3])[:, None]
    return np.stack([np.ones_like(dx), dx, dy], axis=-1)


def fit_planes(basis: Floats, data: Floats, spot: Bools, used: Bools, readout_variance: Floats | float = 0.0) -> Planes:
    """Robust planes under `data` (n, p), photons, with `basis` (n, p, 3).

    Only pixels that are `used` and not `spot` count. Each is weighted by 1/(plane + readout_variance), recomputed
    from the plane itself, because weights from the data pull a Poisson mean down; pixels whose deviance residual
    exceeds OUTLIER_Z are dropped, because the deviance has even tails where Pearson's residual is skew.
    """
    background = used & ~spot
    values = np.where(background, data, 0.0)
    extra = np.broadcast_to(np.asarray(readout_variance, dtype=np.float64), values.shape)
    extra = np.where(background, extra, 0.0)
    inliers = background & ~_far_from_median(values, background, extra)
    coefs, covariance = _weighted(basis, values, inliers, _median_level(values, inliers)[:, None] + extra)
    # A fixed number of rounds, so that no box depends on how soon the others settle.
    for _ in range(ROUNDS):
        model = np.einsum("npk,nk->np", basis, coefs)
        inliers = background & (np.abs(deviance_residual(values, model, extra)) < OUTLIER_Z)
        coefs, covariance = _weighted(basis, values, inliers, model + extra)
    lowest = np.where(used, np.einsum("npk,nk->np", basis, coefs), np.inf).min(axis=1)
    good = (inliers.sum(axis=1) >= FEWEST_PIXELS) & np.isfinite(covariance).all(axis=(1, 2)) & (lowest >= 0)
    esds = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return Planes(coefs, esds, covariance, good, inliers)


def deviance_residual(data: Floats, model: Floats, readout_variance: Floats) -> Floats:
    """Signed root of the shifted Poisson deviance of data with mean `model` and read-out noise: docs/physics.md,
    section 4."""
    shifted = np.maximum(data + readout_variance, 0.0)
    mean = np.maximum(model + readout_variance, LEAST_VARIANCE)
    log = np.log(np.where(shifted > 0, shifted / mean, 1.0))
    deviance = 2.0 * (mean - shifted + shifted * log)
    return np.sign(shifted - mean) * np.sqrt(np.maximum(deviance, 0.0))


def _median_level(values: Floats, chosen: Bools) -> Floats:
    """Median (n,) of the chosen pixels of each row, 0 where there are none."""
    ordered = np.sort(np.where(chosen, values, np.inf), axis=1)
    count = chosen.sum(axis=1)
    rows = np.arange(len(values))
    low, high = np.maximum((count - 1) // 2, 0), np.maximum(count // 2, 0)
    high = np.minimum(high, values.shape[1] - 1)
    return np.where(count > 0, 0.5 * (ordered[rows, low] + ordered[rows, high]), 0.0)


def _far_from_median(values: Floats, chosen: Bools, extra: Floats) -> Bools:
    """Pixels that no plane through the median can explain: twice the limit, to leave room for a slope."""
    level = np.maximum(_median_level(values, chosen), 1.0)[:, None]
    return np.abs(deviance_residual(values, np.broadcast_to(level, values.shape), extra)) > 2 * OUTLIER_Z


def _weighted(basis: Floats, values: Floats, chosen: Bools, variance: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares of every row at once: coefficients (n, 3) and covariance (n, 3, 3); rows with too few
    pixels for a plane get their mean, or zero, and an infinite covariance."""
    weight = np.where(chosen, 1.0 / np.maximum(variance, LEAST_VARIANCE), 0.0)
    normal = np.einsum("np,npj,npk->njk", weight, basis, basis)
    right = np.einsum("np,npj,np->nj", weight, basis, values)
    total = weight.sum(axis=1)
    # A box whose background is one row or one column fixes no plane: the condition number of the scaled matrix says.
    scale = np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-300))
    scaled = normal / (scale[:, :, None] * scale[:, None, :])
    enough = (chosen.sum(axis=1) >= FEWEST_PIXELS) & (np.linalg.eigvalsh(scaled)[:, 0] > 1e-6)
    safe = np.where(enough[:, None, None], normal, np.eye(3))
    covariance = np.where(enough[:, None, None], np.linalg.inv(safe), np.inf)
    mean = np.where(total > 0, right[:, 0] / np.where(total > 0, total, 1.0), 0.0)
    level = np.stack([mean, np.zeros_like(mean), np.zeros_like(mean)], axis=1)
    coefs = np.where(enough[:, None], np.linalg.solve(safe, right[..., None])[..., 0], level)
    return coefs, covariance


def background_image(
    shape: tuple[int, ...], panel: Ints, bbox: Ints, pixels: BoxPixels, planes: Planes, dtype: Any = np.float64
) -> NDArray[Any]:
    """The planes as an image [panel, slow, fast], -1 outside the boxes and only there.

    A pixel of several boxes belongs to the one whose centre is nearest. A plane that dips below zero counts as zero,
    so that -1 keeps its meaning.
    """
    basis = plane_basis(bbox, pixels)
    value = np.maximum(np.einsum("npk,nk->np", basis, planes.coefs), 0.0)
    present = pixels.present
    order = np.argsort(-((basis[..., 1] ** 2 + basis[..., 2] ** 2)[present]), kind="stable")
    image = np.full(shape, -1.0, dtype=dtype)
    where = (np.broadcast_to(panel[:, None], present.shape)[present], pixels.slow[present], pixels.fast[present])
    image[tuple(index[order] for index in where)] = value[present][order]
    return image
