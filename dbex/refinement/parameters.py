"""What is refined: the free numbers of one still as coordinates x of a solver, and the models that they stand for.

Lengths of the cell and widths are refined as logarithms, angles in radians, lengths on the bench in mm
(docs/physics.md, section 5). At x = 0 the models are those that were read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.detector_motion import DetectorFrame, PanelSlopes, detector_frame, motion_slopes, moved
from dbex.refinement.square_blocks import OUTLINE, SQUARE, Component, Peak, square_components
from dbex.refinement.width_tensors import (
    DIAGONAL,
    PARTS,
    TENSORS,
    isotropic_size,
    log_cholesky,
    mosaic_tensor,
    tensor_value,
)
from dbex.refinement.widths import WIDTHS, begun
from dbex.still import Floats
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, Number, Vector, override
from nanobrag_torch.lattice import without_misset
from nanobrag_torch.panel import Panels, stack_panels
from nanobrag_torch.rotation import rotation_from_vector, vector_from_rotation
from nanobrag_torch.tensors import as_tensor, unit
from nanobrag_torch.units import RADIANS_PER_DEGREE

CELL = ("cell_a", "cell_b", "cell_c", "cell_alpha", "cell_beta", "cell_gamma")


@dataclass(frozen=True)
class Parameter:
    """One free number: its name, the group it belongs to, the unit it is reported in, the largest step of its
    coordinate in one iteration and the width of the weak prior that keeps it in a sensible range."""

    name: str
    group: str
    unit: str
    max_step: float
    prior: float


@dataclass(frozen=True)
class Models:
    """The models at one x; `ln_scale` () is ln of the integrated intensity over |F|² (docs/physics.md, section 3).

    `crystal` has the turn `misset_deg` (3,) from the orientation that was read in its U. `components` are its parts
    where it is no single Gaussian; the first is `crystal`. `outline` are fewer that have the same places and extents,
    for predictions.
    """

    crystal: CrystalConfig
    misset_deg: Vector
    panels: Panels
    beam: BeamConfig
    ln_scale: Tensor
    components: tuple[Component, ...]
    outline: tuple[Component, ...]


@dataclass(frozen=True)
class Parametrisation:
    """The map from x (n,) to models. `cell_map` (6, k) takes the independent cell parameters to the six;
    `second_width_deg` is the mosaicity from which a second component starts, `square_size_A` the edge from which
    square blocks do, and `square_peaks` what their nodes are made of."""

    parameters: tuple[Parameter, ...]
    crystal: CrystalConfig
    detector: tuple[DetectorConfig, ...]
    beam: BeamConfig
    panels: Panels
    frame: DetectorFrame
    cell_map: Floats
    ln_scale: float
    second_width_deg: float = 0.05
    square_size_A: float = 500.0
    square_peaks: tuple[Peak, ...] = SQUARE

    def __len__(self) -> int:
        return len(self.parameters)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the free numbers, in the order of x."""
        return tuple(p.name for p in self.parameters)

    def place(self, name: str) -> int:
        """Where a parameter stands in x; raises ValueError when it is not free."""
        return self.names.index(name)

    def free_groups(self, kind: str) -> tuple[str, ...]:
        """The groups of "crystal", "detector" or "beam" that are free, in order."""
        own = (
            ("cell", *_CRYSTAL_GROUPS)
            if kind == "crystal"
            else {"detector": _DETECTOR_GROUPS, "beam": _BEAM_GROUPS}[kind]
        )
        has_cell = any(p.group == "cell" for p in self.parameters)
        return tuple(group for group in own if (has_cell if group == "cell" else _GROUPS[group][0][0] in self.names))

    def geometric(self) -> list[int]:
        """Places of the parameters that move rays, not only nodes."""
        return [i for i, p in enumerate(self.parameters) if p.group in ("detector", "beam") and p.name not in WIDTHS]

    def models(self, x: Tensor, panels: Panels | None = None) -> Models:
        """The models at x, differentiable; `panels` are those at x, where they are there already."""
        at = dict(zip(self.names, x.unbind(), strict=True))
        zero = x.new_zeros(())
        panels = self._panels(x, at) if panels is None else panels
        turned = override(self.crystal, self._crystal_values(at, x))
        crystal, misset = without_misset(turned, zero), turned.misset_deg
        components = self._components(crystal, at, zero)
        outline = components
        if "square_a" in at and self.square_peaks is not OUTLINE:
            outline = square_components(crystal, self._edges(at), OUTLINE)
        ln_scale = self.ln_scale + at.get("scale", zero)
        return Models(crystal, misset, panels, self._beam(at, x), ln_scale, components, outline)

    @cached_property
    def _motions(self) -> Tensor | None:
        """What takes x to the six motions of each unit of the detector (u, 6, n), None where nothing moves it."""
        chosen = [[[float(name == motion) for name in self.names] for motion in own] for own in self.frame.names]
        motions = torch.as_tensor(chosen, dtype=torch.float64)
        return motions if bool(motions.any()) else None

    @cached_property
    def _tilts(self) -> bool:
        """Whether a unit of the detector turns."""
        return self._motions is not None and bool(self._motions[:, 3:].any())

    def _motions_at(self, x: Tensor, motions: Tensor) -> tuple[Tensor, Tensor | None]:
        """Shifts and rotations (u, 3) of the detector's units, None where nothing turns one."""
        shift, rotation = (motions @ x).split(3, 1)
        return shift, rotation if self._tilts else None

    def _panels(self, x: Tensor, at: dict[str, Tensor]) -> Panels:
        """The panels at x, as they are where nothing moves them."""
        panels = self.panels
        if self._motions is not None:
            panels = moved(panels, self.frame, *self._motions_at(x, self._motions))
        if "point_spread" in at:
            panels = replace(panels, point_spread=panels.point_spread * torch.exp(at["point_spread"]))
        return panels

    def panel_slopes(self, x: Tensor, panels: Panels) -> PanelSlopes:
        """Derivatives of the panels, which are those at x, by x."""
        count, n = panels.distance.shape[0], len(self)
        if self._motions is None:
            zero = x.new_zeros(count, 3, n)
            slopes = PanelSlopes(zero, zero, zero, zero, zero[:, 0], zero[:, 0])
        else:
            by_motions = motion_slopes(panels, self.frame, *self._motions_at(x, self._motions))
            slopes = by_motions.by(self._motions[self.frame.unit])
        if "point_spread" not in self.names:
            return slopes
        of_width = torch.zeros_like(slopes.distance)
        of_width[:, self.place("point_spread")] = panels.point_spread
        return replace(slopes, point_spread=of_width)

    def _edges(self, at: dict[str, Tensor]) -> Tensor:
        """Lengths (3,), Å, of square blocks along a, b and c."""
        return torch.stack([self.square_size_A * torch.exp(at[f"square_{axis}"]) for axis in "abc"])

    @property
    def component_count(self) -> int:
        """How many components the crystal has."""
        return len(self.square_peaks) if "square_a" in self.names else 1 + ("second_share" in self.names)

    def _components(self, crystal: CrystalConfig, at: dict[str, Tensor], zero: Tensor) -> tuple[Component, ...]:
        if "square_a" in at:
            return square_components(crystal, self._edges(at), self.square_peaks)
        if "second_share" not in at:
            return (Component(crystal, zero),)
        turn = rotation_from_vector(torch.stack([at[f"second_{axis}"] for axis in "xyz"]))
        mosaic = self.second_width_deg**2 * log_cholesky([at[f"second_{part}"] for part in PARTS])
        second = override(crystal, {"U": turn @ as_tensor(crystal.U, zero), "mosaic_covariance_deg2": mosaic})
        share = at["second_share"]
        log_sigmoid = torch.nn.functional.logsigmoid
        return Component(crystal, log_sigmoid(-share)), Component(second, log_sigmoid(share))

    def mean_crystal(self, x: Tensor) -> CrystalConfig:
        """The crystal as one: its orientation and mosaicity are the mean and the covariance over all components."""
        return self._mean_crystal(x, self.models(x))

    def _mean_crystal(self, x: Tensor, models: Models) -> CrystalConfig:
        crystal = override(models.crystal, {"U": self._U, "misset_deg": models.misset_deg})
        if self.component_count != 2:
            return crystal
        first, second = models.components
        share = torch.exp(second.ln_weight)
        turn = torch.stack([x[self.place(f"second_{axis}")] for axis in "xyz"])
        misset = as_tensor(crystal.misset_deg, x) * RADIANS_PER_DEGREE
        mean = vector_from_rotation(rotation_from_vector(share * turn) @ rotation_from_vector(misset))
        apart = as_tensor(models.crystal.U, x).T @ turn / RADIANS_PER_DEGREE
        total = (
            (1 - share) * mosaic_tensor(first.crystal, x)
            + share * mosaic_tensor(second.crystal, x)
            + share * (1 - share) * torch.outer(apart, apart)
        )
        return override(crystal, {"misset_deg": mean / RADIANS_PER_DEGREE, "mosaic_covariance_deg2": total})

    def _run(self, names: Sequence[str]) -> slice:
        """Where parameters of one group, which stand together, are in x."""
        first = self.place(names[0])
        return slice(first, first + len(names))

    @cached_property
    def _free_cell(self) -> tuple[slice, list[str], Tensor, Tensor, Tensor]:
        """Where the cell's k free parameters are in x, and the names of the r that follow them; of these the values
        (r,) and the map (r, k) from changes of the free ones; and the values of those free ones that are lengths, which
        come first."""
        free = [name for name in CELL if name in self.names]
        rows = [i for i, name in enumerate(CELL) if self.cell_map[i].any()]
        base = torch.as_tensor([float(getattr(self.crystal, name)) for name in CELL], dtype=torch.float64)
        lengths = base[[CELL.index(name) for name in free if CELL.index(name) < 3]]
        names = [CELL[i] for i in rows]
        return self._run(free), names, base[rows], torch.as_tensor(self.cell_map[rows]), lengths

    def _cell_values(self, x: Tensor) -> dict[str, object]:
        """Those of the cell's parameters that follow the free ones."""
        free, names, base, map, lengths = self._free_cell
        moves, k = x[free], len(lengths)
        change = torch.cat([lengths * torch.expm1(moves[:k]), moves[k:] / RADIANS_PER_DEGREE])
        return dict(zip(names, (base + map @ change).unbind(), strict=True))

    @cached_property
    def _U(self) -> Tensor:
        """The orientation (3, 3) that was read, as a tensor."""
        return torch.as_tensor(self.crystal.U, dtype=torch.float64)

    def _crystal_values(self, at: dict[str, Tensor], x: Tensor) -> dict[str, object]:
        values: dict[str, object] = {"U": self._U, "misset_deg": (0.0, 0.0, 0.0)}
        if "misset_x" in at:
            values["misset_deg"] = x[self._run(names_of("orientation"))] / RADIANS_PER_DEGREE
        if any(name in at for name in CELL):
            values |= self._cell_values(x)
        if "domain_size" in at and self.crystal.domain_size_A is not None:
            values["domain_size_A"] = self.crystal.domain_size_A * torch.exp(at["domain_size"])
        if "square_a" in at:
            mean = torch.stack([at[f"square_{axis}"] for axis in "abc"]).mean()
            values["domain_size_A"] = self.square_size_A * torch.exp(mean)
        if "mosaicity" in at:
            values["mosaicity_deg"] = self.crystal.mosaicity_deg * torch.exp(at["mosaicity"])
        for name, (field, unit_of) in TENSORS.items():
            if f"{name}_xx" in at:
                start = float(unit_of(self.crystal)) ** 2
                values[field] = start * log_cholesky([at[f"{name}_{part}"] for part in PARTS])
        if "b_factor" in at:
            values["b_factor_A2"] = self.crystal.b_factor_A2 + at["b_factor"]
        if "cell_spread" in at:
            values["strain"] = self.crystal.strain * torch.exp(at["cell_spread"])
        return values

    def _beam(self, at: dict[str, Tensor], x: Tensor) -> BeamConfig:
        values: dict[str, object] = {}
        if "wavelength" in at:
            values["wavelength_A"] = self.beam.wavelength_A * torch.exp(at["wavelength"])
        if "direction_h" in at:
            s0 = unit(as_tensor(self.beam.direction, x))
            across = unit(torch.linalg.cross(as_tensor(self.beam.polarization_normal, x), s0))
            along = torch.linalg.cross(s0, across)
            values["direction"] = unit(s0 + at["direction_h"] * across + at["direction_v"] * along)
        for name, width in WIDTHS.items():
            if width.record == "beam" and name in at:
                values[width.field] = getattr(self.beam, width.field) * torch.exp(at[name])
        return override(self.beam, values)

    def detector_at(self, x: Tensor) -> tuple[DetectorConfig, ...]:
        """The panels' records at x, as plain numbers."""
        return panel_records(self.detector, self.models(x).panels)

    def value(self, name: str, x: Tensor) -> float:
        """A parameter in its reported unit at x: what a person would call its value."""
        return float(self.reported(x)[self.place(name)])

    def values(self, x: Tensor) -> dict[str, float]:
        """All parameters in their reported units."""
        return dict(zip(self.names, self.reported(x).tolist(), strict=True))

    def reported(self, x: Tensor) -> Tensor:
        """All parameters (n,) in their reported units, differentiable."""
        models = self.models(x)
        misset = as_tensor(self._mean_crystal(x, models).misset_deg, x)
        values = [self._reported(p, at, models, misset) for p, at in zip(self.parameters, x.unbind(), strict=True)]
        return torch.stack([as_tensor(value, x) for value in values])

    def _reported(self, parameter: Parameter, at: Tensor, models: Models, misset: Tensor) -> Number:
        """A parameter whose coordinate is `at` () in its reported unit; `misset` (3,), degrees, is that of all
        components."""
        name = parameter.name
        if name in CELL:
            return getattr(models.crystal, name)
        if name == "domain_size":
            return isotropic_size(models.crystal)
        if name in REPORTED:
            return REPORTED[name](models)
        if name.split("_")[0] in TENSORS:
            return tensor_value(name, models.crystal)
        if name.startswith("misset"):
            return misset["xyz".index(name[-1])]
        if name.startswith("square_"):
            return self.square_size_A * torch.exp(at)
        if name == "second_share":
            return torch.exp(models.components[1].ln_weight)
        if name.startswith("second_") and len(name) == len("second_xx"):
            return tensor_value(name.replace("second", "mosaic"), models.components[1].crystal)
        return at * (1 / RADIANS_PER_DEGREE if name.startswith("second") else UNITS[parameter.unit])


#: What is reported of parameters that are a number of the models.
REPORTED: dict[str, Callable[[Models], Number]] = {
    "mosaicity": lambda models: models.crystal.mosaicity_deg,
    "b_factor": lambda models: models.crystal.b_factor_A2,
    "wavelength": lambda models: models.beam.wavelength_A,
    "bandwidth": lambda models: models.beam.bandwidth,
    "divergence_h": lambda models: models.beam.divergence_h_mrad,
    "divergence_v": lambda models: models.beam.divergence_v_mrad,
    "cell_spread": lambda models: models.crystal.strain,
    "point_spread": lambda models: (models.panels.point_spread / models.panels.pixel_size).mean(),
    "scale": lambda models: torch.exp(models.ln_scale),
    "distance": lambda models: models.panels.distance.mean(),
}

#: Reported unit over the coordinate's: coordinates are radians and mm.
UNITS = {"mrad": 1e3, "mm": 1.0, "deg": 1 / RADIANS_PER_DEGREE}

#: The free numbers of each group, in the order of x: name, unit, largest step, prior width (coordinate).
_GROUPS: dict[str, tuple[tuple[str, str, float, float], ...]] = {
    "orientation": tuple((f"misset_{axis}", "deg", 0.01, 0.1) for axis in "xyz"),
    "scale": (("scale", "", 2.0, 10.0),),
    "b_factor": (("b_factor", "A^2", 10.0, 20.0),),
    "size": (("domain_size", "A", 0.7, 3.0),),
    "mosaicity": (("mosaicity", "deg", 0.7, 3.0),),
    "mosaic_tensor": tuple((f"mosaic_{part}", "deg" if part in DIAGONAL else "", 0.5, 1.0) for part in PARTS),
    "size_tensor": tuple((f"size_{part}", "A" if part in DIAGONAL else "", 0.5, 1.0) for part in PARTS),
    "square": tuple((f"square_{axis}", "A", 0.5, 3.0) for axis in "abc"),
    "component": (
        ("second_share", "", 1.0, 3.0),
        *((f"second_{axis}", "deg", 0.005, 0.02) for axis in "xyz"),
        *((f"second_{part}", "deg" if part in DIAGONAL else "", 0.5, 1.0) for part in PARTS),
    ),
    "distance": (("distance", "mm", 2.0, 10.0),),
    "shift": (("shift_fast", "mm", 1.0, 5.0), ("shift_slow", "mm", 1.0, 5.0)),
    "tilt": (("tilt_fast", "mrad", 0.01, 0.05), ("tilt_slow", "mrad", 0.01, 0.05)),
    "wavelength": (("wavelength", "A", 0.005, 0.02),),
    "direction": (("direction_h", "mrad", 0.002, 0.01), ("direction_v", "mrad", 0.002, 0.01)),
    "bandwidth": (("bandwidth", "", 0.7, 3.0),),
    "divergence": tuple((f"divergence_{axis}", "mrad", 0.7, 3.0) for axis in "hv"),
    "cell_spread": (("cell_spread", "", 0.7, 3.0),),
    "point_spread": (("point_spread", "px", 0.7, 3.0),),
}


def names_of(group: str) -> tuple[str, ...]:
    """The names of the free numbers of a group other than the cell."""
    return tuple(name for name, *_ in _GROUPS[group])


_CRYSTAL_GROUPS = (
    "orientation",
    "scale",
    "b_factor",
    "size",
    "mosaicity",
    "cell_spread",
    "size_tensor",
    "mosaic_tensor",
    "component",
    "square",
)
_DETECTOR_GROUPS = ("distance", "shift", "tilt", "point_spread")
_BEAM_GROUPS = ("wavelength", "direction", "bandwidth", "divergence")


def parametrisation(
    crystal: CrystalConfig,
    detector: Sequence[DetectorConfig],
    beam: BeamConfig,
    free_cell: tuple[Sequence[str], Floats],
    crystal_groups: Sequence[str],
    detector_groups: Sequence[str],
    beam_groups: Sequence[str],
    ln_scale: float = 0.0,
) -> Parametrisation:
    """The parametrisation with the named groups free; `free_cell` is the independent cell parameters of the space
    group and the map (6, k) from them to the six. Widths that are free and were nothing begin at their first value."""
    names, cell_map = free_cell
    parameters: list[Parameter] = []
    for group in crystal_groups:
        if group == "cell":
            parameters += [Parameter(name, "cell", "A" if CELL.index(name) < 3 else "deg", 0.02, 0.2) for name in names]
        else:
            parameters += _free(group, group)
    for outer, groups in (("detector", detector_groups), ("beam", beam_groups)):
        for group in groups:
            parameters += _free(group, outer)
    crystal, detector, beam = begun(crystal, detector, beam, [p.name for p in parameters])
    like = torch.zeros((), dtype=torch.float64)
    panels = stack_panels(detector, like)
    frame = detector_frame(panels, beam)
    return Parametrisation(
        tuple(parameters), crystal, tuple(detector), beam, panels, frame, np.asarray(cell_map, float), ln_scale
    )


def _free(group: str, reported: str) -> list[Parameter]:
    """The parameters of a group, under the name of the group that they are reported with."""
    return [Parameter(name, reported, unit, step, prior) for name, unit, step, prior in _GROUPS[group]]


def panel_records(detector: Sequence[DetectorConfig], panels: Panels) -> tuple[DetectorConfig, ...]:
    """The records of moved panels, as plain numbers."""
    return tuple(
        override(
            record,
            {
                "fast_axis": tuple(panels.fast[i].tolist()),
                "slow_axis": tuple(panels.slow[i].tolist()),
                "distance_mm": float(panels.distance[i]),
                "origin_fast_mm": float(panels.origin[i] @ panels.fast[i]),
                "origin_slow_mm": float(panels.origin[i] @ panels.slow[i]),
                "point_spread_mm": float(panels.point_spread[i]),
            },
        )
        for i, record in enumerate(detector)
    )
