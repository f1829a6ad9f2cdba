"""What all stills have in common: the free numbers that mean the same in each, and the models that these start from.

A number is shared where every still has it about the same beginning: the detector, as a whole or in units, about one
detector, in one frame; the wavelength as a factor of what each still says of its own; the cell about one cell
(docs/physics.md, section 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dbex.errors import BadInput
from dbex.refinement.detector_motion import UNIT_MOTIONS, WHOLE, DetectorFrame, moved, unit_frame
from dbex.refinement.parameters import CELL, Parameter, Parametrisation, names_of, panel_records
from dbex.still import Floats, Ints, Still
from nanobrag_torch.config import DetectorConfig, override
from nanobrag_torch.panel import Panels, stack_panels

#: A number that is shared has its prior once, not once a still.
NO_PRIOR = float("inf")
#: The largest step of a unit in one iteration: mm, radians.
UNIT_STEP = {"mm": 0.3, "mrad": 0.005}


@dataclass(frozen=True)
class Units:
    """Parts of a detector that move by themselves, each a list of panels, and how far they may be from where the
    detector as a whole has them: standard deviations of priors, mm and mrad."""

    panels: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    shift_mm: float = 0.5
    tilt_mrad: float = 10.0

    def parameters(self, frame: DetectorFrame, groups: Sequence[str]) -> tuple[Parameter, ...]:
        """The motions of all units that the groups free."""
        kinds = {"mm": self.shift_mm, "mrad": self.tilt_mrad * 1e-3}
        found = []
        for motions in frame.names:
            for name, group in zip(motions, UNIT_MOTIONS.values(), strict=True):
                unit = "mrad" if group == "tilt" else "mm"
                if group in groups:
                    found.append(Parameter(name, "detector", unit, UNIT_STEP[unit], kinds[unit]))
        return tuple(found)


@dataclass(frozen=True)
class Sharing:
    """Which groups of detector and beam are shared, whether the cell is, and the units that the detector's motions are
    told apart for, None for the detector as a whole. Raises BadInput where nothing is."""

    detector: tuple[str, ...]
    beam: tuple[str, ...] = ()
    cell: bool = False
    units: Units | None = None

    def __post_init__(self) -> None:
        if not (self.detector or self.beam or self.cell):
            raise BadInput("nothing is shared: name a part of refine.detector or refine.beam, or refine.cell=shared")
        if self.units is not None and not self.detector:
            raise BadInput("refine.detector_unit says what moves by itself, but refine.detector is none: name its part")

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
        """A still's parametrisation about the common beginning, the shared parameters last and without priors."""
        names = {p.name for p in self.parameters}.union(WHOLE)
        cell = {} if self.cell is None else dict(zip(CELL, self.cell, strict=True))
        own = tuple(p for p in map.parameters if p.name not in names)
        return replace(
            map,
            detector=self.detector,
            panels=replace(self.panels, point_spread=map.panels.point_spread),
            frame=self.frame,
            crystal=override(map.crystal, cell),
            parameters=(*own, *(replace(p, prior=NO_PRIOR) for p in self.parameters)),
        )

    def in_units(self, sharing: Sharing, g: Floats) -> "tuple[Common, Floats]":
        """The beginning from which units move by themselves: the detector as a whole where the shared numbers g have
        it, and g with all units there."""
        assert sharing.units is not None
        at = {p.name: torch.as_tensor(value) for p, value in zip(self.parameters, g, strict=True)}
        zero = torch.zeros((), dtype=torch.float64)
        motions = torch.stack([at.get(name, zero) for name in WHOLE])[None]
        detector = panel_records(self.detector, moved(self.panels, self.frame, motions[:, :3], motions[:, 3:]))
        panels = stack_panels(detector, zero)
        frame = unit_frame(panels, detector, sharing.units.panels)
        others = tuple(p for p in self.parameters if p.name not in WHOLE)
        units = sharing.units.parameters(frame, sharing.detector)
        values = np.array([0.0] * len(units) + [float(at[p.name]) for p in others])
        return replace(self, detector=detector, panels=panels, frame=frame, parameters=(*units, *others)), values


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
