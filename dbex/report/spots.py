"""The spots of a page: the images of each, what is told of it, and which are shown first."""

from typing import Any

import numpy as np

from dbex.report.figures import ranked_boxes
from dbex.report.page import Gallery, packed_array
from dbex.scoring import box_z, resolution_A, z_scores
from dbex.still import Floats, Ints, StillResult

#: So many pixels make a megabyte of the page, or two: what is beyond has no picture there.
MOST_PIXELS = 150_000
TITLES = {
    "worst": "Worst: the lowest correlations of data and model",
    "median": "Median: the middle of the list",
    "best": "Best: the highest correlations",
    "most down-weighted": "Most down-weighted by the robust rule",
}
CAPTION = (
    "Each frame is one spot as data, model and Z = (data − model)/σ. Data and model share one scale of colours, dark "
    "to bright with the square root of the photons; Z runs from purple (−5, fewer photons than the model) over white "
    "to orange (+5, more). Grey pixels were not used. A good fit leaves Z as noise without a shape: a bright rim, a "
    "dipole or a ring there means that width, place or strength of the spot is wrong. Ranked by the correlation (CC) "
    "of data and model among the bright spots. A click shows the spot below, with its numbers."
)


def gallery(result: StillResult, most_pixels: int | None = MOST_PIXELS) -> Gallery:
    """The spots with pictures of the worst, the median, the best and the most down-weighted ones."""
    ranked = {kind: boxes for kind, boxes in ranked_boxes(result).items() if len(boxes)}
    shown = with_picture(result, ranked, most_pixels)
    left = int((result.boxes.pixels > 0).sum() - shown.sum())
    more = f" {left} of the weakest spots are not in this page, to keep it small: dbex.look shows all." if left else ""
    spots = columns(result) | images(result, shown)
    spots["kinds"] = [{"title": TITLES[kind], "boxes": boxes} for kind, boxes in ranked.items()]
    return Gallery(CAPTION + more, spots)


def with_picture(result: StillResult, ranked: dict[str, Ints], most_pixels: int | None) -> np.ndarray:
    """Which boxes (n,) get a picture: those that are ranked, then the brightest, as far as the page has room."""
    boxes = result.boxes
    size = (boxes.bbox[:, 1] - boxes.bbox[:, 0]) * (boxes.bbox[:, 3] - boxes.bbox[:, 2])
    first = np.concatenate([ranked[kind] for kind in ranked]) if ranked else np.zeros(0, int)
    order = np.concatenate([first, np.argsort(-boxes.signal_to_noise, kind="stable")])
    _, unique = np.unique(order, return_index=True)
    order = order[np.sort(unique)]
    order = order[boxes.pixels[order] > 0]
    fits = np.cumsum(size[order]) <= (np.inf if most_pixels is None else most_pixels)
    chosen = np.zeros(len(boxes), bool)
    chosen[order[fits]] = True
    return chosen


def columns(result: StillResult) -> dict[str, Any]:
    """What is told of each box."""
    boxes = result.boxes
    h, k, l = boxes.hkl.T if len(boxes) else np.zeros((3, 0), int)
    return {
        "h": h,
        "k": k,
        "l": l,
        "panel": boxes.panel,
        "panels": len(result.detector),
        "d": resolution_A(boxes, result.beam_direction),
        "cc": boxes.cc,
        "chi2": boxes.chi2_per_pixel,
        "total": box_z(result.pixels, len(boxes)),
        "snr": boxes.signal_to_noise,
        "excitation": boxes.excitation,
        "weight": boxes.weight,
    }


def images(result: StillResult, shown: np.ndarray) -> dict[str, Any]:
    """Data, model and Z of the boxes with a picture, one after the other, and where each begins: -1 without one."""
    boxes, pixels = result.boxes, result.pixels
    width, height = boxes.bbox[:, 1] - boxes.bbox[:, 0], boxes.bbox[:, 3] - boxes.bbox[:, 2]
    ends = np.cumsum(np.where(shown, width * height, 0))
    offset = np.where(shown, ends - width * height, -1)
    mine = pixels.used & shown[pixels.box]
    box = pixels.box[mine]
    place = offset[box] + (pixels.slow[mine] - boxes.bbox[box, 2]) * width[box] + pixels.fast[mine] - boxes.bbox[box, 0]
    values: dict[str, Floats] = {
        "data": pixels.data[mine],
        "model": (pixels.background + pixels.bragg)[mine],
        "z": z_scores(pixels)[mine],
    }
    found: dict[str, Any] = {"x0": boxes.bbox[:, 0], "y0": boxes.bbox[:, 2]}
    found |= {"width": width, "height": height, "offset": offset}
    for name, each in values.items():
        whole = np.full(int(ends[-1]) if len(ends) else 0, np.nan, dtype=np.float32)
        whole[place] = shortened(each)
        found[name] = packed_array(whole)
    return found


def shortened(values: Floats) -> np.ndarray:
    """Numbers with twelve significant bits, which pack well."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x400)) & np.uint32(0xFFFFF800)).view(np.float32)
