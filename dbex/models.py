"""dxtbx's crystal, panel and beam as the records of nanobrag_torch, and back: the only module that knows both.

Everything stays in dxtbx's laboratory frame; docs/physics.md, section 1, has the map.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from cctbx.eltbx import attenuation_coefficient
from numpy.typing import NDArray
from torch import Tensor

from dbex.cell_symmetry import CELL_NAMES, free_cell_parameters
from dbex.errors import BadInput
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig
from nanobrag_torch.lattice import cell_tensor, cell_volume, reciprocal_basis
from nanobrag_torch.tensors import as_tensor

__all__ = [
    "carries_widths",
    "create_beam_config",
    "create_crystal_config",
    "create_detector_config",
    "domain_size_A",
    "free_cell_parameters",
    "panel_groups",
    "to_dxtbx_beam",
    "to_dxtbx_crystal",
    "to_dxtbx_detector",
    "to_dxtbx_panel",
]

#: Where neither the crystal nor the caller says: a start for a protein crystal, not a measurement.
DEFAULT_DOMAIN_SIZE_A = 800.0
DEFAULT_MOSAICITY_DEG = 0.05

#: Relative difference of a pixel's edges beyond which it is no square.
SQUARE_PIXEL_TOLERANCE = 1e-6

#: Full width at half maximum of a Gaussian over its rms: 2 √(2 ln 2).
FULL_WIDTH_OF_SIGMA = 2 * math.sqrt(2 * math.log(2))

_LIKE = torch.zeros((), dtype=torch.float64)


def create_crystal_config(
    crystal: Any,
    experiment: Any = None,
    *,
    domain_size_A: float = DEFAULT_DOMAIN_SIZE_A,
    mosaicity_deg: float = DEFAULT_MOSAICITY_DEG,
) -> CrystalConfig:
    """The cell (Å, degrees) and U of a dxtbx crystal; A of the record equals `crystal.get_A()`.

    Block size and mosaicity are those that the crystal, or the experiment's crystal, carries: domain size and half
    mosaic angle of Sauter et al. (2014), Acta D70, 3299, or the mosaicity of Kabsch (2010); the keywords stand in for
    what neither carries. The half angle of Sauter may be next to zero.
    """
    size, mosaicity = domain_size_A, mosaicity_deg
    carriers: tuple[Any, Any] = (getattr(experiment, "crystal", None), crystal)
    for carrier in carriers:
        if carries_widths(carrier):
            size, mosaicity = carrier.get_domain_size_ang(), max(carrier.get_half_mosaicity_deg(), 0.0)
        elif hasattr(carrier, "get_mosaicity") and carrier.get_mosaicity() > 0:
            mosaicity = carrier.get_mosaicity()
    cell = crystal.get_unit_cell().parameters()
    U = np.asarray(crystal.get_U()).reshape(3, 3)
    if not (np.isfinite(cell).all() and np.isfinite(U).all() and math.isfinite(size) and math.isfinite(mosaicity)):
        raise BadInput("the crystal model holds NaN: expected a finite cell, U, domain size and mosaicity; index again")
    return CrystalConfig(
        **dict(zip(CELL_NAMES, cell, strict=True)),
        U=tuple(map(tuple, U.tolist())),
        N_cells=(size / cell[0], size / cell[1], size / cell[2]),
        domain_size_A=size,
        shape="gauss_isotropic",
        mosaicity_deg=mosaicity,
    )


def carries_widths(crystal: Any) -> bool:
    """Whether a dxtbx crystal has a domain size and a mosaicity of its own."""
    # A size of NaN counts as carried, so that it is refused and not replaced.
    return hasattr(crystal, "get_domain_size_ang") and not crystal.get_domain_size_ang() <= 0


def create_detector_config(
    panel: Any,
    beam: Any,
    trusted_mask: NDArray[np.bool_] | None = None,
    roi_bbox: tuple[int, int, int, int] | None = None,
    oversample: int = -1,
) -> DetectorConfig:
    """A dxtbx panel, its origin resolved along its own axes: origin = x fast + y slow + D (fast x slow), mm.

    D keeps the sign of `get_directed_distance`. With `roi_bbox` (x0, x1, y0, y1) the record is that part of the panel
    alone. `trusted_mask` is only checked to have the panel's shape (slow, fast). Raises BadInput for pixels that are
    not square, a distance of zero, NaN, or a mask of another shape.
    """
    edge, other = panel.get_pixel_size()
    fast_count, slow_count = panel.get_image_size()
    fast, slow, origin = (np.asarray(v) for v in (panel.get_fast_axis(), panel.get_slow_axis(), panel.get_origin()))
    _check_panel(panel, edge, other, np.concatenate([fast, slow, origin]))
    if trusted_mask is not None and tuple(np.shape(trusted_mask)) != (slow_count, fast_count):
        raise BadInput(
            f"mask has shape {tuple(np.shape(trusted_mask))} but the panel is {(slow_count, fast_count)}: "
            "give a mask of this detector, (slow, fast)"
        )
    x0, x1, y0, y1 = (0, fast_count, 0, slow_count) if roi_bbox is None else (int(v) for v in roi_bbox)
    thickness, mu = _sensor(panel, beam)
    return DetectorConfig(
        fast_axis=tuple(fast.tolist()),
        slow_axis=tuple(slow.tolist()),
        distance_mm=float(origin @ np.cross(fast, slow)),
        origin_fast_mm=float(origin @ fast) + x0 * edge,
        origin_slow_mm=float(origin @ slow) + y0 * edge,
        pixel_size_mm=edge,
        shape=(y1 - y0, x1 - x0),
        sensor_thickness_mm=thickness,
        sensor_mu_per_mm=mu,
        parallax=corrects_parallax(panel),
        oversample=oversample,
    )


def corrects_parallax(panel: Any) -> bool:
    """Whether the panel's map from mm to pixels is one that corrects parallax."""
    return type(panel.get_px_mm_strategy()).__name__ == "ParallaxCorrectedPxMmStrategy"


def _check_panel(panel: Any, edge: float, other: float, numbers: NDArray[np.float64]) -> None:
    name = panel.get_name()
    if not (np.isfinite(numbers).all() and math.isfinite(edge) and math.isfinite(other)):
        raise BadInput(f"the geometry of panel {name} holds NaN: expected finite numbers; repair the experiment file")
    if abs(edge - other) > SQUARE_PIXEL_TOLERANCE * abs(edge) or edge <= 0:
        raise BadInput(
            f"pixels of panel {name} are {edge:g} x {other:g} mm: expected square ones; rebin the image or the model"
        )
    if panel.get_directed_distance() == 0:
        raise BadInput(f"the distance of panel {name} is 0 mm: expected another number; correct the detector model")


def _sensor(panel: Any, beam: Any) -> tuple[float, float]:
    """Thickness (mm) and absorption (1/mm); (0, 0), which absorbs all at the surface, where neither is recorded."""
    thickness, mu = float(panel.get_thickness()), float(panel.get_mu())
    if thickness > 0 and mu <= 0 and panel.get_material():
        table = attenuation_coefficient.get_table(panel.get_material())
        mu = float(table.mu_at_angstrom(beam.get_wavelength())) / 10.0
    return (thickness, mu) if thickness > 0 and mu > 0 else (0.0, 0.0)


def create_beam_config(beam: Any) -> BeamConfig:
    """Wavelength (Å), direction of travel (source to crystal) and polarisation of a dxtbx beam."""
    wavelength = beam.get_wavelength()
    vectors = (*beam.get_unit_s0(), *beam.get_polarization_normal())
    if not all(map(math.isfinite, (wavelength, beam.get_polarization_fraction(), *vectors))):
        raise BadInput("the beam model holds NaN: expected finite numbers; repair the experiment file")
    if wavelength <= 0:
        raise BadInput(f"the wavelength is {wavelength:g} Å: expected a positive number; correct the beam model")
    return BeamConfig(
        wavelength_A=wavelength,
        direction=vectors[:3],
        polarization_normal=vectors[3:],
        polarization_fraction=beam.get_polarization_fraction(),
    )


def to_dxtbx_crystal(config: CrystalConfig, template: Any) -> Any:
    """A copy of the dxtbx crystal `template` with the record's A, and domain size and half mosaic angle if it has
    them; esds of the template's cell are dropped because they belong to another cell."""
    crystal = copy.deepcopy(template)
    crystal.set_A(reciprocal_basis(config, _LIKE).detach().flatten().tolist())
    crystal.reset_unit_cell_errors()
    if hasattr(crystal, "set_domain_size_ang"):
        crystal.set_domain_size_ang(domain_size_A(config))
        crystal.set_half_mosaicity_deg(float(config.mosaicity_deg))
    return crystal


def domain_size_A(config: CrystalConfig) -> float:
    """The block's size: as given, or the edge of the cube that has the volume of N_cells cells."""
    if config.domain_size_A is not None:
        return float(config.domain_size_A)
    volume = as_tensor(config.N_cells, _LIKE).prod() * cell_volume(cell_tensor(config, _LIKE))
    return float(volume.abs() ** (1 / 3))


def to_dxtbx_detector(configs: tuple[DetectorConfig, ...], detector: Any) -> Any:
    """A copy of the dxtbx detector with every panel moved to where its record has it."""
    moved = copy.deepcopy(detector)
    for config, panel in zip(configs, moved, strict=True):
        to_dxtbx_panel(config, panel)
    return moved


def to_dxtbx_panel(config: DetectorConfig, panel: Any) -> Any:
    """Move `panel` itself to where the record has it, and return it."""
    fast, slow = (_numbers(v) for v in (config.fast_axis, config.slow_axis))
    origin = (
        float(config.origin_fast_mm) * fast
        + float(config.origin_slow_mm) * slow
        + float(config.distance_mm) * np.cross(fast, slow)
    )
    panel.set_frame(fast.tolist(), slow.tolist(), origin.tolist())
    return panel


def to_dxtbx_beam(config: BeamConfig, beam: Any) -> Any:
    """A copy of the dxtbx beam with the record's wavelength, direction and polarisation, and its divergence where it
    has one: dxtbx knows one for both ways, here the rms of the two, and that as a full width at half maximum."""
    moved = copy.deepcopy(beam)
    direction = _numbers(config.direction)
    moved.set_wavelength(float(config.wavelength_A))
    moved.set_unit_s0((direction / np.linalg.norm(direction)).tolist())
    moved.set_polarization_normal(_numbers(config.polarization_normal).tolist())
    if config.polarization_fraction is not None:
        moved.set_polarization_fraction(float(config.polarization_fraction))
    sigma_mrad = math.hypot(float(config.divergence_h_mrad), float(config.divergence_v_mrad)) / math.sqrt(2)
    if sigma_mrad > 0:
        sigma_deg = math.degrees(1e-3 * sigma_mrad)
        moved.set_sigma_divergence(sigma_deg)
        moved.set_divergence(FULL_WIDTH_OF_SIGMA * sigma_deg)
    return moved


def _numbers(value: tuple[float, ...] | Tensor) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = as_tensor(value, _LIKE).detach().cpu().numpy()
    return numbers


def panel_groups(detector: Any, level: int) -> list[tuple[str, tuple[int, ...]]]:
    """The nodes of a dxtbx detector's hierarchy at a level below its root by name, each with its panels; a panel that
    ends its branch higher up is one by itself."""

    def panels_below(node: Any) -> list[int]:
        return [node.index()] if node.is_panel() else [index for child in node for index in panels_below(child)]

    def nodes(node: Any, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        if node.is_panel() or depth == level:
            yield node.get_name(), tuple(panels_below(node))
        else:
            for child in node:
                yield from nodes(child, depth + 1)

    return [(name, panels) for name, panels in nodes(detector.hierarchy(), 0) if panels]
