"""From the beam centres, axes and angles of other programs to a panel and a beam in the laboratory frame.

The laboratory of a convention keeps that convention's own axes (docs/conventions.md): nothing here turns one into
another. b is the direction of travel of the beam, f and s the fast and slow axes, o the detector's normal, t the axis
of 2-theta, p the E-vector of the polarisation, u the spindle. Lengths are in mm, angles in degrees, right-handed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig, DetectorConfig, Number, Vector
from nanobrag_torch.lattice import reciprocal_matrix
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.tensors import as_tensor, dot, unit
from nanobrag_torch.units import RADIANS_PER_DEGREE


@dataclass(frozen=True)
class Axes:
    """The directions of a convention. All but `twotheta` are scaled to length 1 when they are used."""

    beam: Vector
    fast: Vector
    slow: Vector
    normal: Vector
    twotheta: Vector
    polarization: Vector
    spindle: Vector


_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_MINUS_X, _MINUS_Y, _MINUS_Z = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)

#: Axes of each convention; those of CUSTOM are where a user's own begin.
AXES = {
    "MOSFLM": Axes(_X, _Z, _MINUS_Y, _X, _MINUS_Z, _Z, _Z),
    "DENZO": Axes(_X, _Z, _MINUS_Y, _X, _MINUS_Z, _Z, _Z),
    "ADXV": Axes(_Z, _X, _MINUS_Y, _Z, _MINUS_X, _X, _X),
    "XDS": Axes(_Z, _X, _Y, _Z, _X, _X, _X),
    "DIALS": Axes(_Z, _X, _Y, _Z, _Y, _Y, _Y),
    "CUSTOM": Axes(_X, _Z, _MINUS_Y, _X, _Y, _Z, _Z),
}


@dataclass(frozen=True)
class Mounting:
    """A flat detector as a convention describes it; None takes the convention's default.

    `distance_mm` runs along the beam, `close_distance_mm` along the normal; one of them is needed. `beam_centre_mm`
    is (Xbeam, Ybeam), `close_mm` (Xclose, Yclose), `origin_px` (ORGX, ORGY): each convention reads only its own and
    leaves the others aside. Rotations about the laboratory's x, y, z come first, the 2-theta swing after them.
    `pivot`, "beam" or "sample", is what the detector turns about, in the convention CUSTOM; the named ones have theirs.
    """

    convention: str
    pixel_size_mm: Number
    shape: tuple[int, int]
    distance_mm: Number | None = None
    close_distance_mm: Number | None = None
    beam_centre_mm: tuple[Number | None, Number | None] = (None, None)
    close_mm: tuple[Number | None, Number | None] = (None, None)
    origin_px: tuple[Number | None, Number | None] = (None, None)
    rotation_deg: Vector = (0.0, 0.0, 0.0)
    twotheta_deg: Number = 0.0
    pivot: str = "beam"
    axes: Axes | None = None

    def __post_init__(self) -> None:
        if self.convention not in AXES:
            raise ValueError(f"convention is {self.convention!r}: expected one of {', '.join(AXES)}")
        if self.pivot not in ("beam", "sample"):
            raise ValueError(f"pivot is {self.pivot!r}: expected beam or sample")
        if self.distance_mm is None and self.close_distance_mm is None:
            raise ValueError("the detector has no distance: give distance_mm, or close_distance_mm along its normal")


def rotation_xyz(angles_deg: Vector, like: Tensor) -> Tensor:
    """Rz Ry Rx (3, 3): turns about the laboratory's x, then y, then z."""
    angles = as_tensor(angles_deg, like) * RADIANS_PER_DEGREE
    rx, ry, rz = rotation_from_vector(torch.diag_embed(angles))
    return rz @ ry @ rx


def mounted_detector(mounting: Mounting, like: Tensor) -> DetectorConfig:
    """The panel, in the convention's laboratory frame, on the graph of the mounting's numbers."""
    axes = mounting.axes or AXES[mounting.convention]
    beam, fast, slow, normal = (unit(as_tensor(v, like)) for v in (axes.beam, axes.fast, axes.slow, axes.normal))
    turn = rotation_xyz(mounting.rotation_deg, like)
    swing = rotation_from_vector(
        as_tensor(axes.twotheta, like) * as_tensor(mounting.twotheta_deg, like) * RADIANS_PER_DEGREE
    )
    # The 2-theta swing does not enter the ratio of the two distances.
    ratio = dot(beam, turn @ normal)
    if mounting.close_distance_mm is not None:
        close = as_tensor(mounting.close_distance_mm, like)
    else:
        close = torch.abs(ratio * as_tensor(mounting.distance_mm, like))
    full = swing @ turn
    to_beam, to_close = _centres(mounting, like)
    if _pivot(mounting) == "sample":
        origin = full @ (-to_close[0] * fast - to_close[1] * slow + close * normal)
        fast, slow = full @ fast, full @ slow
    else:
        fast, slow = full @ fast, full @ slow
        origin = -to_beam[0] * fast - to_beam[1] * slow + close / ratio * beam
    return DetectorConfig(
        fast_axis=fast,
        slow_axis=slow,
        distance_mm=dot(origin, torch.linalg.cross(fast, slow)),
        origin_fast_mm=dot(origin, fast),
        origin_slow_mm=dot(origin, slow),
        pixel_size_mm=mounting.pixel_size_mm,
        shape=mounting.shape,
    )


def beam_along(axes: Axes, wavelength_A: Number, kahn_factor: Number | None, like: Tensor) -> BeamConfig:
    """The beam of a convention: its direction and its E-vector; `kahn_factor` None switches polarisation off.

    Kahn's factor is -1 … 1, 1 for a beam that is wholly polarised along the E-vector: the fraction is (1 + K)/2.
    """
    direction = unit(as_tensor(axes.beam, like))
    normal = unit(torch.linalg.cross(direction, as_tensor(axes.polarization, like)))
    return BeamConfig(
        wavelength_A=wavelength_A,
        direction=direction,
        polarization_normal=normal,
        polarization_fraction=None if kahn_factor is None else (1 + kahn_factor) / 2,
    )


def default_orientation(cell: Tensor) -> Tensor:
    """U (3, 3) of nanoBragg's default setting, a* along x and b* in the xy plane, for A = U B(cell); `cell` is (6,)."""
    B = reciprocal_matrix(cell)
    upright = torch.linalg.cholesky(B.T @ B).T
    return upright @ torch.linalg.inv(B)


def cell_and_orientation(A: Tensor) -> tuple[Tensor, Tensor]:
    """The cell (6,), Å and degrees, and U (3, 3) with A = U B(cell), of a reciprocal basis A (3, 3) in 1/Å.

    Raises ValueError for a basis that is left-handed or flat, which no rotation brings into B's frame.
    """
    if not torch.linalg.det(A) > 0:
        raise ValueError(
            "the reciprocal basis a*, b*, c* is left-handed or flat: check the order of the matrix's columns"
        )
    direct = torch.linalg.inv(A)
    lengths = torch.linalg.vector_norm(direct, dim=1)
    cosines = direct @ direct.T / (lengths[:, None] * lengths)
    angles = torch.arccos(torch.stack([cosines[1, 2], cosines[0, 2], cosines[0, 1]])) / RADIANS_PER_DEGREE
    cell = torch.cat([lengths, angles])
    return cell, A @ torch.linalg.inv(reciprocal_matrix(cell))


def fluence_per_m2(flux_per_s: Number, exposure_s: Number, beam_size_mm: Number) -> Number:
    """Photons/m² of a square beam."""
    return flux_per_s * exposure_s / (beam_size_mm * 1e-3) ** 2


def automatic_cells(cell: Tensor, sample_mm: tuple[float, float, float], beam_size_mm: float = math.inf) -> Tensor:
    """N (3,) of a crystal of `sample_mm`: ceil(size/cell) along each axis, what lies beside the beam left out."""
    x, y, z = sample_mm
    size_A = 1e7 * torch.tensor([x, min(y, beam_size_mm), min(z, beam_size_mm)], dtype=cell.dtype)
    return torch.ceil(size_A / cell[:3]).clamp(min=1)


def _pivot(mounting: Mounting) -> str:
    named = {"MOSFLM": "beam", "DENZO": "beam", "ADXV": "beam", "XDS": "sample", "DIALS": "sample"}
    return named.get(mounting.convention, mounting.pivot)


def _centres(mounting: Mounting, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Where the beam, and the normal from the sample, meet the detector: along fast and slow, from its outer corner."""
    px = as_tensor(mounting.pixel_size_mm, like)
    slow_mm, fast_mm = px * mounting.shape[0], px * mounting.shape[1]

    def first(*candidates: Number | Tensor | None) -> Tensor:
        return as_tensor(next(value for value in candidates if value is not None), like)

    from_origin = [None if org is None else (as_tensor(org, like) - 0.5) * px for org in mounting.origin_px]
    middle = [first(from_origin[0], fast_mm / 2), first(from_origin[1], slow_mm / 2)]
    x, y = mounting.beam_centre_mm
    match mounting.convention:
        case "MOSFLM":
            return [first(y, (fast_mm + px) / 2) + px / 2, first(x, (slow_mm + px) / 2) + px / 2], middle
        case "DENZO":
            return [first(y, (fast_mm + px) / 2), first(x, (slow_mm + px) / 2)], middle
        case "ADXV":
            return [first(x, (fast_mm + px) / 2), slow_mm - first(y, (slow_mm - px) / 2)], middle
        case "CUSTOM":
            centre = [first(x, mounting.close_mm[0], middle[0]), first(y, mounting.close_mm[1], middle[1])]
            return centre, centre
    return middle, middle
