"""Directions of the shared numbers that no still can tell from its own numbers, and what holds them.

A rotation of the whole detector about the beam is one of every crystal; where the beam's direction moves too, so is any
rotation of detector and beam together. The mean rotation over all sensors is held where the directions of its units
are free to make it up (docs/physics.md, section 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dbex.joint.shared import Common
from dbex.refinement.detector_motion import second_moments
from dbex.still import Floats

#: How well a direction that nothing else determines is held, radians: far below what moves a spot.
HELD_RAD = 1e-6
#: What a rotation of the detector about each axis cannot be told from.
ALONG = "rotation of the detector about the beam: that of every crystal"
ACROSS = "rotation of the detector with the beam about {}: that of every crystal"


@dataclass(frozen=True)
class Gauge:
    """A direction in words; `functional` (g,) takes the shared numbers to how far they have gone along it, radians."""

    words: str
    functional: Floats

    def merit(self, g: Floats) -> float:
        """What it adds to the merit."""
        return float((self.functional @ g / HELD_RAD) ** 2)

    @property
    def matrix(self) -> Floats:
        """What it adds to the normal matrix (g, g)."""
        return np.outer(self.functional, self.functional) / HELD_RAD**2

    def gradient(self, g: Floats) -> Floats:
        """What it adds to the downhill gradient (g,)."""
        return -self.functional * (self.functional @ g) / HELD_RAD**2


def gauges_of(
    common: Common, beam_direction: Sequence[float], direction_moves: bool, seen: Floats | None = None
) -> tuple[Gauge, ...]:
    """The open directions of what is shared; `direction_moves` says whether the beam's direction is refined, `seen`
    (u,) how well spots tell the places of the units, 0 to 1, all of them where it is None."""
    seen = np.ones(len(common.frame)) if seen is None else seen
    s0 = np.asarray(beam_direction, float) / np.linalg.norm(beam_direction)
    found = []
    names = {p.name for p in common.parameters}
    if any(unit[5] in names for unit in common.frame.names):
        found.append(Gauge(ALONG, mean_rotation(common, s0, seen)))
    tilts = any(unit[3] in names and unit[0] in names for unit in common.frame.names)
    if direction_moves and tilts:
        fast = common.frame.axes[0, 0].numpy()
        slow = np.cross(s0, fast)
        for word, axis in (("the slow axis", slow), ("the fast axis", np.cross(slow, s0))):
            found.append(Gauge(ACROSS.format(word), mean_rotation(common, axis / np.linalg.norm(axis), seen)))
    return tuple(found)


def mean_rotation(common: Common, axis: Floats, seen: Floats) -> Floats:
    """The functional (g,) that takes motions of the units to the rotation of all sensors about an axis through the
    crystal that comes nearest to them, in the mean square over their areas as far as they are `seen` (u,): a unit that
    nobody knows the place of must not decide where the others are."""
    frame, names = common.frame, [p.name for p in common.parameters]
    areas, moments = second_moments(common.panels, common.detector, frame)
    areas = areas * seen
    functional, total = np.zeros(len(names)), 0.0
    for number, motions in enumerate(frame.names):
        axes, moment = frame.axes[number].numpy(), moments[number]
        inertia = np.trace(moment) * np.eye(3) - moment
        around = np.cross(axis, frame.pivot[number].numpy())
        by_motion = areas[number] * np.concatenate([axes @ around, axes @ inertia @ axis])
        total += areas[number] * (around @ around + axis @ inertia @ axis)
        for name, value in zip(motions, by_motion, strict=True):
            if name in names:
                functional[names.index(name)] = value
    return functional / total
