import math

import pytest
import torch

from nanobrag_torch.config import SHAPES
from nanobrag_torch.shape_factor import (
    ball,
    gauss,
    gauss_isotropic,
    grating,
    lattice_factor,
    sphere,
    square,
    tophat,
)
from tests import tolerances
from tests.nanobrag_torch.scene import crystal, vector

N = vector(5.0, 6.0, 7.0)
ONE = vector(1.0)[0]
A = torch.diag(vector(0.03, 0.025, 0.02))


@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_node_all_cells_scatter_in_phase(shape):
    height = math.sqrt(math.pi / 6) if shape == "round" else 1.0
    on_node = lattice_factor(crystal(shape=shape, N_cells=N), torch.zeros(1, 3, dtype=torch.float64), A)
    assert on_node.item() == pytest.approx(210 * height, rel=tolerances.ROUNDING)


def test_a_grating_is_the_sum_over_its_cells():
    h = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    cells = torch.arange(7, dtype=torch.float64) - 3
    direct = torch.cos(2 * math.pi * h[:, None] * cells).sum(-1)
    assert (grating(N[2], h) - direct).abs().max() < 7 * tolerances.ROUNDING


def test_the_intensity_of_square_blocks_integrates_to_the_number_of_cells():
    # The mean of a trigonometric polynomial over more points than its degree is exact.
    h = (torch.arange(32, dtype=torch.float64) + 0.5) / 32 - 0.5
    dh = torch.cartesian_prod(h, h, h)
    assert (square(dh, N) ** 2).mean().item() / 210 == pytest.approx(1.0, rel=tolerances.ROUNDING)


def test_the_intensity_of_gaussian_blocks_integrates_to_0_98444():
    h = (torch.arange(64, dtype=torch.float64) + 0.5) / 32 - 1
    dh = torch.cartesian_prod(h, h, h)
    integral = (gauss(dh, N, ONE) ** 2).sum().item() / 32**3
    assert integral / 210 == pytest.approx((math.pi * 0.315) ** 1.5, rel=tolerances.QUADRATURE)
    assert integral / 210 == pytest.approx(0.98444, abs=5e-6)


def test_the_intensity_of_spheres_integrates_to_the_number_of_cells():
    n = torch.ones(3, dtype=torch.float64)
    edge, count = 100.0, 400_000
    r = (torch.arange(count, dtype=torch.float64) + 0.5) * edge / count
    dh = torch.stack([r, torch.zeros_like(r), torch.zeros_like(r)], -1)
    inside = (4 * math.pi * r**2 * sphere(dh, n, ONE) ** 2).sum().item() * edge / count
    # Beyond the edge cos² is ½ on average: (π/6) 4π/π³ ∫ 9/2 du/u².
    beyond = math.pi / 6 * 4 / math.pi**2 * 4.5 / (math.pi * edge)
    assert inside + beyond == pytest.approx(1.0, abs=tolerances.SPHERE_INTEGRAL)


def test_the_intensity_of_top_hats_is_that_of_an_ellipsoid():
    h = (torch.arange(160, dtype=torch.float64) + 0.5) / 160 * 0.4 - 0.2
    dh = torch.cartesian_prod(h, h, h)
    integral = (tophat(dh, N, ONE) ** 2).sum().item() * (0.4 / 160) ** 3
    assert integral / 210 == pytest.approx(4 / 3 * math.pi * 0.63**3, rel=tolerances.VOXEL_VOLUME)


def test_an_isotropic_block_has_the_variance_of_its_size():
    size = vector(800.0)[0]
    dq = vector(1.0, -2.0, 0.5) * 1e-3 / 2
    expected = 210 * torch.exp(-0.5 * (dq**2).sum() / (0.1575 / size**2) / 2)
    assert gauss_isotropic(dq, N, size, ONE).item() == pytest.approx(expected.item(), rel=tolerances.ROUNDING)


def test_a_given_size_makes_the_block_isotropic():
    dh = torch.eye(3, dtype=torch.float64) * 0.05
    same_length = dh / A.diagonal() * 0.01
    F = lattice_factor(crystal(domain_size_A=1000.0), same_length, A)
    assert F.max() - F.min() < tolerances.ROUNDING * F.max()
    assert 1 < F.max() < 200


def test_the_square_ignores_whole_numbers_of_nodes():
    h = vector(0.1, 0.2, -0.3)
    assert torch.allclose(grating(N[0], h) ** 2, grating(N[0], h - torch.sign(h)) ** 2, rtol=1e-12)


SINGULAR = {"on the node": (0.0, 0.0, 0.0), "on an axis": (0.0, 0.03, 0.0), "beside it": (0.01, -0.02, 0.03)}


@pytest.mark.parametrize("place", SINGULAR)
@pytest.mark.parametrize("shape", ["square", "round", "gauss", "gauss_isotropic"])
def test_derivatives_are_right_on_and_beside_a_node(shape, place):
    def f(dh, n, fudge):
        return lattice_factor(crystal(shape=shape, N_cells=n, fudge=fudge, domain_size_A=None), dh, A / 5)

    arguments = [vector(*SINGULAR[place]), vector(2.0, 3.0, 2.5), vector(1.1)[0]]
    arguments = [argument.requires_grad_() for argument in arguments]
    assert torch.autograd.gradcheck(f, arguments)
    gradient = torch.autograd.grad(f(*arguments), arguments[1])[0]
    assert (gradient != 0).all()


def test_singular_limits_are_smooth_to_second_order():
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda h: grating(N[0], h), zero)
    assert torch.autograd.gradgradcheck(ball, torch.full((1,), 1e-3, dtype=torch.float64, requires_grad=True))


def test_the_ball_is_continuous_where_its_series_ends():
    below, above = vector(1e-2 * (1 - 1e-12)), vector(1e-2 * (1 + 1e-12))
    assert (ball(below) - ball(above)).abs().item() < 1e-13
