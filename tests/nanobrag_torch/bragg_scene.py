"""One reflection on one panel: a crystal turned so that a chosen node meets a chosen pixel, or nearly so."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig
from nanobrag_torch.lattice import cell_tensor, reciprocal_matrix
from nanobrag_torch.panel import Pixels, all_pixels, pixel_positions, stack_panels
from nanobrag_torch.profile import Pairs, Quadrature, profile
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.structure_factors import from_list
from nanobrag_torch.tensors import as_tensor, unit
from tests.nanobrag_torch.scene import DEGREE, beam, crystal, panel, vector

LIKE = torch.zeros((), dtype=torch.float64)
HKL = torch.tensor([[3, -2, 4]])
F = vector(50.0)
REFINEMENT_RULE = Quadrature()


@dataclass(frozen=True)
class Bragg:
    """The records, and the reflection (1, 3)."""

    crystal: CrystalConfig
    detector: tuple[DetectorConfig, ...]
    beam: BeamConfig

    @property
    def pixels(self) -> Pixels:
        return all_pixels(self.detector)

    def closed(self, rule=REFINEMENT_RULE, scan=None, hkl=HKL, **more) -> Tensor:
        """The closed form on every pixel of every panel, the node taken as the first panel sees it."""
        pixels = self.pixels
        pairs = Pairs(torch.arange(len(pixels)), torch.zeros(len(pixels), dtype=torch.long))
        columns = (pixels.panel, pixels.slow, pixels.fast)
        first = torch.zeros(1, dtype=torch.long)
        return profile(self.crystal, self.detector, self.beam, hkl, F, columns, pairs, first, rule, scan, **more)

    @property
    def factors(self):
        return from_list(HKL, F, default_F=0.0)


def bragg(off_deg=0.0, crystal_fields=None, panel_fields=None, beam_fields=None) -> Bragg:
    """The node (3, -2, 4) meets the middle of the panel, after the crystal turned off by an angle about an axis across
    the scattering plane. Blocks of 25 x 22 x 18 cells; pixels of 0.03 mm, about the rms of a spot."""
    fields = {"pixel_size_mm": 0.03, "shape": (25, 25), "origin_fast_mm": 14.0, "origin_slow_mm": 5.0} | (
        panel_fields or {}
    )
    detector = panel(**fields)
    panels = stack_panels([detector], LIKE)
    middle = torch.tensor([n / 2 for n in detector.shape], dtype=torch.float64)
    s1 = unit(pixel_positions(panels, torch.zeros(1, dtype=torch.long), middle[:1], middle[1:]))[0]
    light = beam(**(beam_fields or {}))
    s0 = unit(as_tensor(light.direction, LIKE))
    c = crystal(**({"N_cells": vector(25.0, 22.0, 18.0)} | (crystal_fields or {})))
    h = reciprocal_matrix(cell_tensor(c, LIKE)) @ HKL[0].double()
    # Bragg's law gives the wavelength; q then has the length of the node's vector.
    wavelength = torch.linalg.vector_norm(s1 - s0) / torch.linalg.vector_norm(h)
    q = (s1 - s0) / wavelength
    across = unit(torch.linalg.cross(s0, s1))
    turn = rotation_from_vector(off_deg * DEGREE * across) @ onto(h, q)
    return Bragg(replace(c, U=turn), (detector,), replace(light, wavelength_A=wavelength))


def onto(a: Tensor, b: Tensor) -> Tensor:
    """The shortest rotation (3, 3) that takes the direction of a to that of b."""
    axis = torch.linalg.cross(unit(a), unit(b))
    sine = torch.linalg.vector_norm(axis)
    angle = torch.atan2(sine, (unit(a) * unit(b)).sum())
    return rotation_from_vector(axis / sine * angle)
