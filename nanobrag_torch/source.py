"""The rays that the beam is made of: directions and wavelengths with weights, given or made from its spreads."""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.tensors import as_tensor, unit

MILLI = 1e-3


@dataclass(frozen=True)
class Sources:
    """n rays: unit `directions` of travel (n, 3), `wavelengths` (n,) in Å, `weights` (n,) of any sum."""

    directions: Tensor
    wavelengths: Tensor
    weights: Tensor


def beam_sources(beam: BeamConfig, like: Tensor) -> Sources:
    """The rays of a beam: its explicit samples where it has them, Gaussian samples where it has a width, or one."""
    if beam.source_directions is None and beam.source_wavelengths_A is None:
        beam = gaussian_beam(beam, like) if _has_width(beam) else beam
    directions = as_tensor(beam.direction if beam.source_directions is None else beam.source_directions, like)
    wavelengths = as_tensor(beam.wavelength_A if beam.source_wavelengths_A is None else beam.source_wavelengths_A, like)
    directions, wavelengths = torch.broadcast_tensors(directions.reshape(-1, 3), wavelengths.reshape(-1, 1))
    weights = torch.ones_like(wavelengths[:, 0])
    if beam.source_weights is not None:
        weights = as_tensor(beam.source_weights, like).expand_as(weights)
    return Sources(unit(directions), wavelengths[:, 0], weights)


def polarization_normals(beam: BeamConfig, sources: Sources) -> Tensor:
    """The polarisation normal (n, 3) of each ray: E stays as close to that of the mean beam as the ray allows."""
    s0 = unit(as_tensor(beam.direction, sources.weights))
    e = unit(torch.linalg.cross(as_tensor(beam.polarization_normal, s0), s0))
    return torch.linalg.cross(sources.directions, e.expand_as(sources.directions))


def transverse_axes(beam: BeamConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors across the beam along which its divergence is counted: horizontal n x s0, vertical s0 x (n x s0)."""
    s0 = unit(as_tensor(beam.direction, like))
    horizontal = unit(torch.linalg.cross(as_tensor(beam.polarization_normal, like), s0))
    return horizontal, torch.linalg.cross(s0, horizontal)


def gaussian_nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights (count,), float64, of a normal distribution; the weights sum to 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.as_tensor(nodes), torch.as_tensor(weights / math.sqrt(2 * math.pi))


def gaussian_beam(beam: BeamConfig, like: Tensor, bandwidth_nodes: int = 7, divergence_nodes: int = 5) -> BeamConfig:
    """A beam with explicit samples for its Gaussian bandwidth and divergences, differentiable in all of them.

    A width that is the plain number 0 takes one sample. The nodes integrate what varies smoothly over the beam's
    spread; where a spot is narrower than the distance between nodes they show as separate images of it, and more
    nodes, or the closed form, are needed.
    """

    def samples(width: float | Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        x, weights = gaussian_nodes(1 if _is_zero(width) else nodes)
        return as_tensor(width, like) * as_tensor(x, like), as_tensor(weights, like)

    strain, w_strain = samples(beam.bandwidth, bandwidth_nodes)
    h, w_h = samples(beam.divergence_h_mrad, divergence_nodes)
    v, w_v = samples(beam.divergence_v_mrad, divergence_nodes)
    horizontal, vertical = transverse_axes(beam, like)
    across = MILLI * (h[:, None, None] * horizontal + v[None, :, None] * vertical)
    directions = unit(unit(as_tensor(beam.direction, like)) + across).reshape(-1, 3)
    weights = (w_h[:, None] * w_v).reshape(-1)
    wavelengths = as_tensor(beam.wavelength_A, like) * (1 + strain)
    return _with_samples(beam, directions, weights, wavelengths, w_strain)


@dataclass(frozen=True)
class SampledRange:
    """A range that is sampled in steps, as nanoBragg reads its flags; units are the user's.

    With a number of steps both ends are sampled; with a step alone, ceil(range/step) points from the lower end; with
    neither, the two ends. A range of 0 is one point.
    """

    width: float = 0.0
    steps: int | None = None
    step: float | None = None

    def values(self) -> Tensor:
        """The sampled values (n,), float64, about 0."""
        if self.width <= 0:
            return torch.zeros(1, dtype=torch.float64)
        if self.steps is None and self.step is not None:
            count, step = math.ceil(self.width / self.step), self.step
        else:
            count = max(2, self.steps or 2)
            step = self.step or self.width / (count - 1)
        return -self.width / 2 + step * torch.arange(count, dtype=torch.float64)


def sampled_beam(
    beam: BeamConfig,
    horizontal_mrad: SampledRange,
    vertical_mrad: SampledRange,
    dispersion: SampledRange,
    round_divergence: bool = True,
) -> BeamConfig:
    """A beam with nanoBragg's explicit samples: a grid of angles and a ladder of relative wavelengths, equal weights.

    The horizontal angle turns the beam about s0 x E, the vertical one about E, right-handed, E = n x s0 first.
    `round_divergence` leaves out the corners of the grid.
    """
    like = torch.zeros((), dtype=torch.float64)
    h, v = horizontal_mrad.values(), vertical_mrad.values()
    keep = _inside_ellipse(h, v, horizontal_mrad, vertical_mrad) if round_divergence else None
    e, about_h = transverse_axes(beam, like)
    about_v = rotation_from_vector(MILLI * v[:, None] * e)
    turned = rotation_from_vector(MILLI * h[:, None] * about_h)[:, None] @ about_v
    directions = turned @ unit(as_tensor(beam.direction, like))
    directions = directions.reshape(-1, 3) if keep is None else directions[keep]
    wavelengths = as_tensor(beam.wavelength_A, like) * (1 + dispersion.values())
    ones = torch.ones(len(directions), dtype=torch.float64)
    return _with_samples(beam, directions, ones, wavelengths, torch.ones_like(wavelengths))


def _inside_ellipse(h: Tensor, v: Tensor, range_h: SampledRange, range_v: SampledRange) -> Tensor:
    """Which points (n_h, n_v) of the grid nanoBragg keeps in a round beam; all of them on a line."""
    if len(h) == 1 or len(v) == 1:
        return torch.ones(len(h), len(v), dtype=torch.bool)

    def squared(x: Tensor, full: float) -> Tensor:
        # A grid of an even number has no point on the axis: half a step is taken off.
        half_step = (x[1] - x[0]) / 2 if len(x) % 2 == 0 else 0.0
        return (x**2 - half_step**2) / full**2

    return 4 * (squared(h, range_h.width)[:, None] + squared(v, range_v.width)) <= 1.1


def _with_samples(
    beam: BeamConfig, directions: Tensor, weights: Tensor, wavelengths: Tensor, wavelength_weights: Tensor
) -> BeamConfig:
    """`beam` with every direction at every wavelength, and no widths left."""
    n, m = len(directions), len(wavelengths)
    return dataclasses.replace(
        beam,
        bandwidth=0.0,
        divergence_h_mrad=0.0,
        divergence_v_mrad=0.0,
        source_directions=directions[:, None].expand(n, m, 3).reshape(-1, 3),
        source_wavelengths_A=wavelengths.expand(n, m).reshape(-1),
        source_weights=(weights[:, None] * wavelength_weights).reshape(-1),
    )


def _is_zero(width: float | Tensor) -> bool:
    return not isinstance(width, Tensor) and width == 0


def _has_width(beam: BeamConfig) -> bool:
    return not all(_is_zero(width) for width in (beam.bandwidth, beam.divergence_h_mrad, beam.divergence_v_mrad))
