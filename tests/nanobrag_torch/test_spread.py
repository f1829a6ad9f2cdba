import math

import pytest
import torch

from nanobrag_torch.lattice import orientation, reciprocal_basis
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.shape_factor import gauss
from nanobrag_torch.source import gaussian_beam
from nanobrag_torch.spread import (
    divergence_covariance,
    footprint_covariance,
    mosaic_covariance,
    node_covariance,
    outer,
    radial_covariance,
    size_covariance,
)
from nanobrag_torch.tensors import unit
from tests import tolerances
from tests.nanobrag_torch.scene import DEGREE, beam, crystal, vector

LIKE = torch.zeros((), dtype=torch.float64)
Q = vector(0.11, -0.23, 0.31)


def moment(offsets, weights=None):
    """Σ w d dᵀ (3, 3) of offsets (n, 3)."""
    weights = torch.full((len(offsets),), 1 / len(offsets), dtype=torch.float64) if weights is None else weights
    return (weights[:, None, None] * outer(offsets)).sum(0)


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_the_size_of_a_block_is_the_second_moment_of_its_lattice_factor():
    c = crystal()
    h = (torch.arange(64, dtype=torch.float64) + 0.5) / 32 - 1
    dh = torch.cartesian_prod(h, h, h)
    weights = gauss(dh, c.N_cells, torch.ones((), dtype=torch.float64)) ** 2
    A = reciprocal_basis(c, LIKE)
    assert relative(size_covariance(c, LIKE), moment(dh @ A.T, weights / weights.sum())) < tolerances.QUADRATURE


def test_a_block_of_one_size_is_round_and_a_tensor_turns_with_the_crystal():
    size = 0.63 / 4 / 500.0**2
    assert (
        relative(size_covariance(crystal(domain_size_A=500.0), LIKE), size * torch.eye(3, dtype=torch.float64)) < 1e-15
    )
    tensor = torch.diag(vector(1.0, 2.0, 3.0)) * size
    turned = size_covariance(crystal(size_covariance=tensor, misset_deg=(1.0, 2.0, 3.0)), LIKE)
    turn = orientation(crystal(misset_deg=(1.0, 2.0, 3.0)), LIKE)
    assert relative(turn.T @ turned @ turn, tensor) < tolerances.ROUNDING


@pytest.mark.parametrize("shape", ["square", "round", "tophat", "tophat_isotropic"])
def test_shapes_that_are_no_gaussian_are_refused(shape):
    with pytest.raises(ValueError, match="has no Gaussian closed form"):
        size_covariance(crystal(shape=shape), LIKE)


def test_mosaicity_is_the_second_moment_of_turned_nodes():
    eta = 0.02
    # Six turns that have the second moment η² about every axis.
    axes = math.sqrt(3) * torch.eye(3, dtype=torch.float64) * eta * DEGREE
    turned = rotation_from_vector(torch.cat([axes, -axes])) @ Q
    expected = moment(turned - Q)
    assert relative(mosaic_covariance(crystal(mosaicity_deg=eta), Q), expected) < tolerances.SMALL_ANGLE_SQUARED


def test_a_mosaic_tensor_turns_with_the_crystal_and_contains_the_isotropic_case():
    isotropic = mosaic_covariance(crystal(mosaicity_deg=0.3), Q)
    tensor = crystal(mosaic_covariance_deg2=0.09 * torch.eye(3, dtype=torch.float64))
    assert relative(mosaic_covariance(tensor, Q), isotropic) < tolerances.ROUNDING
    about_x = crystal(mosaic_covariance_deg2=torch.diag(vector(0.09, 0.0, 0.0)), misset_deg=(2.0, 1.0, -3.0))
    lever = torch.linalg.cross(orientation(about_x, LIKE)[:, 0], Q) * 0.3 * DEGREE
    assert relative(mosaic_covariance(about_x, Q), outer(lever)) < tolerances.ROUNDING


def test_bandwidth_and_strain_are_one_broadening_along_q():
    wide, strained = beam(bandwidth=2e-3), crystal(strain=2e-3)
    assert relative(radial_covariance(crystal(), wide, Q), outer(Q) * 4e-6) < tolerances.ROUNDING
    assert torch.equal(radial_covariance(crystal(), wide, Q), radial_covariance(strained, beam(), Q))


def test_divergence_is_the_second_moment_of_the_rays():
    wide = beam(divergence_h_mrad=0.4, divergence_v_mrad=0.9, direction=vector(0.1, 0.05, -1))
    rays = gaussian_beam(wide, LIKE)
    offsets = -(rays.source_directions - unit(wide.direction)) / wide.wavelength_A
    expected = moment(offsets, rays.source_weights)
    assert relative(divergence_covariance(wide, LIKE), expected) < tolerances.SMALL_ANGLE_SQUARED


def test_across_the_ewald_sphere_a_divergence_is_a_mosaicity_of_the_same_angle():
    """The rays turn instead of the crystal: partialities cannot tell the two apart, only the shapes of spots can."""
    mrad, wavelength = 0.7, 1.3
    ray = beam(divergence_h_mrad=mrad, divergence_v_mrad=mrad, direction=vector(0.1, 0.05, -1), wavelength_A=wavelength)
    s0 = unit(ray.direction)
    blocks = crystal(mosaicity_deg=1e-3 * mrad / DEGREE)
    for s1 in unit(vector(0.3, -0.2, -1, 0.05, 0.9, 0.2, -0.4, 0.1, 1.0).view(3, 3)):
        q = (s1 - s0) / wavelength
        widths = [s1 @ S @ s1 for S in (divergence_covariance(ray, LIKE), mosaic_covariance(blocks, q))]
        assert abs(widths[0] / widths[1] - 1) < tolerances.ROUNDING


def test_a_divergence_is_one_of_the_tensors_of_block_size():
    """Neither depends on q: with the whole tensor free a still says nothing of the divergence."""
    found = divergence_covariance(beam(divergence_h_mrad=0.4, divergence_v_mrad=0.9), LIKE)
    turn = orientation(crystal(misset_deg=(1.0, 2.0, 3.0)), LIKE)
    blocks = crystal(size_covariance=turn.T @ found @ turn, misset_deg=(1.0, 2.0, 3.0))
    assert relative(size_covariance(blocks, LIKE), found) < tolerances.ROUNDING


def test_a_pixels_footprint_is_the_second_moment_of_its_area():
    """A 0.2 mm pixel, 100 mm away and oblique, and a layer 0.1 mm thick in variance."""
    turn = rotation_from_vector(vector(0.2, -0.3, 0.1))
    fast, slow, normal = turn
    centre = vector(20.0, -30.0, 100.0)
    steps = (torch.arange(40, dtype=torch.float64) + 0.5) / 40 - 0.5
    x, y, z = torch.cartesian_prod(steps, steps, steps).unbind(-1)
    d = centre + 0.2 * (x[:, None] * fast + y[:, None] * slow) + 0.1 * z[:, None] * normal
    wavelength = 1.1
    q = unit(d) / wavelength
    sampled = moment(q - q.mean(0))
    s1 = unit(centre)[None]
    scale = 1 / (wavelength * torch.linalg.vector_norm(centre))[None]
    found = footprint_covariance(
        s1, fast[None], slow[None], normal[None], scale, vector(0.2**2 / 12), vector(0.1**2 / 12)
    )
    assert relative(found[0], sampled) < tolerances.FOOTPRINT_RELATIVE


def test_every_cause_adds_and_none_makes_a_node_indefinite():
    wide = beam(bandwidth=1e-3, divergence_h_mrad=0.4, divergence_v_mrad=0.2)
    c = crystal(mosaicity_deg=0.2, strain=1e-3)
    total = node_covariance(c, wide, Q[None])[0]
    parts = size_covariance(c, LIKE) + mosaic_covariance(c, Q) + radial_covariance(c, wide, Q)
    assert torch.equal(total, parts + divergence_covariance(wide, LIKE))
    assert (torch.linalg.eigvalsh(total) > 0).all()
