import pytest
import torch

from nanobrag_torch.source import (
    SampledRange,
    beam_sources,
    gaussian_beam,
    polarization_normals,
    sampled_beam,
    transverse_axes,
)
from tests import tolerances
from tests.nanobrag_torch.scene import beam, vector

LIKE = torch.zeros((), dtype=torch.float64)
SKEW = {"direction": (0.1, -0.2, -1.0), "polarization_normal": (0.1, 1.0, 0.2)}


def test_a_plain_beam_is_one_ray_of_unit_length():
    sources = beam_sources(beam(direction=(0.0, 0.0, -2.0)), LIKE)
    assert torch.equal(sources.directions, vector(0, 0, -1)[None])
    assert sources.wavelengths.tolist() == [1.1]
    assert sources.weights.tolist() == [1.0]


def test_gaussian_samples_have_the_mean_and_the_widths_of_the_beam():
    wide = beam(bandwidth=0.003, divergence_h_mrad=0.4, divergence_v_mrad=0.2, **SKEW)
    sources = beam_sources(wide, LIKE)
    weights = sources.weights / sources.weights.sum()
    strain = sources.wavelengths / 1.1 - 1
    assert (weights @ strain).abs() < tolerances.ROUNDING
    assert (weights @ strain**2).sqrt().item() == pytest.approx(0.003, rel=tolerances.QUADRATURE)
    for axis, width in zip(transverse_axes(wide, LIKE), (0.4e-3, 0.2e-3), strict=True):
        across = sources.directions @ axis
        assert (weights @ across).abs() < tolerances.ROUNDING
        # A direction is normalised: its component is the sine of the angle, not the tangent.
        assert (weights @ across**2).sqrt().item() == pytest.approx(width, rel=tolerances.SMALL_ANGLE_SQUARED)


def test_a_width_takes_as_many_samples_as_it_is_given():
    assert len(beam_sources(beam(bandwidth=0.01), LIKE).weights) == 7
    more = gaussian_beam(beam(bandwidth=0.01, divergence_v_mrad=1.0), LIKE, bandwidth_nodes=11, divergence_nodes=3)
    assert len(more.source_weights) == 33
    assert (more.bandwidth, more.divergence_v_mrad) == (0.0, 0.0)


def test_explicit_samples_take_the_place_of_the_widths():
    given = beam(bandwidth=0.1, source_wavelengths_A=vector(1.0, 1.2), source_weights=vector(1.0, 3.0))
    sources = beam_sources(given, LIKE)
    assert sources.wavelengths.tolist() == [1.0, 1.2]
    assert sources.weights.tolist() == [1.0, 3.0]
    assert torch.equal(sources.directions, vector(0, 0, -1).expand(2, 3))


def test_the_normal_of_every_ray_keeps_its_e_vector_closest_to_that_of_the_beam():
    wide = beam(divergence_h_mrad=20.0, divergence_v_mrad=20.0, **SKEW)
    sources = beam_sources(wide, LIKE)
    e0, _ = transverse_axes(wide, LIKE)
    e = torch.linalg.cross(polarization_normals(wide, sources), sources.directions)
    expected = e0 - (sources.directions @ e0)[:, None] * sources.directions
    assert (e - expected).abs().max() < tolerances.ROUNDING


@pytest.mark.parametrize(
    ("sampled", "expected"),
    [
        (SampledRange(), [0.0]),
        (SampledRange(4.0), [-2.0, 2.0]),
        (SampledRange(4.0, steps=5), [-2.0, -1.0, 0.0, 1.0, 2.0]),
        (SampledRange(1.0, step=0.3), [-0.5, -0.2, 0.1, 0.4]),
        (SampledRange(0.0, steps=5), [0.0]),
    ],
)
def test_a_range_is_sampled_as_nanobragg_reads_its_flags(sampled, expected):
    assert sampled.values().tolist() == pytest.approx(expected)


def test_a_round_beam_has_no_corners_and_a_square_one_has():
    side = SampledRange(4.0, steps=5)
    assert len(sampled_beam(beam(), side, side, SampledRange()).source_weights) == 13
    assert len(sampled_beam(beam(), side, side, SampledRange(), round_divergence=False).source_weights) == 25
    assert len(sampled_beam(beam(), side, SampledRange(), SampledRange(0.02, 3)).source_weights) == 15


def test_horizontal_and_vertical_angles_move_the_beam_along_and_across_its_e_vector():
    e, across = transverse_axes(beam(**SKEW), LIKE)
    narrow = sampled_beam(beam(**SKEW), SampledRange(2.0), SampledRange(), SampledRange()).source_directions
    assert (narrow @ across).abs().max() < tolerances.ROUNDING
    assert torch.allclose((narrow @ e).abs(), vector(1e-3), rtol=tolerances.SMALL_ANGLE_SQUARED)
    upright = sampled_beam(beam(**SKEW), SampledRange(), SampledRange(2.0), SampledRange()).source_directions
    assert (upright @ e).abs().max() < tolerances.ROUNDING
