"""Block size and mosaicity from how wide spots are: the start for a crystal whose model carries neither.

A spot is the cut of a node by the Ewald sphere. Across q, along the ring, its variance is that of the blocks' size
plus η²|q|²; along the radius it is next to that of the size alone (docs/physics.md, section 3). What a pixel's own
area adds is taken off; bandwidth and sensor depth are not, so the size comes out small where they are large.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbex.rois import BoxPixels, box_pixels
from dbex.still import Bools, Floats, Ints, Observed
from nanobrag_torch.config import BeamConfig, DetectorConfig

#: Spots with fewer photons above background than this, or with an untrusted pixel, say nothing of their width.
FEWEST_PHOTONS = 200.0
FEWEST_SPOTS = 5
#: Pixels around a spot's box: its tails, and the border from which the level under it is taken.
MARGIN_PX = 2
#: Variance of F_latt² in h of a Gaussian block of N cells, times N².
GAUSS_VARIANCE = 0.1575
#: Widths beyond these are not resolved, or are no crystal's.
DOMAIN_SIZE_RANGE_A = (100.0, 3000.0)
MOSAICITY_RANGE_DEG = (0.01, 1.0)


def widths_from_spots(
    images: Sequence[NDArray[Any]],
    trusted: Sequence[Bools],
    observed: Observed,
    detector: Sequence[DetectorConfig],
    beam: BeamConfig,
) -> tuple[float, float] | None:
    """Block size (Å) and rms mosaicity (degrees), medians over strong spots, or None where too few are strong."""
    used = [i for i in range(len(detector)) if (observed.panel == i).any()]
    parts = [_variances(images[i], trusted[i], observed.bbox[observed.panel == i], detector[i], beam) for i in used]
    along, across, q2 = np.concatenate([np.stack(part, axis=1) for part in parts]).T
    if len(along) < FEWEST_SPOTS:
        return None
    size_variance = max(float(np.median(along)), GAUSS_VARIANCE / DOMAIN_SIZE_RANGE_A[1] ** 2)
    mosaic_variance = max(float(np.median((across - along) / q2)), 0.0)
    size = np.sqrt(GAUSS_VARIANCE / size_variance)
    mosaicity = np.degrees(np.sqrt(mosaic_variance))
    return float(np.clip(size, *DOMAIN_SIZE_RANGE_A)), float(np.clip(mosaicity, *MOSAICITY_RANGE_DEG))


def _variances(
    image: NDArray[Any], trusted: Bools, bbox: Ints, panel: DetectorConfig, beam: BeamConfig
) -> tuple[Floats, Floats, Floats]:
    """Variance of strong spots along the radius and along the ring (1/Å²), and |q|² (1/Å²)."""
    slow_count, fast_count = image.shape
    wide = bbox + MARGIN_PX * np.array([-1, 1, -1, 1])
    within = (wide[:, 0] >= 0) & (wide[:, 1] <= fast_count) & (wide[:, 2] >= 0) & (wide[:, 3] <= slow_count)
    wide = wide[within]
    if not len(wide):
        return (np.zeros(0),) * 3
    pixels = box_pixels(wide)
    border = pixels.present & ~_inside(pixels, wide + np.array([1, -1, 1, -1]))
    values = image[pixels.slow, pixels.fast].astype(np.float64)
    level = np.nanmedian(np.where(border, values, np.nan), axis=1)
    signal = np.where(pixels.present & ~border, values - level[:, None], 0.0)
    total = signal.sum(axis=1)
    strong = (total > FEWEST_PHOTONS) & (trusted[pixels.slow, pixels.fast] | ~pixels.present).all(axis=1)
    weight = signal[strong] / total[strong, None]
    x, y = (np.where(pixels.present, part, 0)[strong] + 0.5 for part in (pixels.fast, pixels.slow))
    centre = np.stack([(weight * x).sum(axis=1), (weight * y).sum(axis=1)], axis=1)
    dx, dy = x - centre[:, :1], y - centre[:, 1:]
    spread = np.einsum("npi,npj,np->nij", *([np.stack([dx, dy], axis=-1)] * 2), weight) - np.eye(2) / 12.0
    return _along_and_across(spread, centre, panel, beam)


def _inside(pixels: BoxPixels, bbox: Ints) -> Bools:
    fast = (pixels.fast >= bbox[:, :1]) & (pixels.fast < bbox[:, 1:2])
    return fast & (pixels.slow >= bbox[:, 2:3]) & (pixels.slow < bbox[:, 3:4])


def _along_and_across(
    spread_px2: Floats, centre_px: Floats, panel: DetectorConfig, beam: BeamConfig
) -> tuple[Floats, Floats, Floats]:
    fast, slow, s0 = (np.asarray(v, dtype=np.float64) for v in (panel.fast_axis, panel.slow_axis, beam.direction))
    edge, wavelength = float(panel.pixel_size_mm), float(beam.wavelength_A)
    origin = np.stack([float(panel.origin_fast_mm), float(panel.origin_slow_mm)]) + edge * centre_px
    position = origin @ np.stack([fast, slow]) + float(panel.distance_mm) * np.cross(fast, slow)
    distance = np.linalg.norm(position, axis=1)
    s1 = position / distance[:, None]
    q = (s1 - s0) / wavelength
    ring = np.cross(s0, s1)
    ring /= np.maximum(np.linalg.norm(ring, axis=1), 1e-12)[:, None]
    radius = np.cross(ring, s1)
    # dq = (1/(wavelength R)) (I - s1 s1ᵀ) d(position): both directions are across s1 already.
    step = (edge / (wavelength * distance))[:, None]
    on_radius = step * np.stack([radius @ fast, radius @ slow], axis=1)
    on_ring = step * np.stack([ring @ fast, ring @ slow], axis=1)
    along, across = (np.einsum("ni,nij,nj->n", v, spread_px2, v) for v in (on_radius, on_ring))
    return along, across, (q**2).sum(axis=1)
