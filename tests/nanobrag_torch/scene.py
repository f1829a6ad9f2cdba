"""A small still for the tests of the sampled sum: a triclinic crystal, a tilted panel off the axis, a list of |F|."""

import math

import torch

from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.structure_factors import StructureFactors, from_list

U = rotation_from_vector(torch.tensor([0.4, -0.9, 0.3], dtype=torch.float64))


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def crystal(**fields) -> CrystalConfig:
    values = {"N_cells": vector(5.0, 6.0, 7.0), "shape": "gauss", "U": U} | fields
    return CrystalConfig(31.0, 36.0, 41.0, 87.0, 104.0, 95.0, **values)


def panel(**fields) -> DetectorConfig:
    """24 x 20 pixels of 0.4 mm, 60 mm from the crystal, fast x slow pointing back to it, centre 15 mm off the beam."""
    tilt = rotation_from_vector(vector(0.05, -0.08, 0.02))
    values = {
        "fast_axis": tilt @ vector(1, 0, 0),
        "slow_axis": tilt @ vector(0, -1, 0),
        "distance_mm": 60.0,
        "origin_fast_mm": 11.0,
        "origin_slow_mm": 2.0,
        "pixel_size_mm": 0.4,
        "shape": (24, 20),
        "oversample": 1,
    } | fields
    return DetectorConfig(**values)


def beam(**fields) -> BeamConfig:
    return BeamConfig(**({"wavelength_A": 1.1, "polarization_fraction": 0.9} | fields))


def hkl_box(reach=14):
    steps = torch.arange(-reach, reach + 1)
    return torch.cartesian_prod(steps, steps, steps)


def factors(friedel_symmetric=True, default_F=3.0) -> StructureFactors:
    """|F| between 20 and 120, smooth enough to be interpolated; without Friedel's law if asked."""
    hkl = hkl_box()
    phase = hkl.double() @ vector(0.7, -1.1, 0.4)
    F = 60 + 35 * torch.cos(phase) + (0.0 if friedel_symmetric else 1.0) * 20 * torch.sin(phase)
    return from_list(hkl, F, default_F=default_F)


def relative(a, b):
    """Largest difference of two images in units of the second's mean."""
    assert b.mean() > 0
    return float((a - b).abs().max() / b.abs().mean())


DEGREE = math.pi / 180
