import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from nanobrag_torch.config import ScanConfig
from nanobrag_torch.rotation import vector_from_rotation
from nanobrag_torch.spindle import line_integral, scan_rotations
from tests import tolerances
from tests.nanobrag_torch.scene import DEGREE, vector

LIKE = torch.zeros((), dtype=torch.float64)


def test_steps_are_left_edges_about_the_axis():
    scan = ScanConfig(axis=(0.0, 3.0, 4.0), start_deg=10.0, width_deg=1.2, steps=4)
    turned = vector_from_rotation(scan_rotations(scan, LIKE)) / DEGREE
    expected = vector(10.0, 10.3, 10.6, 10.9)[:, None] * vector(0.0, 0.6, 0.8)
    assert (turned - expected).abs().max() < 1e-12


def test_a_step_at_zero_does_not_turn_the_crystal():
    scan = ScanConfig(axis=(0.0, 0.0, 1.0), start_deg=-1.0, width_deg=2.0, steps=2)
    assert torch.equal(scan_rotations(scan, LIKE)[1], torch.eye(3, dtype=torch.float64))


def lines(count=200):
    """a, b, c, w of random Gaussians and lines, from lines of no length to ones far wider than the spot."""
    rng = np.random.default_rng(1)
    a = 10.0 ** rng.uniform(-12, 8, count)
    w = 10.0 ** rng.uniform(-4, 0, count)
    centre = rng.uniform(-1.5, 1.5, count) * (w / 2 + 3 / np.sqrt(a))
    b = a * centre
    c = b**2 / a + rng.uniform(0, 20, count)
    return a, b, c, w


def by_quadrature(a, b, c, w):
    def f(phi):
        return math.exp(-0.5 * (a * (phi - b / a) ** 2 + (c - b**2 / a)))

    width = 1 / math.sqrt(a)
    breaks = [x for k in (-9, -3, -1, 0, 1, 3, 9) if abs(x := b / a + k * width) < w / 2]
    return quad(f, -w / 2, w / 2, points=breaks or None, epsabs=0, epsrel=1e-12, limit=500)[0] / w


def test_the_line_integral_is_that_of_quadrature():
    for a, b, c, w in zip(*lines(), strict=True):
        exact = by_quadrature(a, b, c, w)
        found = line_integral(*(torch.tensor(x, dtype=torch.float64) for x in (a, b, c, w))).item()
        assert found == pytest.approx(exact, rel=tolerances.LINE_INTEGRAL, abs=1e-300)


def test_far_beside_the_spot_the_line_integral_keeps_its_digits():
    a, b, w = 400.0, 400.0, 0.5
    c = b**2 / a
    found = line_integral(*(torch.tensor(x, dtype=torch.float64) for x in (a, b, c, w))).item()
    assert 0 < found < 1e-40
    assert found == pytest.approx(by_quadrature(a, b, c, w), rel=tolerances.LINE_INTEGRAL)


def test_without_movement_the_line_integral_is_the_gaussian():
    zero = torch.zeros(3, dtype=torch.float64)
    c = vector(0.0, 1.0, 9.0)
    assert torch.allclose(line_integral(zero, zero, c, torch.ones_like(c)), torch.exp(-c / 2), rtol=1e-15)
    assert torch.allclose(line_integral(zero + 1, zero, c, zero), torch.exp(-c / 2), rtol=1e-15)


def test_series_and_error_functions_meet():
    a = vector(1e-3 * (1 - 1e-9), 1e-3 * (1 + 1e-9))
    value = line_integral(a, vector(0.005, 0.005), vector(0.3, 0.3), torch.ones_like(a))
    assert (value[0] / value[1] - 1).abs() < tolerances.LINE_INTEGRAL


@pytest.mark.parametrize(
    "line",
    [
        (0.0, 0.0, 0.7, 0.3),  # no movement
        (2.0, 0.3, 0.7, 1e-3),  # a short line
        (30.0, 4.0, 2.0, 0.5),  # through the spot
        (30.0, 0.0, 0.5, 0.5),  # centred on it
        (30.0, 25.0, 22.0, 0.5),  # beside it
        (30.0, -25.0, 22.0, 0.5),
        (30.0, 7.5, 1.875, 0.5),  # the spot's centre at the line's end
    ],
)
def test_derivatives_of_the_line_integral(line):
    arguments = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in line]
    assert torch.autograd.gradcheck(line_integral, arguments, eps=1e-7, atol=1e-8, rtol=1e-5)
    assert torch.autograd.grad(line_integral(*arguments), arguments[2])[0] != 0
