"""Raw images through dxtbx's formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dxtbx.format import Registry
from dxtbx.format.FormatMultiImage import FormatMultiImage
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.io.files import reading
from dbex.still import Bools, Image, NoiseModel

KIND = "an image that dxtbx knows"


@dataclass(frozen=True)
class RawImage:
    """The numbers of an image as stored, one array (slow, fast) a panel; `whole_numbers` where the format stores
    integers; `format_mask`, True = trusted, if the format itself knows untrusted pixels."""

    path: Path
    panels: tuple[NDArray[Any], ...]
    whole_numbers: bool
    format_mask: tuple[Bools, ...] | None


def image_path(experiment: Any) -> Path:
    """Where the experiment's image should be; relative paths in an .expt start from its folder."""
    return Path(experiment.imageset.paths()[0])


def read_image(experiment: Any, name: str) -> RawImage:
    """The raw image of a still. Raises BadInput where it is absent, truncated, or not of the experiment's detector."""
    path = image_path(experiment)
    if not path.is_file():
        raise BadInput(f"{name} points to the image {path}, which does not exist: put it there or correct the .expt")
    with reading(path, KIND) as file:
        format_class = Registry.get_format_class_for_file(str(file))
        if format_class is None:
            raise BadInput(f"{file} is of no format that dxtbx knows: expected {KIND}; convert it")
        opened = format_class.get_instance(str(file))
        multiple = issubclass(format_class, FormatMultiImage)
        raw = opened.get_raw_data(experiment.imageset.indices()[0]) if multiple else opened.get_raw_data()
        mask = opened.get_static_mask()
    panels = tuple(panel.as_numpy_array() for panel in (raw if isinstance(raw, tuple) else (raw,)))
    for i, panel in enumerate(panels):
        if not np.isfinite(panel).all():
            raise BadInput(f"{path} holds NaN on panel {i}: expected finite numbers; write the image again")
    whole = all(np.issubdtype(panel.dtype, np.integer) for panel in panels)
    image = RawImage(path, panels, whole, tuple(m.as_numpy_array() for m in mask) if mask else None)
    check_panels(image, experiment.detector)
    return image


def check_panels(image: RawImage, detector: Any) -> None:
    """Raise BadInput where the image is not one of this detector."""
    path, panels = image.path, image.panels
    if len(panels) != len(detector):
        raise BadInput(
            f"{path} has {len(panels)} panels but the detector has {len(detector)}: give the image of this experiment"
        )
    for i, (values, panel) in enumerate(zip(panels, detector, strict=True)):
        expected = tuple(reversed(panel.get_image_size()))
        if values.shape != expected:
            raise BadInput(
                f"{path} has shape {values.shape} on panel {i} but the detector is {expected}: "
                "give the image of this experiment"
            )


def in_photons(raw: RawImage, noise: NoiseModel) -> tuple[Image, ...]:
    """Values less pedestals over gains.

    Counts below 2^24 with a gain of 1 are exact in float32, which halves the memory; anything else is float64.
    """
    if noise.panels:
        units = zip(raw.panels, noise.panels, strict=True)
        return tuple((values - pedestal) / gain for values, (gain, pedestal) in units)
    gain, limit = noise.gain, 2**24
    exact = gain == 1.0 and raw.whole_numbers and all(abs(p.min()) < limit and p.max() < limit for p in raw.panels)
    if exact:
        return tuple(panel.astype(np.float32) for panel in raw.panels)
    return tuple(panel / gain for panel in raw.panels)


def within_trusted_range(
    raw: RawImage, detector: Any, counting: bool, trusted_max: float | None = None
) -> tuple[Bools, ...]:
    """Pixels within each panel's trusted range, and not above `trusted_max` in the image's units, its untrusted
    rectangles left out; in a counting detector nothing below zero is a count, whatever the range says."""
    trusted = []
    for values, panel in zip(raw.panels, detector, strict=True):
        low, high = panel.get_trusted_range()
        high = high if trusted_max is None else min(high, trusted_max)
        inside = (values >= (max(low, 0) if counting else low)) & (values <= high)
        for fast0, slow0, fast1, slow1 in panel.get_mask():
            inside[slow0:slow1, fast0:fast1] = False
        trusted.append(inside)
    return tuple(trusted)
