"""What all stills have in common: the free numbers that mean the same in each, and the models that these start from.

A number is shared where every still has it about the same beginning: the detector as a whole about one detector, in one
frame; the wavelength as a factor of what each still says of its own; the cell about one cell (docs/physics.md,
section 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dbex.errors import BadInput
from dbex.refinement.parameters import CELL, DetectorFrame, Parameter, Parametrisation, names_of
from dbex.still import Floats, Ints, Still
from nanobrag_torch.config import DetectorConfig, override
from nanobrag_torch.panel import Panels

#: A number that is shared has its prior once, not once a still.
NO_PRIOR = float("inf")


@dataclass(frozen=True)
class Sharing:
    """Which groups of detector and beam are shared, and whether the cell is. Raises BadInput where nothing is."""

    detector: tuple[str, ...]
    beam: tuple[str, ...] = ()
    cell: bool = False

    def __post_init__(self) -> None:
        if not (self.detector or self.beam or self.cell):
            raise BadInput("nothing is shared: name a part of refine.detector or refine.beam, or refine.cell=shared")

    def of(self, map: Parametrisation) -> tuple[Parameter, ...]:
        """The shared parameters of a still's parametrisation, in its order."""
        names = {name for group in (*self.detector, *self.beam) for name in names_of(group)}
        return tuple(p for p in map.parameters if p.name in names or (self.cell and p.group == "cell"))


@dataclass(frozen=True)
class Common:
    """The beginning that stills share: the detector's records, panels and frame, the six numbers of the cell or None
    where each keeps its own, and the parameters that are shared."""

    detector: tuple[DetectorConfig, ...]
    panels: Panels
    frame: DetectorFrame
    cell: tuple[float, ...] | None
    parameters: tuple[Parameter, ...]

    def places(self, map: Parametrisation) -> Ints:
        """Where the shared parameters stand in a still's x, in their own order."""
        return np.array([map.place(p.name) for p in self.parameters], dtype=np.int64)

    def rebased(self, map: Parametrisation) -> Parametrisation:
        """A still's parametrisation about the common beginning, without priors of what is shared."""
        names = {p.name for p in self.parameters}
        cell = {} if self.cell is None else dict(zip(CELL, self.cell, strict=True))
        return replace(
            map,
            detector=self.detector,
            panels=replace(self.panels, point_spread=map.panels.point_spread),
            frame=self.frame,
            crystal=override(map.crystal, cell),
            parameters=tuple(replace(p, prior=NO_PRIOR) if p.name in names else p for p in map.parameters),
        )


def on_detector(still: Still, detector: tuple[DetectorConfig, ...]) -> Still:
    """The still with its panels where the common detector has them. Raises BadInput for another detector."""
    ours, theirs = ([(panel.shape, panel.pixel_size_mm) for panel in panels] for panels in (still.detector, detector))
    if ours != theirs:
        raise BadInput(
            f"{still.name} has a detector of {_words(ours)} but the first still one of {_words(theirs)}: expected one "
            "detector; refine stills of different detectors apart"
        )
    return replace(still, detector=detector)


def _words(panels: Sequence[tuple[object, ...]]) -> str:
    return f"{len(panels)} panels of {panels[0][0]} pixels"


def middle(values: Sequence[Floats]) -> Floats:
    """The robust mean (n,) of what each still found: the median of each number."""
    return np.asarray(np.median(np.stack(values), axis=0))
