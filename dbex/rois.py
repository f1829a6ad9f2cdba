"""Boxes of pixels around spots: padded, clipped, counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.still import Ints

#: Pixels of background that a box is given on every side of its spot, and the least width it then has.
PADDING_PX = 5
LEAST_WIDTH_PX = 15


@dataclass(frozen=True)
class Boxes:
    """Boxes (n, 4) as (x0, x1, y0, y1), upper bounds exclusive, on `panel` (n,); `frames` (n, 2) are z0 and z1 as the
    table has them; `row` (n,) the row of the table; `core` (n, 4) the unpadded boxes; `left_out` counts by reason."""

    bbox: Ints
    panel: Ints
    frames: Ints
    row: Ints
    core: Ints
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.bbox)


def padded_boxes(
    bbox: NDArray[np.integer],
    panel: NDArray[np.integer],
    shapes: Sequence[tuple[int, int]],
    padding_px: int = PADDING_PX,
    least_width_px: int = LEAST_WIDTH_PX,
) -> Boxes:
    """Boxes in the order of the table, from `bbox` (n, 6: x0, x1, y0, y1, z0, z1) on panels of `shapes` (slow, fast).

    Boxes of no area, off the panel and repeated ones are left out, boxes over an edge are clipped, all with a count.
    Raises BadInput for a panel that the detector has not, and where no box is left.
    """
    bbox, panel = np.asarray(bbox, dtype=np.int64).reshape(-1, 6), np.asarray(panel, dtype=np.int64)
    if len(panel) and (panel.min() < 0 or panel.max() >= len(shapes)):
        raise BadInput(
            f"boxes are on panels {panel.min()} to {panel.max()} but the detector has {len(shapes)}: "
            "give the reflections of this experiment"
        )
    width = np.array([(fast, slow) for slow, fast in shapes], dtype=np.int64)[panel]
    core = bbox[:, :4]
    flat = (core[:, 1] <= core[:, 0]) | (core[:, 3] <= core[:, 2])
    off = ~flat & ((core[:, 1] <= 0) | (core[:, 0] >= width[:, 0]) | (core[:, 3] <= 0) | (core[:, 2] >= width[:, 1]))
    repeated = ~flat & ~off & _repeated(np.column_stack([panel, bbox]))
    keep = ~(flat | off | repeated)
    padded = _padded(core, padding_px, least_width_px)
    clipped = _clipped(padded, width)
    left_out = {
        "boxes of no area": int(flat.sum()),
        "boxes off their panel": int(off.sum()),
        "repeated boxes": int(repeated.sum()),
        "boxes clipped at an edge": int((clipped != padded)[keep].any(axis=1).sum()),
    }
    if not keep.any():
        counts = ", ".join(f"{count} {name}" for name, count in left_out.items())
        raise BadInput(f"no box is left of {len(bbox)} ({counts}): expected one around each spot; integrate again")
    return Boxes(
        clipped[keep], panel[keep], bbox[keep, 4:], np.flatnonzero(keep), _clipped(core, width)[keep], left_out
    )


def _padded(core: Ints, padding_px: int, least_width_px: int) -> Ints:
    padded = np.empty_like(core)
    for low, high in ((0, 1), (2, 3)):
        size = core[:, high] - core[:, low]
        extra = np.maximum(2 * padding_px, least_width_px - size)
        padded[:, low] = core[:, low] - extra // 2
        padded[:, high] = core[:, high] + extra - extra // 2
    return padded


def _clipped(bbox: Ints, width: Ints) -> Ints:
    return np.stack([np.clip(bbox[:, k], 0, width[:, k // 2]) for k in range(4)], axis=1)


def _repeated(keys: Ints) -> NDArray[np.bool_]:
    """True for every row that has been seen before."""
    _, first = np.unique(keys, axis=0, return_index=True)
    seen = np.ones(len(keys), dtype=bool)
    seen[first] = False
    return seen


@dataclass(frozen=True)
class BoxPixels:
    """The pixels of n boxes in arrays (n, p), p the most that any has: whole-number coordinates `fast` and `slow`,
    and `present`, False where a row is only filled up (there with the coordinates of the box's first pixel)."""

    fast: Ints
    slow: Ints
    present: NDArray[np.bool_]


def box_pixels(bbox: Ints) -> BoxPixels:
    """All pixels of boxes (n, 4) as padded rows."""
    wide, high = bbox[:, 1] - bbox[:, 0], bbox[:, 3] - bbox[:, 2]
    k = np.arange(int((wide * high).max()))[None, :]
    present = k < (wide * high)[:, None]
    k = np.where(present, k, 0)
    return BoxPixels(bbox[:, :1] + k % wide[:, None], bbox[:, 2:3] + k // wide[:, None], present)
