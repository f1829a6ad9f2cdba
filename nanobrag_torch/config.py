"""The physical inputs of a simulation as frozen records, in the units that crystallographers type.

Every number may be a float or a tensor, every vector a tuple or a tensor: a field that holds a tensor keeps its
place in the autograd graph. Records hold inputs only; whatever can be derived is a function elsewhere.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from nanobrag_torch.units import UNIT_FLUENCE_PER_M2

Number = float | Tensor
Vector = tuple[float, float, float] | Tensor
Matrix = tuple[tuple[float, float, float], ...] | Tensor

#: The lattice factors of docs/physics.md, section 2. "gauss" is anisotropic in h, "gauss_isotropic" and
#: "tophat_isotropic" are round in the laboratory with the size that the C program derives from the product of N.
SHAPES = ("square", "round", "gauss", "tophat", "gauss_isotropic", "tophat_isotropic")


@dataclass(frozen=True)
class CrystalConfig:
    """A crystal of mosaic blocks: cell, orientation, block size and what broadens its nodes.

    `U` is the orientation, a rotation; `misset_deg` is a rotation vector in the laboratory frame that acts from the
    left: A = R(misset) U B(cell). `mosaicity_deg` is the rms rotation of a block about each axis. Where
    `domain_size_A` is given the block is a Gaussian of that size in every direction and `N_cells` only scales the
    intensity. `size_covariance` (1/Å²) and `mosaic_covariance_deg2`, 3 x 3 in the crystal's Cartesian frame (that of
    B), replace the isotropic widths of the closed form where they are given.
    """

    cell_a: Number
    cell_b: Number
    cell_c: Number
    cell_alpha: Number = 90.0
    cell_beta: Number = 90.0
    cell_gamma: Number = 90.0
    U: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    misset_deg: Vector = (0.0, 0.0, 0.0)
    N_cells: Vector = (10.0, 10.0, 10.0)
    domain_size_A: Number | None = None
    size_covariance: Matrix | None = None
    shape: str = "gauss"
    fudge: Number = 1.0
    mosaicity_deg: Number = 0.0
    mosaic_covariance_deg2: Matrix | None = None
    mosaic_domains: int = 1
    mosaic_seed: int = -12345678
    mosaic_rotations: Tensor | None = None
    strain: Number = 0.0
    b_factor_A2: Number = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape is {self.shape!r}: expected one of {', '.join(SHAPES)}")


@dataclass(frozen=True)
class DetectorConfig:
    """One flat panel: origin = origin_fast_mm * fast + origin_slow_mm * slow + distance_mm * (fast x slow).

    `distance_mm` is negative where fast x slow points back to the crystal. `shape` is (slow, fast) in pixels. A
    sensor of thickness 0 absorbs everything at its surface. `oversample` is the number of sub-pixels along each edge,
    -1 leaves the choice to the program; `depth_layers` the number of layers of the sensor. A `curved` panel is a sphere
    of radius |distance_mm| about the crystal; its coordinates along fast and slow are lengths of arc from where its
    normal meets it. Only the sampled sum knows it, without thickness.
    """

    fast_axis: Vector
    slow_axis: Vector
    distance_mm: Number
    origin_fast_mm: Number
    origin_slow_mm: Number
    pixel_size_mm: Number
    shape: tuple[int, int]
    sensor_thickness_mm: Number = 0.0
    sensor_mu_per_mm: Number = 0.0
    parallax: bool = True
    point_spread_mm: Number = 0.0
    oversample: int = -1
    depth_layers: int = 2
    point_pixel: bool = False
    curved: bool = False


@dataclass(frozen=True)
class BeamConfig:
    """The beam: `direction` is that of travel, from the source to the crystal.

    `bandwidth` is the rms of the wavelength over its mean; `divergence_h_mrad` and `divergence_v_mrad` are rms angles
    along n x s0 and n, n the polarisation normal. `polarization_fraction` is 0.5 for an unpolarised beam, 1 for one
    polarised along n x s0; None switches the factor off. `fluence` is in photons/m². Explicit samples, where they
    are given, take the place of wavelength and direction in the sampled sum: unit directions of travel (n, 3),
    wavelengths (n,) in Å and weights (n,).
    """

    wavelength_A: Number
    direction: Vector = (0.0, 0.0, -1.0)
    polarization_normal: Vector = (0.0, 1.0, 0.0)
    polarization_fraction: Number | None = 0.5
    fluence: Number = UNIT_FLUENCE_PER_M2
    bandwidth: Number = 0.0
    divergence_h_mrad: Number = 0.0
    divergence_v_mrad: Number = 0.0
    source_directions: Tensor | None = None
    source_wavelengths_A: Tensor | None = None
    source_weights: Tensor | None = None


@dataclass(frozen=True)
class ScanConfig:
    """A rotation during the exposure: right-handed about `axis`, from `start_deg` over `width_deg`.

    The sampled sum takes the left edges of `steps` equal steps, as nanoBragg does; the closed form the whole range.
    """

    axis: Vector = (0.0, 1.0, 0.0)
    start_deg: Number = 0.0
    width_deg: Number = 0.0
    steps: int = 1


Config = TypeVar("Config", CrystalConfig, DetectorConfig, BeamConfig, ScanConfig)


def override(config: Config, values: Mapping[str, Any] | None) -> Config:
    """A copy of `config` with some fields replaced; tensors enter as they are, on their graph.

    Raises KeyError for a name that is no field, and names the nearest one.
    """
    if not values:
        return config
    names = [field.name for field in dataclasses.fields(config)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise KeyError(f"{type(config).__name__} has no field {name!r}: did you mean {near!r}?")
    return dataclasses.replace(config, **values)
