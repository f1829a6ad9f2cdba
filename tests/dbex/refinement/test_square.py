"""Blocks with flat faces as a mixture of Gaussians: the interference function, and its place in reciprocal space."""

import numpy as np
import torch

from dbex.refinement.square_blocks import OUTLINE, SINC_SQUARED, SQUARE, square_components
from nanobrag_torch.config import CrystalConfig
from tests.tolerances import SINC_SQUARED_BESIDE, SINC_SQUARED_OF_PEAK

SMEAR = 0.15
TRICLINIC = CrystalConfig(27.0, 32.0, 34.0, 88.0, 71.0, 68.0)


def gaussians(peaks, t):
    """The mixture along one axis, smeared."""
    return sum(
        p.weight
        * np.exp(-0.5 * (t - p.offset[0]) ** 2 / (p.width[0] ** 2 + SMEAR**2))
        / np.sqrt(2 * np.pi * (p.width[0] ** 2 + SMEAR**2))
        for p in peaks
    )


def smeared_sinc_squared(t):
    """sinc², the transform of a triangle, after a Gaussian: by quadrature over the triangle."""
    u = (np.arange(4000) + 0.5) / 4000
    weight = 2 * (1 - u) * np.exp(-2 * (np.pi * SMEAR * u) ** 2) / len(u)
    return np.cos(2 * np.pi * np.multiply.outer(t, u)) @ weight


def test_the_gaussians_add_up_to_the_interference_function_of_a_block():
    t = np.linspace(-6, 6, 601)
    off = np.abs(gaussians(SINC_SQUARED, t) - smeared_sinc_squared(t)) / smeared_sinc_squared(np.zeros(1))
    assert off.max() < SINC_SQUARED_OF_PEAK
    assert off[np.abs(t) > 1.2].max() < SINC_SQUARED_BESIDE


def test_there_is_as_much_light_in_the_mixture_as_in_one_cell_of_the_reciprocal_lattice():
    for peaks in (SQUARE, OUTLINE):
        assert abs(sum(peak.weight for peak in peaks) - 1) < 1e-12
    assert abs(sum(peak.weight for peak in SINC_SQUARED) - 1) < 0.01


def test_the_mixture_is_alike_on_both_sides_of_a_node_along_every_axis():
    found = {(p.offset, p.width) for p in SQUARE}
    for axis in range(3):
        flipped = {(tuple(-o if i == axis else o for i, o in enumerate(of)), width) for of, width in found}
        assert flipped == {(tuple(o + 0.0 for o in of), width) for of, width in found}


def test_fringes_come_closer_and_narrower_along_the_axis_along_which_blocks_are_longer():
    short, long = (
        square_components(TRICLINIC, torch.tensor([400.0, edge, 400.0], dtype=torch.float64), SQUARE)
        for edge in (400.0, 800.0)
    )
    for one, other in zip(short, long, strict=True):
        ratio = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
        assert torch.allclose(one.offset_h, other.offset_h * ratio)
        assert (
            abs(torch.linalg.det(one.crystal.size_covariance) / torch.linalg.det(other.crystal.size_covariance) - 4)
            < 1e-9
        )
