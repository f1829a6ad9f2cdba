"""Diffuse scattering and curved panels beside what the golden images show."""

import pytest
import torch

from nanobrag_torch.background import FormFactor, amorphous, molecules, water
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, override
from nanobrag_torch.panel import all_pixels, curved_positions, pixel_positions, stack_panels
from nanobrag_torch.profile import Pairs, profile
from nanobrag_torch.simulate import simulate
from nanobrag_torch.structure_factors import from_list
from tests.tolerances import ROUNDING

LIKE = torch.zeros((), dtype=torch.float64)
PANEL = DetectorConfig((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), 100.0, -3.0, -3.2, 0.4, (16, 15))
BEAM = BeamConfig(1.0)


def test_a_table_of_a_cubic_is_that_cubic_also_beyond_its_ends():
    stol = torch.tensor([0.0, 0.1, 0.15, 0.3, 0.5, 0.8], dtype=torch.float64)

    def cubic(x):
        return 2 - x + 3 * x**2 - 4 * x**3

    at = torch.linspace(0, 0.9, 50, dtype=torch.float64)
    assert torch.allclose(FormFactor(stol, cubic(stol)).at(at), cubic(at), rtol=0, atol=10 * ROUNDING)


def test_water_grows_with_the_cube_of_its_edge_and_is_that_many_molecules():
    one, two = (water(PANEL, BEAM, size, LIKE) for size in (10.0, 20.0))
    assert torch.allclose(two, 8 * one, rtol=ROUNDING)
    assert molecules(1.0, 1.0, 18.0) == pytest.approx(3.3456e19, rel=1e-4)
    assert torch.allclose(one, amorphous(PANEL, BEAM, 2.57, molecules(1e-6, 1.0, 18.0), LIKE), rtol=10 * ROUNDING)


def test_every_point_of_a_curved_panel_is_equally_far_and_its_middle_is_that_of_the_flat_one():
    panels, pixels = stack_panels([PANEL], LIKE), all_pixels([PANEL])
    curved = curved_positions(panels, pixels.panel, pixels.slow + 0.5, pixels.fast + 0.5)
    flat = pixel_positions(panels, pixels.panel, pixels.slow + 0.5, pixels.fast + 0.5)
    assert torch.allclose(torch.linalg.vector_norm(curved, dim=1), LIKE + 100, rtol=ROUNDING)
    # they part with the square of the angle, at most 0.04
    assert 0.01 < torch.linalg.vector_norm(curved - flat, dim=1).max() < 0.1


def test_the_closed_form_and_thick_sensors_refuse_a_curved_panel():
    curved = override(PANEL, {"curved": True})
    crystal = CrystalConfig(40.0, 40.0, 40.0)
    hkl, F = torch.tensor([[1, 0, 0]]), torch.ones(1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="the closed form knows flat ones only"):
        profile(crystal, [curved], BEAM, hkl, F, (zero, zero, zero), Pairs(zero, zero), zero)
    thick = override(curved, {"sensor_thickness_mm": 0.3, "sensor_mu_per_mm": 3.0})
    with pytest.raises(ValueError, match="a curved panel has a sensor of some thickness"):
        simulate(crystal, thick, BEAM, from_list(hkl, F))
