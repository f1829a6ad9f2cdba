"""Diffuse scattering of amorphous matter in the beam, water above all: a smooth image beside that of the crystal."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig, DetectorConfig, Number
from nanobrag_torch.panel import all_pixels, pixel_positions, solid_angle, stack_panels
from nanobrag_torch.polarization import polarization_factor
from nanobrag_torch.tensors import as_tensor, unit
from nanobrag_torch.units import R_E_SQUARED_M2

#: Molecules a mole, the value of the C program.
AVOGADRO = 6.02214179e23
#: |F| of a molecule of water, electrons, at every angle, and its molar mass, g/mol: nanoBragg's.
WATER_F, WATER_G_PER_MOL = 2.57, 18.0


@dataclass(frozen=True)
class FormFactor:
    """|F| of a molecule, electrons, as a table over sin θ/λ in 1/Å: `stol` (n,) rising, `F` (n,), n at least 4."""

    stol: Tensor
    F: Tensor

    def at(self, stol: Tensor) -> Tensor:
        """|F| (m,) by the cubic polynomial through the two entries on either side; the end ones go on beyond."""
        inner = torch.searchsorted(self.stol, stol.detach(), right=True) - 2
        first = inner.clamp(0, len(self.stol) - 4)
        total = torch.zeros_like(stol)
        for i in range(4):
            weight = torch.ones_like(stol)
            for j in range(4):
                if j != i:
                    weight = weight * (stol - self.stol[first + j]) / (self.stol[first + i] - self.stol[first + j])
            total = total + weight * self.F[first + i]
        return total


def molecules(volume_mm3: Number, density_g_per_cm3: Number, molar_mass_g: Number) -> Number:
    """How many there are in a volume."""
    return volume_mm3 * 1e-3 * density_g_per_cm3 * AVOGADRO / molar_mass_g


def amorphous(
    detector: DetectorConfig | Sequence[DetectorConfig],
    beam: BeamConfig,
    F: FormFactor | float,
    number_of_molecules: Number,
    like: Tensor,
) -> Tensor:
    """Expected photons (n pixels,), in the order panel, slow, fast, of so many molecules of |F| electrons each.

    Taken at the middle of a pixel: r_e² Φ n |F|² P Ω (docs/physics.md, section 2). Absorption is left out.
    """
    panels = [detector] if isinstance(detector, DetectorConfig) else list(detector)
    geometry, pixels = stack_panels(panels, like), all_pixels(panels, like.device)
    position = pixel_positions(geometry, pixels.panel, pixels.slow + 0.5, pixels.fast + 0.5)
    s0, s1 = unit(as_tensor(beam.direction, like)), unit(position)
    photons = solid_angle(geometry, pixels.panel, position) * R_E_SQUARED_M2 * as_tensor(beam.fluence, like)
    if beam.polarization_fraction is not None:
        normal = as_tensor(beam.polarization_normal, like)
        photons = photons * polarization_factor(s1, s0, normal, as_tensor(beam.polarization_fraction, like))
    if isinstance(F, FormFactor):
        wavelength = as_tensor(beam.wavelength_A, like)
        each = F.at(torch.linalg.vector_norm(s1 - s0, dim=-1) / (2 * wavelength))
    else:
        each = as_tensor(F, like)
    return photons * as_tensor(number_of_molecules, like) * each**2


def water(
    detector: DetectorConfig | Sequence[DetectorConfig], beam: BeamConfig, size_um: Number, like: Tensor
) -> Tensor:
    """Photons (n pixels,) of a cube of water with this edge."""
    return amorphous(detector, beam, WATER_F, molecules((size_um * 1e-3) ** 3, 1.0, WATER_G_PER_MOL), like)
