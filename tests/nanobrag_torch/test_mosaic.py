import math

import pytest
import torch

from nanobrag_torch.mosaic import MOSAIC_RMS_PER_SPREAD, domain_rotations, seeded_rotations
from nanobrag_torch.rotation import vector_from_rotation
from tests import tolerances
from tests.nanobrag_torch.scene import DEGREE, crystal, vector

LIKE = torch.zeros((), dtype=torch.float64)


def test_the_rms_rotation_per_spread_is_the_integral_over_its_distribution():
    r = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    mean_square = ((1 - r**2) ** (2 / 3)).mean().item()
    assert pytest.approx(math.sqrt(mean_square / 3), rel=tolerances.QUADRATURE) == MOSAIC_RMS_PER_SPREAD
    assert pytest.approx(0.4964, abs=5e-5) == MOSAIC_RMS_PER_SPREAD


def test_domains_turn_by_the_mosaicity_about_every_axis():
    rotations = domain_rotations(crystal(mosaicity_deg=0.3, mosaic_domains=4000), LIKE)
    rms = vector_from_rotation(rotations).square().mean(0).sqrt() / DEGREE
    assert (rms / 0.3 - 1).abs().max() < tolerances.RMS_OF_4000_DOMAINS


def test_the_first_domain_is_not_turned():
    assert torch.equal(seeded_rotations(0.5, 3, 1)[0], torch.eye(3, dtype=torch.float64))
    first = domain_rotations(crystal(mosaicity_deg=0.5, mosaic_domains=3), LIKE)[0]
    assert torch.equal(first, torch.eye(3, dtype=torch.float64))


def test_the_mosaicity_scales_the_domains_that_the_seed_draws():
    drawn = seeded_rotations(0.4, 7, 99)
    scaled = domain_rotations(
        crystal(mosaicity_deg=0.4 * MOSAIC_RMS_PER_SPREAD, mosaic_domains=7, mosaic_seed=99), LIKE
    )
    assert (drawn - scaled).abs().max() < tolerances.FLOAT32_ANGLE


def test_seeds_give_different_domains_and_one_seed_the_same():
    assert torch.equal(seeded_rotations(1.0, 5, 3), seeded_rotations(1.0, 5, -3))
    assert not torch.equal(seeded_rotations(1.0, 5, 3), seeded_rotations(1.0, 5, 4))


def test_given_matrices_are_used_as_they_are():
    given = seeded_rotations(1.0, 5, 3)
    assert torch.equal(domain_rotations(crystal(mosaic_rotations=given, mosaicity_deg=9.0), LIKE), given)


def test_no_mosaicity_is_one_domain():
    assert len(domain_rotations(crystal(mosaicity_deg=0.0, mosaic_domains=50), LIKE)) == 1


@pytest.mark.parametrize("mosaicity", [0.2, vector(0.2)[0]])
def test_a_mosaicity_needs_domains(mosaicity):
    with pytest.raises(ValueError, match=r"mosaicity_deg is 0.2 but mosaic_domains is 1, and .* give more domains"):
        domain_rotations(crystal(mosaicity_deg=mosaicity, mosaic_domains=1), LIKE)


@pytest.mark.parametrize("mosaicity", [0.0, 0.7])
def test_rotations_are_differentiable_in_the_mosaicity_through_zero(mosaicity):
    def f(value):
        return domain_rotations(crystal(mosaicity_deg=value, mosaic_domains=3), LIKE)

    value = vector(mosaicity)[0].requires_grad_()
    assert torch.autograd.gradcheck(f, value)
    assert torch.autograd.grad(f(value)[1, 0, 1], value)[0] != 0
