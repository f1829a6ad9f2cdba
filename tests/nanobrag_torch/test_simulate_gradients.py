"""Derivatives of the sampled sum in every number of the records, against extrapolated differences."""

import dataclasses

import pytest
import torch

from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, ScanConfig, override
from nanobrag_torch.mosaic import seeded_rotations
from nanobrag_torch.panel import all_pixels
from nanobrag_torch.simulate import simulate
from nanobrag_torch.tensors import as_tensor
from tests import tolerances
from tests.nanobrag_torch.scene import beam, crystal, factors, panel, vector

LIKE = torch.zeros((), dtype=torch.float64)
SCENE = {
    "crystal": crystal(mosaicity_deg=0.2, mosaic_domains=3, b_factor_A2=5.0),
    "detector": panel(sensor_thickness_mm=0.45, sensor_mu_per_mm=2.2, shape=(8, 6), oversample=1, origin_fast_mm=12.0),
    "beam": beam(),
    "scan": ScanConfig(axis=(0.2, 1.0, 0.1), start_deg=-0.2, width_deg=0.5, steps=2),
}
EXPLICIT = {
    "source_directions": vector(0.01, 0, -1, 0, 0.005, -1).reshape(2, 3),
    "source_wavelengths_A": vector(1.1, 1.11),
    "source_weights": vector(1.0, 2.0),
}

#: Fields with the values that they are differentiated at (None: as the scene has them), and what else must be set.
CASES = {
    **{("crystal", f"cell_{name}"): (None, {}) for name in ("a", "b", "c", "alpha", "beta", "gamma")},
    ("crystal", "U"): (None, {}),
    ("crystal", "misset_deg"): (None, {}),
    ("crystal", "N_cells"): (None, {}),
    ("crystal", "domain_size_A"): (180.0, {}),
    ("crystal", "fudge"): (None, {}),
    ("crystal", "mosaicity_deg"): (None, {}),
    ("crystal", "mosaic_rotations"): (seeded_rotations(0.4, 2, 1), {}),
    ("crystal", "b_factor_A2"): (None, {}),
    **{
        ("detector", name): (None, {})
        for name in (
            *("fast_axis", "slow_axis", "distance_mm", "origin_fast_mm", "origin_slow_mm"),
            *("pixel_size_mm", "sensor_thickness_mm", "sensor_mu_per_mm"),
        )
    },
    **{
        ("beam", name): (None, {})
        for name in ("wavelength_A", "direction", "polarization_normal", "polarization_fraction", "fluence")
    },
    ("beam", "bandwidth"): (0.002, {}),
    ("beam", "divergence_h_mrad"): (0.5, {}),
    ("beam", "divergence_v_mrad"): (0.3, {}),
    **{("beam", name): (value, EXPLICIT) for name, value in EXPLICIT.items()},
    **{("scan", name): (None, {}) for name in ("axis", "start_deg", "width_deg")},
}

#: Fields that are no numbers, and spreads that only the closed form has.
WITHOUT_DERIVATIVE = {
    CrystalConfig: {"shape", "mosaic_domains", "mosaic_seed", "strain", "size_covariance", "mosaic_covariance_deg2"},
    DetectorConfig: {"shape", "curved", "parallax", "oversample", "depth_layers", "point_pixel", "point_spread_mm"},
    BeamConfig: set(),
    ScanConfig: {"steps"},
}


def total(scene, sf, **options):
    """A sum over the image that weighs every pixel differently."""
    pixels = all_pixels([scene["detector"]])
    image = simulate(
        scene["crystal"], scene["detector"], scene["beam"], sf, scan=scene["scan"], pixels=pixels, **options
    )
    weights = 1 + torch.sin(torch.arange(len(image), dtype=torch.float64))
    return (weights * image).sum()


def extrapolated(f, value, direction, step):
    """The derivative of f along a direction: central differences of two steps, Richardson's extrapolation."""

    def difference(h):
        return (f(value + h * direction) - f(value - h * direction)) / (2 * h)

    return (4 * difference(step / 2) - difference(step)) / 3


def relative_error(f, value, step=1e-3):
    value = value.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(value), value)
    generator = torch.Generator().manual_seed(1)
    # A step of a thousandth of what the number is, or of 1 where it is zero, along a random direction of a vector.
    direction = torch.rand(value.shape, dtype=torch.float64, generator=generator) + 0.5
    direction = direction * torch.where(value == 0, 1.0, value.detach().abs().mean())
    analytic = (gradient * direction).sum()
    assert torch.isfinite(gradient).all()
    assert analytic != 0
    with torch.no_grad():
        differences = [extrapolated(f, value.detach(), direction, step / 4**k) for k in range(3)]
    return min(abs((analytic - difference) / analytic).item() for difference in differences)


@pytest.mark.parametrize(("record", "field"), CASES)
def test_the_derivative_is_that_of_extrapolated_differences(record, field):
    value, others = CASES[record, field]
    scene = SCENE | {record: override(SCENE[record], others)}
    start = as_tensor(getattr(scene[record], field) if value is None else value, LIKE)

    def f(changed):
        return total(scene | {record: override(scene[record], {field: changed})}, factors())

    assert relative_error(f, start) < tolerances.DERIVATIVE_RELATIVE


def test_every_number_of_the_records_has_a_case():
    for record in SCENE:
        kind = type(SCENE[record])
        names = {field.name for field in dataclasses.fields(kind)}
        cases = {name for owner, name in CASES if owner == record}
        assert names == cases | WITHOUT_DERIVATIVE[kind]


@pytest.mark.parametrize("interpolate", [False, True])
def test_the_derivative_in_the_amplitudes(interpolate):
    def f(grid):
        return total(SCENE, dataclasses.replace(factors(), grid=grid), interpolate=interpolate)

    assert relative_error(f, factors().grid) < tolerances.DERIVATIVE_RELATIVE


@pytest.mark.parametrize("shape", ["square", "round", "gauss_isotropic"])
def test_other_shapes_have_derivatives_too(shape):
    def f(a):
        fields = {"shape": shape, "cell_a": a, "domain_size_A": 150.0 if shape == "gauss_isotropic" else None}
        return total(SCENE | {"crystal": override(SCENE["crystal"], fields)}, factors())

    assert relative_error(f, vector(31.0)[0], step=1e-4) < tolerances.DERIVATIVE_RELATIVE


def test_a_peak_exactly_on_a_node_has_derivatives():
    """The direct beam is the node 000 of every crystal: the pixel that it meets is a singular point of every shape."""
    centred = DetectorConfig((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), 60.0, -0.5, -0.5, 1.0, (1, 1), oversample=1)

    def f(N):
        c = crystal(shape="square", N_cells=N)
        return simulate(c, centred, beam(), factors()).sum()

    assert relative_error(f, vector(5.0, 6.0, 7.0)) < tolerances.DERIVATIVE_RELATIVE
