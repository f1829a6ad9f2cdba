"""Widths of the crystal, the beam and the detector that a plain model lacks: none of them is there until it is freed.

Each is refined as a logarithm, for which nothing is no beginning: one that is freed and was nothing begins at its first
value (docs/physics.md, section 5).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, override


@dataclass(frozen=True)
class Width:
    """A width: the record that holds it and its field there, the value that it begins with where it was nothing, and
    one that is so small that it changes nothing, in the field's unit; of a panel in pixels."""

    record: str
    field: str
    first: float
    barely: float


#: All of them by the name of the parameter.
WIDTHS = {
    "bandwidth": Width("beam", "bandwidth", 1e-3, 1e-5),
    "divergence_h": Width("beam", "divergence_h_mrad", 0.3, 3e-3),
    "divergence_v": Width("beam", "divergence_v_mrad", 0.3, 3e-3),
    "cell_spread": Width("crystal", "strain", 1e-3, 1e-5),
    "point_spread": Width("detector", "point_spread_mm", 0.4, 4e-3),
}
FIRST = {name: width.first for name, width in WIDTHS.items()}
BARELY = {name: width.barely for name, width in WIDTHS.items()}

Records = tuple[CrystalConfig, tuple[DetectorConfig, ...], BeamConfig]


def begun(
    crystal: CrystalConfig,
    detector: Sequence[DetectorConfig],
    beam: BeamConfig,
    free: Collection[str],
    first: Mapping[str, float] = FIRST,
) -> Records:
    """The records in which the widths that are `free` are more than nothing: where they were nothing, `first`."""
    for name in WIDTHS.keys() & set(free):
        width, start = WIDTHS[name], first[name]
        if width.record == "beam" and float(getattr(beam, width.field)) == 0:
            beam = override(beam, {width.field: start})
        if width.record == "crystal" and float(getattr(crystal, width.field)) == 0:
            crystal = override(crystal, {width.field: start})
        if width.record == "detector":
            detector = [_panel(panel, start) if float(panel.point_spread_mm) == 0 else panel for panel in detector]
    return crystal, tuple(detector), beam


def _panel(panel: DetectorConfig, point_spread_px: float) -> DetectorConfig:
    return override(panel, {"point_spread_mm": point_spread_px * float(panel.pixel_size_mm)})
