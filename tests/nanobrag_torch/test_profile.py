import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from nanobrag_torch.config import ScanConfig
from nanobrag_torch.lattice import reciprocal_basis
from nanobrag_torch.panel import pixel_positions, stack_panels
from nanobrag_torch.profile import (
    _THIN,
    Quadrature,
    centroids,
    depth_variance_ratio,
    depth_variance_slope,
    exposure,
    intersection_px,
    ln_absolute_scale,
    mean_depth_ratio,
    rays,
    scan_covariance,
    sensor_layers,
    whitening,
)
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.simulate import simulate
from nanobrag_torch.spread import node_covariance
from nanobrag_torch.tensors import as_tensor, unit
from tests import tolerances
from tests.nanobrag_torch.bragg_scene import HKL, LIKE, bragg
from tests.nanobrag_torch.scene import DEGREE, vector

WIDE = {"crystal_fields": {"mosaicity_deg": 0.1, "strain": 1e-3}, "beam_fields": {"bandwidth": 1e-3}}


def rms_error(found, expected):
    """Rms difference over the rms of what is expected."""
    return (torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected)).item()


# --- identities of docs/physics.md, section 5


def test_scaling_the_wavelength_and_the_cell_together_changes_nothing():
    still = bragg(0.05, **WIDE)
    crystal = replace(still.crystal, **{f"cell_{n}": 1.01 * getattr(still.crystal, f"cell_{n}") for n in "abc"})
    scaled = replace(still, crystal=crystal, beam=replace(still.beam, wavelength_A=1.01 * still.beam.wavelength_A))
    assert rms_error(scaled.closed(), still.closed()) < tolerances.INVARIANCE


def test_the_derivative_in_the_wavelength_is_that_in_the_cell():
    """λ∂λ = -(a∂a + b∂b + c∂c), at fixed N and F and without a B factor."""
    still = bragg(0.05, **WIDE)
    wavelength = still.beam.wavelength_A.clone().requires_grad_()
    cell = {n: LIKE + getattr(still.crystal, n) for n in ("cell_a", "cell_b", "cell_c")}
    cell = {n: value.requires_grad_() for n, value in cell.items()}
    image = replace(
        still, crystal=replace(still.crystal, **cell), beam=replace(still.beam, wavelength_A=wavelength)
    ).closed()
    chi2 = ((image - 100) ** 2 / (image.detach() + 9)).sum()
    numbers = [wavelength, *cell.values()]
    along = [g * v for g, v in zip(torch.autograd.grad(chi2, numbers), numbers, strict=True)]
    assert abs(along[0]) > 0
    assert abs(sum(along) / along[0]) < tolerances.INVARIANCE


def test_scaling_distance_origin_and_pixel_together_changes_nothing():
    """D∂D + p∂p + x∂x + y∂y = 0 for positions, and for solid angles too."""
    still = bragg(0.05, **WIDE)
    names = ("distance_mm", "pixel_size_mm", "origin_fast_mm", "origin_slow_mm")
    values = [(LIKE + getattr(still.detector[0], name)).requires_grad_() for name in names]
    image = replace(still, detector=(replace(still.detector[0], **dict(zip(names, values, strict=True))),)).closed()
    chi2 = ((image - 100) ** 2 / (image.detach() + 9)).sum()
    along = [g * v for g, v in zip(torch.autograd.grad(chi2, values), values, strict=True)]
    assert min(abs(term) for term in along) > 0
    assert abs(sum(along)) < tolerances.INVARIANCE * max(abs(term) for term in along)


def test_rotating_crystal_beam_and_detector_together_changes_nothing():
    still = bragg(0.05, **WIDE, panel_fields={"sensor_thickness_mm": 0.3, "sensor_mu_per_mm": 2.0})
    turn = rotation_from_vector(vector(0.7, -1.9, 0.4))
    turned = replace(
        still,
        crystal=replace(still.crystal, U=turn @ still.crystal.U),
        beam=replace(
            still.beam,
            direction=turn @ vector(*still.beam.direction),
            polarization_normal=turn @ vector(*still.beam.polarization_normal),
        ),
        detector=(
            replace(
                still.detector[0],
                fast_axis=turn @ still.detector[0].fast_axis,
                slow_axis=turn @ still.detector[0].slow_axis,
            ),
        ),
    )
    for scan in (None, ScanConfig(axis=(1.0, 0.2, 0.1), width_deg=0.2)):
        along = None if scan is None else replace(scan, axis=turn @ vector(*scan.axis))
        assert rms_error(turned.closed(scan=along), still.closed(scan=scan)) < tolerances.INVARIANCE


def test_a_panel_cut_in_two_changes_nothing():
    still = bragg(0.05, **WIDE)
    whole = still.detector[0]
    upper = replace(whole, shape=(10, 25))
    lower = replace(whole, shape=(15, 25), origin_slow_mm=whole.origin_slow_mm + 10 * whole.pixel_size_mm)
    cut = replace(still, detector=(upper, lower))
    assert rms_error(cut.closed(), still.closed()) < tolerances.INVARIANCE


def test_a_node_is_the_friedel_mate_of_the_crystal_with_all_axes_reversed():
    still = bragg(0.05, **WIDE)
    reversed_axes = replace(still, crystal=replace(still.crystal, U=-still.crystal.U))
    assert rms_error(reversed_axes.closed(hkl=-HKL), still.closed()) < tolerances.INVARIANCE


def test_memory_bounds_change_nothing():
    still = bragg(0.05, **WIDE)
    assert rms_error(still.closed(max_pairs=100), still.closed()) < tolerances.INVARIANCE


# --- against the sampled sum


def normal_rotations(count, rms_deg):
    """Rotations (n, 3, 3) whose vectors fill a normal distribution evenly."""
    uniform = torch.quasirandom.SobolEngine(3, scramble=True, seed=1).draw(count, dtype=torch.float64)
    return rotation_from_vector(torch.erfinv(2 * uniform - 1) * math.sqrt(2) * rms_deg * DEGREE)


@pytest.mark.parametrize("off_deg", [0.0, 0.15])
def test_mosaic_blocks_are_the_mean_over_many_domains(off_deg):
    eta = 0.15
    still = bragg(off_deg, {"mosaicity_deg": eta}, {"oversample": 6})
    explicit = replace(still.crystal, mosaicity_deg=0.0, mosaic_rotations=normal_rotations(512, eta))
    sampled = simulate(explicit, still.detector, still.beam, still.factors)
    closed = still.closed()
    assert rms_error(closed, sampled) < tolerances.DOMAINS_RELATIVE
    assert closed.sum() / sampled.sum() == pytest.approx(1, abs=tolerances.DOMAINS_RELATIVE)


@pytest.mark.parametrize("shape", ["gauss", "gauss_isotropic"])
def test_a_single_block_is_its_lattice_factor_in_every_shape_and_absolute_number(shape):
    fields = {"shape": shape} | ({"domain_size_A": 500.0} if shape == "gauss_isotropic" else {})
    still = bragg(0.02, fields, {"oversample": 6})
    sampled = simulate(still.crystal, still.detector, still.beam, still.factors)
    assert sampled.sum() > 0
    assert rms_error(still.closed(), sampled) < tolerances.NODE_WIDTH_RELATIVE


def test_bandwidth_and_divergence_are_the_mean_over_rays():
    light = {"bandwidth": 1.5e-3, "divergence_h_mrad": 0.8, "divergence_v_mrad": 0.5}
    # blocks so small that five directions and seven wavelengths merge
    still = bragg(0.03, {"N_cells": vector(14.0, 12.0, 10.0)}, {"oversample": 6}, light)
    sampled = simulate(still.crystal, still.detector, still.beam, still.factors)
    assert rms_error(still.closed(), sampled) < tolerances.NODE_WIDTH_RELATIVE


def test_depth_of_absorption_is_the_mean_over_layers():
    sensor = {"sensor_thickness_mm": 0.45, "sensor_mu_per_mm": 2.5, "pixel_size_mm": 0.1, "origin_fast_mm": 30.0}
    still = bragg(0.0, {"N_cells": vector(10.0, 9.0, 8.0)}, sensor | {"oversample": 3})

    def sampled(layers):
        panels = [replace(still.detector[0], depth_layers=layers)]
        return simulate(still.crystal, panels, still.beam, still.factors)

    # a layer absorbs at its near edge there, so that the error is in proportion to its thickness
    expected = 2 * sampled(64) - sampled(32)
    assert rms_error(still.closed(Quadrature(layers=4)), expected) < tolerances.NODE_WIDTH_RELATIVE
    assert rms_error(still.closed(), expected) < tolerances.ONE_LAYER_RELATIVE


def test_a_rotation_is_the_mean_over_its_steps():
    scan = ScanConfig(axis=(0.2, 1.0, 0.1), start_deg=-0.12, width_deg=0.3)
    still = bragg(0.0, {}, {"oversample": 6})
    steps = 60
    # left edges, so half a step later they are the middles
    stepped = replace(scan, steps=steps, start_deg=scan.start_deg + scan.width_deg / steps / 2)
    sampled = simulate(still.crystal, still.detector, still.beam, still.factors, scan=stepped)
    exact = still.closed(scan=scan)
    assert rms_error(exact, sampled) < tolerances.ROTATION_RELATIVE
    assert exact.sum() / sampled.sum() == pytest.approx(1, abs=tolerances.ROTATION_RELATIVE)


def test_the_exposure_along_a_path_is_that_of_quadrature():
    generator = torch.Generator().manual_seed(1)
    white, path = (3 * torch.randn(40, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    nodes, weights = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(80))
    moving = white - nodes[:, None, None] / 2 * path
    expected = (weights[:, None] / 2 * torch.exp(-0.5 * (moving**2).sum(-1))).sum(0)
    assert torch.allclose(exposure(white, path), expected, rtol=tolerances.LINE_INTEGRAL, atol=0)


def test_a_rotation_of_nothing_is_a_still_and_one_of_little_has_its_second_moment():
    still = bragg(0.05, **WIDE)
    assert rms_error(still.closed(scan=ScanConfig(width_deg=0.0)), still.closed()) < tolerances.INVARIANCE
    q = vector(0.1, 0.2, -0.3)[None]
    scan = ScanConfig(axis=(0.0, 0.0, 2.0), width_deg=0.1)
    path = torch.linalg.cross(vector(0, 0, 1), q[0]) * 0.1 * DEGREE
    assert torch.allclose(scan_covariance(scan, q)[0], torch.outer(path, path) / 12, rtol=tolerances.ROUNDING, atol=0)


def test_blocks_turn_with_the_crystal_during_a_rotation():
    """Half a turn into the scan the long axis of a block points elsewhere: the same crystal, turned beforehand."""
    scan = ScanConfig(axis=(0.2, 1.0, 0.1), start_deg=-20.1, width_deg=0.2)
    still = bragg(0.0, {"N_cells": vector(30.0, 20.0, 10.0)})
    back = rotation_from_vector(20.0 * DEGREE * unit(vector(*scan.axis)))
    before = replace(still, crystal=replace(still.crystal, U=back @ still.crystal.U))
    assert rms_error(before.closed(scan=scan), still.closed(scan=replace(scan, start_deg=-0.1))) < tolerances.INVARIANCE


def test_samples_are_refused():
    still = bragg()
    for record, name in (("beam", "source_wavelengths_A"), ("crystal", "mosaic_rotations")):
        given = replace(still, **{record: replace(getattr(still, record), **{name: torch.eye(3)[None]})})
        with pytest.raises(ValueError, match=f"{name} is set"):
            given.closed()


# --- where a node is seen


def node_on_the_sphere(off_deg):
    still = bragg(off_deg, **WIDE)
    q = HKL.double() @ reciprocal_basis(still.crystal, LIKE).T
    return q, node_covariance(still.crystal, still.beam, q), still


def on_the_sphere(q, covariance, beam):
    """Integral of the node's Gaussian over the Ewald sphere, 1/(1/Å), and the mean direction s1, by a fine grid."""
    found = centroids(q, covariance, beam)
    s1 = found.s1[0]
    u = unit(torch.linalg.cross(s1, vector(1, 0, 0)))
    v = torch.linalg.cross(s1, u)
    radius = 1 / beam.wavelength_A
    reach = 7 * torch.sqrt(torch.linalg.eigvalsh(covariance[0])[-1]) / radius
    steps = torch.linspace(-1, 1, 401, dtype=torch.float64) * reach
    a, b = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    rays = unit(s1 + a[:, None] * u + b[:, None] * v)
    offset = (rays - unit(as_tensor(beam.direction, LIKE))) * radius - q
    S = covariance[0]
    density = torch.exp(-0.5 * (offset * torch.linalg.solve(S, offset.T).T).sum(-1))
    density = density / torch.sqrt((2 * math.pi) ** 3 * torch.linalg.det(S))
    area = (radius * (steps[1] - steps[0])) ** 2 * (1 + a**2 + b**2) ** -1.5
    weight = density * area
    return weight.sum(), (weight[:, None] * rays).sum(0) / weight.sum()


@pytest.mark.parametrize("off_deg", [0.0, 0.08, -0.15])
def test_the_centroid_is_that_of_the_nodes_gaussian_on_the_sphere(off_deg):
    q, covariance, still = node_on_the_sphere(off_deg)
    _, mean = on_the_sphere(q, covariance, still.beam)
    found = centroids(q, covariance, still.beam).s1[0]
    spread = torch.sqrt(torch.linalg.eigvalsh(covariance[0])[-1]) * still.beam.wavelength_A
    assert torch.linalg.vector_norm(unit(mean) - found) < tolerances.CENTROID_WIDTHS * spread


@pytest.mark.parametrize("off_deg", [0.0, 0.08, -0.15])
def test_partiality_is_the_nodes_gaussian_integrated_over_the_sphere(off_deg):
    q, covariance, still = node_on_the_sphere(off_deg)
    density, _ = on_the_sphere(q, covariance, still.beam)
    found = centroids(q, covariance, still.beam)
    formula = torch.exp(-(found.k**2) / 2) / torch.sqrt(2 * math.pi * found.width**2)
    assert formula.item() == pytest.approx(density.item(), rel=tolerances.PARTIALITY_RELATIVE)


def test_a_spots_sum_is_its_partiality():
    """Photons of a spot: G |F|² Ω P over the pixels is G |F|² P λ² times the density on the sphere."""
    still = bragg(0.05, {"mosaicity_deg": 0.1}, {"shape": (41, 41)}, {"polarization_fraction": None})
    q = HKL.double() @ reciprocal_basis(still.crystal, LIKE).T
    found = centroids(q, node_covariance(still.crystal, still.beam, q), still.beam)
    density = torch.exp(-(found.k[0] ** 2) / 2) / torch.sqrt(2 * math.pi * found.width[0] ** 2)
    G = torch.exp(ln_absolute_scale(still.crystal, still.beam, LIKE)) * 50.0**2
    expected = G * density * still.beam.wavelength_A**2
    assert still.closed().sum().item() == pytest.approx(expected.item(), rel=tolerances.NODE_WIDTH_RELATIVE)


@pytest.mark.parametrize("distance_mm", [60.0, -60.0])
def test_a_ray_is_recorded_where_it_came_from(distance_mm):
    """Rays to pixels, through a thick oblique sensor, and back to pixels."""
    sensor = {
        "pixel_size_mm": 0.1,
        "sensor_thickness_mm": 0.45,
        "sensor_mu_per_mm": 2.5,
        "distance_mm": distance_mm,
        "origin_fast_mm": 40.0,
    }
    still = bragg(0.0, {}, sensor)
    panels = stack_panels(still.detector, LIKE)
    pixels = still.pixels
    layer = sensor_layers(panels, 1)[0]
    slow, fast = pixels.slow + 0.5, pixels.fast + 0.5
    found = rays(panels, still.beam, pixels.panel, slow, fast, layer, 1)
    s1 = unit(found.q * still.beam.wavelength_A + unit(vector(*still.beam.direction)))
    back = intersection_px(panels, pixels.panel, s1)
    assert (back - torch.stack([fast, slow], -1)).abs().max() < tolerances.PARALLAX_PX


def test_parallax_moves_a_spot_outward_and_can_be_switched_off():
    sensor = {"sensor_thickness_mm": 0.45, "sensor_mu_per_mm": 2.5, "origin_fast_mm": 40.0}
    thick, flat = bragg(0.0, {}, sensor), bragg(0.0, {}, sensor | {"parallax": False})
    thin = bragg(0.0, {}, {"origin_fast_mm": 40.0})
    s1 = unit(pixel_positions(stack_panels(thin.detector, LIKE), torch.zeros(1, dtype=int), vector(3.0), vector(4.0)))
    at = [
        intersection_px(stack_panels(s.detector, LIKE), torch.zeros(1, dtype=int), s1)[0] for s in (thin, thick, flat)
    ]
    assert torch.allclose(at[2], at[0])
    assert 0.5 < at[1][0] - at[0][0] < 4.5


# --- pieces


def test_whitening_is_the_inverse_of_the_covariance():
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(50, 3, 3, generator=generator, dtype=torch.float64) * 1e-3
    S = root @ root.transpose(1, 2)
    W, ln_norm = whitening(S)
    identity = W @ S @ W.transpose(1, 2)
    assert (identity - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-9
    expected = -1.5 * math.log(2 * math.pi) - 0.5 * torch.logdet(S)
    assert torch.allclose(ln_norm, expected, rtol=1e-12)


@pytest.mark.parametrize("x", [0.0, 1e-3, 0.29, 0.31, 2.0, 9.0])
def test_mean_and_variance_of_the_depth_of_absorption_are_those_of_quadrature(x):
    total = quad(lambda z: math.exp(-x * z), 0, 1, epsrel=1e-13)[0]
    mean = quad(lambda z: z * math.exp(-x * z), 0, 1, epsrel=1e-13)[0] / total
    variance = quad(lambda z: (z - mean) ** 2 * math.exp(-x * z), 0, 1, epsrel=1e-13)[0] / total
    assert mean_depth_ratio(vector(x)).item() == pytest.approx(mean, rel=1e-12)
    assert depth_variance_ratio(vector(x)).item() == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("function", [mean_depth_ratio, depth_variance_ratio])
def test_series_and_closed_form_of_the_depth_meet(function):
    x = vector(_THIN * (1 - 1e-15), _THIN * (1 + 1e-15)).requires_grad_()
    value = function(x)
    assert (value[0] / value[1] - 1).abs() < 10 * tolerances.ROUNDING
    slope = torch.autograd.grad(value.sum(), x)[0]
    assert (slope[0] / slope[1] - 1).abs() < 1e-10
    assert torch.autograd.gradcheck(function, torch.zeros(1, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("x", [0.0, 1e-3, 0.29, 0.31, 2.0, 9.0])
def test_the_variance_of_the_depth_follows_the_path_by_its_derivative(x):
    at = vector(x).requires_grad_()
    (slope,) = torch.autograd.grad(depth_variance_ratio(at), at)
    assert depth_variance_slope(vector(x)).item() == pytest.approx(slope.item(), rel=1e-9)


def test_layers_absorb_equally_and_together_what_the_sensor_does():
    still = bragg(0.0, {}, {"sensor_thickness_mm": 0.45, "sensor_mu_per_mm": 2.5})
    panels = stack_panels(still.detector, LIKE)
    layers = sensor_layers(panels, 3)
    fractions = [(torch.exp(-2.5 * l.near) - torch.exp(-2.5 * l.far)).item() for l in layers]
    assert fractions == pytest.approx([-math.expm1(-2.5 * 0.45) / 3] * 3, rel=1e-12)
    assert layers[0].near.item() == 0
    assert layers[-1].far.item() == 0.45


def test_more_sub_pixels_change_a_spot_less_than_the_pixels_are_wrong():
    """Two sub-pixels along an edge and the variance that is left: the choice of the refinement, by its error."""
    still = bragg(0.02, {"mosaicity_deg": 0.05}, {"pixel_size_mm": 0.1, "shape": (11, 11)})
    fine = still.closed(Quadrature(oversample=8))
    errors = [rms_error(still.closed(Quadrature(oversample=n)), fine) for n in (1, 2, 4)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[1] < tolerances.TWO_SUB_PIXELS_RELATIVE
