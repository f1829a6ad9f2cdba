"""Masks: a pickled tuple of flex.bool, one a panel, True = trusted; and maps of numbers in the same form."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dials.array_family import flex
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.io.files import kept_while_unchanged, reading
from dbex.still import Bools, Floats, Ints, MaskCheck

KIND = "a mask: a pickled tuple of flex.bool, one a panel, True = trusted"

#: Below this part of indexed spots on trusted pixels, and with the rest on untrusted ones, a mask is the wrong way up.
INVERTED_BELOW = 0.5


def panel_shapes(detector: Any) -> tuple[tuple[int, int], ...]:
    """(slow, fast) of every panel of a dxtbx detector."""
    return tuple((slow, fast) for fast, slow in (panel.get_image_size() for panel in detector))


def read_mask(path: str | Path, shapes: Sequence[tuple[int, int]]) -> tuple[Bools, ...]:
    """Trusted pixels, one array (slow, fast) a panel. Raises BadInput for another number or shape of panels."""
    arrays = _flags(path)
    check_shapes(arrays, shapes, "mask")
    return arrays


@kept_while_unchanged
def _flags(path: str | Path) -> tuple[Bools, ...]:
    panels = _unpickled(path, KIND)
    if not all(isinstance(panel, flex.bool) for panel in panels):
        raise BadInput(f"{path} holds {type(panels[0]).__name__}: expected {KIND}; write it with dials.generate_mask")
    arrays = tuple(panel.as_numpy_array() for panel in panels)
    for array in arrays:
        array.setflags(write=False)
    return arrays


def read_map(path: str | Path, shapes: Sequence[tuple[int, int]]) -> tuple[Floats, ...]:
    """A number for every pixel from an .npy file [panel, slow, fast] or a pickled tuple of flex.double."""
    kind = "a map: an .npy file [panel, slow, fast] or a pickled tuple of flex.double"
    if Path(path).suffix == ".npy":
        with reading(path, kind) as file:
            loaded = np.load(file)
        panels: tuple[Any, ...] = tuple(loaded if loaded.ndim == 3 else loaded[None])
    else:
        panels = _unpickled(path, kind)
    with reading(path, kind):
        arrays = tuple(np.asarray(flex_or_array(panel), dtype=np.float64) for panel in panels)
    check_shapes(arrays, shapes, f"map {path}")
    return arrays


def flex_or_array(panel: Any) -> NDArray[Any]:
    """A flex array or an array as an array."""
    array: NDArray[Any] = panel.as_numpy_array() if hasattr(panel, "as_numpy_array") else np.asarray(panel)
    return array


def _unpickled(path: str | Path, kind: str) -> tuple[Any, ...]:
    with reading(path, kind) as file:
        loaded = pickle.loads(file.read_bytes())
    panels = tuple(loaded) if isinstance(loaded, tuple | list) else (loaded,)
    if not panels:
        raise BadInput(f"{path} holds no panel: expected {kind}; write it again")
    return panels


def check_shapes(panels: Sequence[NDArray[Any]], shapes: Sequence[tuple[int, int]], name: str) -> None:
    """Raise BadInput unless there is one array a panel, each of the panel's (slow, fast)."""
    if len(panels) != len(shapes):
        raise BadInput(f"{name} has {len(panels)} panels but the detector has {len(shapes)}: is it of another one?")
    for i, (panel, shape) in enumerate(zip(panels, shapes, strict=True)):
        if panel.shape == tuple(shape):
            continue
        where = f" on panel {i}" if len(shapes) > 1 else ""
        turned = panel.shape == tuple(reversed(shape))
        advice = "is it transposed?" if turned else "give one of this detector, (slow, fast)"
        raise BadInput(f"{name} has shape {panel.shape}{where} but the detector is {tuple(shape)}: {advice}")


def check_polarity(mask: Sequence[Bools], panel: Ints, xy_px: Floats) -> None:
    """Raise BadInput where most spots, at (fast, slow) pixels on their panel, lie on untrusted pixels: as a mask that
    says False = trusted would have it."""
    on_trusted = spots_on(mask, panel, xy_px)
    if len(panel) and on_trusted < INVERTED_BELOW * len(panel):
        raise BadInput(
            f"mask trusts {on_trusted} of {len(panel)} indexed spots: expected nearly all; "
            "is it inverted? True means trusted"
        )


def spots_on(mask: Sequence[Bools], panel: Ints, xy_px: Floats) -> int:
    """How many spots, at (fast, slow) pixels on their panel, the mask trusts."""
    count = 0
    for i, trusted in enumerate(mask):
        x, y = np.floor(xy_px[panel == i]).astype(int).T
        count += int(trusted[np.clip(y, 0, trusted.shape[0] - 1), np.clip(x, 0, trusted.shape[1] - 1)].sum())
    return count


def mask_check(mask: Sequence[Bools], panel: Ints, xy_px: Floats, dead: Sequence[Bools]) -> MaskCheck:
    """What indexed spots and the pixels that the image itself marks as `dead` say of a mask."""
    return MaskCheck(
        spots=len(panel),
        hidden_spots=len(panel) - spots_on(mask, panel, xy_px),
        dead_pixels=int(sum(marked.sum() for marked in dead)),
        trusted_dead=int(sum((marked & trusted).sum() for marked, trusted in zip(dead, mask, strict=True))),
    )


def as_flex(mask: Sequence[Bools]) -> tuple[Any, ...]:
    """A mask as DIALS has it: a tuple of flex.bool, one a panel."""
    return tuple(flex.bool(np.ascontiguousarray(panel)) for panel in mask)
