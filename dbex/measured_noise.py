"""The noise of a still measured from its own background: its files in, records out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.io import masks, reflections
from dbex.io.experiments import read_experiments
from dbex.io.images import RawImage, read_image, within_trusted_range
from dbex.physics.noise import counts_photons
from dbex.physics.photon_transfer import NoiseMeasurement, background_z, estimate_noise
from dbex.still import Bools, SigmaZCheck

#: Pixels around a spot's box that its tails may reach.
TAIL_PX = 2


@dataclass(frozen=True)
class MeasuredNoise:
    """What was measured, σ-Z of the background with what is recommended (None where nothing is), whether the detector
    is one that counts photons, how many pixels were trusted and how many of them lie in spots, and the files."""

    measurement: NoiseMeasurement
    check: SigmaZCheck | None
    counting: bool
    trusted_pixels: int
    spot_pixels: int
    files: dict[str, str]


def measure_noise(
    expt_path: str | Path, refl_path: str | Path | None = None, mask_path: str | Path | None = None, index: int = 0
) -> MeasuredNoise:
    """Measure the noise of experiment `index` of a list; spots of the reflection table, indexed or not, are left out.

    Raises BadInput for files that cannot be used.
    """
    experiments = read_experiments(expt_path)
    if not 0 <= index < len(experiments):
        raise BadInput(f"index is {index} but {expt_path} has {len(experiments)} experiments: count from 0")
    experiment = experiments[index]
    for part in ("detector", "imageset"):
        if getattr(experiment, part) is None:
            raise BadInput(f"experiment {index} has no {part}: expected an image with its detector; import it first")
    raw = read_image(experiment, f"experiment {index}")
    counting = counts_photons(experiment.detector, raw.whole_numbers)
    trusted = trusted_pixels(experiment, raw, counting, mask_path)
    check_some(trusted)
    spots = tuple(np.zeros(panel.shape, dtype=bool) for panel in trusted)
    if refl_path is not None:
        mark_spots(spots, experiments, index, refl_path)
    background = tuple(trust & ~spot for trust, spot in zip(trusted, spots, strict=True))
    measurement = estimate_noise(raw.panels, background)
    names = {"experiments": expt_path, "reflections": refl_path, "mask": mask_path, "image": raw.path}
    count = sum(int(panel.sum()) for panel in trusted)
    return MeasuredNoise(
        measurement,
        background_z(raw.panels, background, measurement) if measurement.recommended else None,
        counting,
        count,
        count - sum(int(panel.sum()) for panel in background),
        {name: str(path) for name, path in names.items() if path is not None},
    )


def trusted_pixels(experiment: Any, raw: RawImage, counting: bool, mask_path: str | Path | None) -> tuple[Bools, ...]:
    """Pixels that the mask, the experiment's own mask, the format and the trusted range all trust."""
    shapes = masks.panel_shapes(experiment.detector)
    together = within_trusted_range(raw, experiment.detector, counting)
    given = [path for path in (mask_path, experiment.imageset.external_lookup.mask.filename) if path]
    for mask in (raw.format_mask, *(masks.read_mask(path, shapes) for path in given)):
        if mask is not None:
            masks.check_shapes(mask, shapes, "mask")
            together = tuple(a & b for a, b in zip(together, mask, strict=True))
    return together


def check_some(trusted: tuple[Bools, ...]) -> None:
    """Raise BadInput where no pixel is trusted."""
    if not any(panel.any() for panel in trusted):
        raise BadInput("no pixel is trusted: expected a mask with True where a pixel is trusted; is it inverted?")


def mark_spots(spots: tuple[NDArray[np.bool_], ...], experiments: Any, index: int, refl_path: str | Path) -> None:
    """Set True in `spots` where a box of the table, or its tails, lies; boxes of other images are left alone."""
    table = reflections.read_table(refl_path)
    ids = table["id"].as_numpy_array()
    names = dict(table.experiment_identifiers())
    identifier = experiments[index].identifier
    same = [number for number, name in names.items() if name == identifier] if names and identifier else [index]
    # Spots that no lattice claims carry -1, and are of this image if it is the only one.
    mine = np.isin(ids, [*same, -1] if len(experiments) == 1 else same)
    panel = table["panel"].as_numpy_array()
    for i, (x0, x1, y0, y1) in zip(panel[mine], reflections.bboxes(table)[mine, :4], strict=True):
        if i >= len(spots):
            raise BadInput(f"{refl_path} has spots on panel {i} but the detector has {len(spots)}: give another .refl")
        spots[i][max(y0 - TAIL_PX, 0) : y1 + TAIL_PX, max(x0 - TAIL_PX, 0) : x1 + TAIL_PX] = True
