"""How a detector moves: as one body, or in units of one or more panels, each by itself.

A unit has three axes and a pivot; its six motions are shifts along these axes and rotations about them through the
pivot. That of the detector as a whole lies where the beam meets it, that of a smaller unit in the middle of its
sensors, so that a rotation about it moves nothing on the mean (docs/physics.md, section 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dbex.still import Floats
from nanobrag_torch.config import BeamConfig, DetectorConfig
from nanobrag_torch.panel import Panels
from nanobrag_torch.rotation import left_jacobian, rotation_from_vector, vector_from_rotation
from nanobrag_torch.tensors import as_tensor, dot, unit

#: The motions of the detector as a whole, in the order of a unit's six coordinates. A rotation about the normal is none
#: of them: it is one of the crystals about the beam.
WHOLE = ("shift_fast", "shift_slow", "distance", "tilt_fast", "tilt_slow", "")
#: And those of a unit, each with the group that frees it.
UNIT_MOTIONS = {
    "shift_fast": "shift",
    "shift_slow": "shift",
    "shift_normal": "distance",
    "tilt_fast": "tilt",
    "tilt_slow": "tilt",
    "tilt_normal": "tilt",
}


@dataclass(frozen=True)
class DetectorFrame:
    """The axes along which the units of a detector move: rows fast, slow, normal (u, 3, 3), and the pivots of their
    rotations (u, 3), mm, in the laboratory frame; which unit each panel is part of (n panels,), and what the six
    motions of each are called."""

    axes: Tensor
    pivot: Tensor
    unit: Tensor
    names: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.names)


def detector_frame(panels: Panels, beam: BeamConfig) -> DetectorFrame:
    """The frame of the detector as a whole: for one panel its own axes, for several those of the mean plane; the pivot
    is where the beam meets that plane."""
    axes = mean_axes(panels)
    s0 = unit(as_tensor(beam.direction, panels.origin))
    distance = (panels.origin @ axes[2]).mean()
    pivot = s0 * distance / (s0 @ axes[2])
    whole = torch.zeros(len(panels.origin), dtype=torch.long)
    return DetectorFrame(axes[None], pivot[None], whole, (WHOLE,))


def mean_axes(panels: Panels) -> Tensor:
    """Fast, slow and normal (3, 3) of one panel, or of the mean plane of several."""
    if len(panels.fast) == 1:
        return torch.stack([panels.fast[0], torch.linalg.cross(panels.normal[0], panels.fast[0]), panels.normal[0]])
    normal = unit((panels.normal * torch.sign(panels.distance)[:, None]).mean(0))
    fast = panels.fast.mean(0)
    if torch.linalg.vector_norm(fast) < 0.1:  # panels that face every way in the plane have no mean direction
        fast = panels.fast[0]
    fast = unit(fast - (fast @ normal) * normal)
    return torch.stack([fast, torch.linalg.cross(normal, fast), normal])


def unit_frame(panels: Panels, detector: Sequence[DetectorConfig], units: Sequence[Sequence[int]]) -> DetectorFrame:
    """The frame of units, each a list of panels, that have all panels between them; the motions of unit 3 are called
    shift_fast[3] and so on."""
    of_panel = np.empty(len(detector), dtype=np.int64)
    axes, pivots = [], []
    centres = torch.as_tensor(centres_of(panels, detector))
    for number, members in enumerate(units):
        chosen = torch.as_tensor(list(members))
        of_panel[list(members)] = number
        axes.append(mean_axes(Panels(**{name: value[chosen] for name, value in vars(panels).items()})))
        pivots.append(centres[chosen].mean(0))
    names = tuple(tuple(f"{motion}[{number}]" for motion in UNIT_MOTIONS) for number in range(len(units)))
    return DetectorFrame(torch.stack(axes), torch.stack(pivots), torch.as_tensor(of_panel), names)


def centres_of(panels: Panels, detector: Sequence[DetectorConfig]) -> Floats:
    """The middles (n, 3) of the panels' sensors, mm."""
    slow, fast = (torch.tensor([panel.shape[i] / 2 for panel in detector], dtype=torch.float64) for i in (0, 1))
    size = panels.pixel_size
    centres = panels.origin + (fast * size)[:, None] * panels.fast + (slow * size)[:, None] * panels.slow
    return np.asarray(centres.numpy())


def moved(panels: Panels, frame: DetectorFrame, shift_mm: Tensor, rotation_rad: Tensor | None) -> Panels:
    """The panels turned about the pivots of their units, then shifted; both (u, 3) along the units' axes, None for no
    rotation."""
    shift = (shift_mm[:, None] @ frame.axes)[:, 0][frame.unit]
    if rotation_rad is None:
        origin = panels.origin + shift
        return replace(panels, origin=origin, distance=dot(origin, panels.normal))
    turn = rotation_from_vector((rotation_rad[:, None] @ frame.axes)[:, 0])[frame.unit]
    pivot = frame.pivot[frame.unit]
    vectors = torch.stack([panels.fast, panels.slow, panels.normal, panels.origin - pivot], -1)
    fast, slow, normal, lever = (turn @ vectors).unbind(-1)
    origin = lever + pivot + shift
    return replace(panels, fast=fast, slow=slow, normal=normal, origin=origin, distance=dot(origin, normal))


@dataclass(frozen=True)
class PanelSlopes:
    """Derivatives of n panels by k numbers: of vectors (n, 3, k), of the rest (n, k)."""

    fast: Tensor
    slow: Tensor
    normal: Tensor
    origin: Tensor
    distance: Tensor
    point_spread: Tensor

    def by(self, map: Tensor) -> "PanelSlopes":
        """The same by other numbers, of which these are products with `map` (n, k, m)."""
        fast, slow, normal, origin = (v @ map for v in (self.fast, self.slow, self.normal, self.origin))
        distance, point_spread = ((v[:, None] @ map)[:, 0] for v in (self.distance, self.point_spread))
        return PanelSlopes(fast, slow, normal, origin, distance, point_spread)


def motion_slopes(panels: Panels, frame: DetectorFrame, shift_mm: Tensor, rotation_rad: Tensor | None) -> PanelSlopes:
    """Derivatives of `panels`, which have made these motions, by the six motions of the unit that each is part of."""
    axes = frame.axes.transpose(1, 2)
    about = axes if rotation_rad is None else left_jacobian((rotation_rad[:, None] @ frame.axes)[:, 0]) @ axes
    shift = (shift_mm[:, None] @ frame.axes)[:, 0]
    lever = panels.origin - (frame.pivot + shift)[frame.unit]
    # fast, slow, normal, origin (n, 4, 3), each turned about three axes
    vectors = torch.stack([panels.fast, panels.slow, panels.normal, lever], 1)
    turned = torch.linalg.cross(about[frame.unit][:, None], vectors[..., None], dim=2)
    shifted = torch.zeros_like(turned)
    shifted[:, 3] = axes[frame.unit]
    fast, slow, normal, origin = torch.cat([shifted, turned], 3).unbind(1)
    distance = (origin * panels.normal[..., None] + normal * panels.origin[..., None]).sum(1)
    return PanelSlopes(fast, slow, normal, origin, distance, torch.zeros_like(distance))


def motions_between(frame: DetectorFrame, before: Panels, after: Panels) -> Floats:
    """The six motions (u, 6) of each unit that take its panels from one place to another; exact where they moved as one
    body."""
    found = np.empty((len(frame), 6))
    for number in range(len(frame)):
        panel = int(torch.nonzero(frame.unit == number)[0, 0])
        axes, pivot = frame.axes[number], frame.pivot[number]
        old, new = (torch.stack([p.fast[panel], p.slow[panel], p.normal[panel]], 1) for p in (before, after))
        turn = new @ old.T
        shift = after.origin[panel] - pivot - turn @ (before.origin[panel] - pivot)
        found[number, :3], found[number, 3:] = (axes @ shift).numpy(), (axes @ vector_from_rotation(turn)).numpy()
    return found


def second_moments(panels: Panels, detector: Sequence[DetectorConfig], frame: DetectorFrame) -> tuple[Floats, Floats]:
    """The sensors' area (u,) of each unit, mm², and their second moments (u, 3, 3) about its pivot, mm² each mm²."""
    areas, moments = np.zeros(len(frame)), np.zeros((len(frame), 3, 3))
    fast, slow = panels.fast.numpy(), panels.slow.numpy()
    offset = centres_of(panels, detector) - frame.pivot.numpy()[frame.unit.numpy()]
    for i, number in enumerate(frame.unit.tolist()):
        high, wide = (n * float(panels.pixel_size[i]) for n in detector[i].shape)
        own = wide**2 / 12 * np.outer(fast[i], fast[i]) + high**2 / 12 * np.outer(slow[i], slow[i])
        areas[number] += high * wide
        moments[number] += high * wide * (np.outer(offset[i], offset[i]) + own)
    return areas, moments / areas[:, None, None]
