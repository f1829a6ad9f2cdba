from dataclasses import replace

import pytest
import torch

from nanobrag_torch.conventions import (
    AXES,
    Mounting,
    automatic_cells,
    beam_along,
    cell_and_orientation,
    default_orientation,
    fluence_per_m2,
    mounted_detector,
    rotation_xyz,
)
from nanobrag_torch.lattice import reciprocal_matrix
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.tensors import as_tensor, dot, unit
from tests import tolerances
from tests.nanobrag_torch.scene import vector

LIKE = torch.zeros((), dtype=torch.float64)
CELL = vector(31.0, 36.0, 41.0, 87.0, 104.0, 95.0)
PX, SHAPE = 0.1, (300, 500)
SLOW_MM, FAST_MM = 30.0, 50.0
TURNED = {"rotation_deg": (3.0, -5.0, 7.0), "twotheta_deg": 12.0}


def mounting(convention, **fields):
    return Mounting(**({"convention": convention, "pixel_size_mm": PX, "shape": SHAPE, "distance_mm": 100.0} | fields))


def beam_spot(m):
    """Where the beam meets the panel, mm along fast and slow from the outer corner."""
    panel = stack_panels([mounted_detector(m, LIKE)], LIKE)
    b = unit(as_tensor((m.axes or AXES[m.convention]).beam, LIKE))
    spot = b * panel.distance[0] / dot(b, panel.normal[0]) - panel.origin[0]
    return [dot(spot, panel.fast[0]).item(), dot(spot, panel.slow[0]).item()]


@pytest.mark.parametrize("turned", [{}, TURNED], ids=["upright", "turned"])
@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("MOSFLM", [21.05, 11.05]),
        ("DENZO", [21.0, 11.0]),
        ("ADXV", [11.0, SLOW_MM - 21.0]),
        ("CUSTOM", [11.0, 21.0]),
    ],
)
def test_a_given_beam_centre_is_where_the_beam_meets_the_panel_however_it_is_turned(convention, expected, turned):
    assert beam_spot(mounting(convention, beam_centre_mm=(11.0, 21.0), **turned)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("MOSFLM", [(FAST_MM + PX) / 2 + PX / 2, (SLOW_MM + PX) / 2 + PX / 2]),
        ("DENZO", [(FAST_MM + PX) / 2, (SLOW_MM + PX) / 2]),
        ("ADXV", [(FAST_MM + PX) / 2, SLOW_MM - (SLOW_MM - PX) / 2]),
        ("XDS", [FAST_MM / 2, SLOW_MM / 2]),
        ("DIALS", [FAST_MM / 2, SLOW_MM / 2]),
        ("CUSTOM", [FAST_MM / 2, SLOW_MM / 2]),
    ],
)
def test_without_a_beam_centre_the_convention_has_its_own(convention, expected):
    assert beam_spot(mounting(convention)) == pytest.approx(expected)


@pytest.mark.parametrize("convention", ["XDS", "DIALS"])
def test_an_origin_in_pixels_counts_from_the_first_pixels_centre_and_other_centres_are_left_aside(convention):
    m = mounting(convention, origin_px=(101.5, 33.5), beam_centre_mm=(1.0, 2.0), close_mm=(3.0, 4.0))
    assert beam_spot(m) == pytest.approx([10.1, 3.3])


@pytest.mark.parametrize("convention", ["MOSFLM", "DENZO", "ADXV"])
def test_conventions_of_the_beam_leave_the_origin_aside(convention):
    other = mounting(convention, origin_px=(7.0, 8.0), close_mm=(3.0, 4.0), **TURNED)
    assert beam_spot(other) == beam_spot(mounting(convention, **TURNED))


def test_turning_about_the_sample_keeps_the_closest_point():
    m = mounting("XDS", origin_px=(101.5, 33.5), **TURNED)
    panel = mounted_detector(m, LIKE)
    upright = mounted_detector(replace(m, rotation_deg=(0.0, 0.0, 0.0), twotheta_deg=0.0), LIKE)
    ratio = rotation_xyz(TURNED["rotation_deg"], LIKE)[2, 2]
    assert panel.distance_mm.item() == pytest.approx(100.0 * ratio.item())
    assert panel.origin_fast_mm.item() == pytest.approx(upright.origin_fast_mm.item())
    assert panel.origin_slow_mm.item() == pytest.approx(upright.origin_slow_mm.item())


def test_the_distance_along_the_normal_is_exact_where_it_is_given():
    m = mounting("DIALS", distance_mm=None, close_distance_mm=88.0, **TURNED)
    assert mounted_detector(m, LIKE).distance_mm.item() == pytest.approx(88.0)


def test_adxv_has_its_normal_against_fast_x_slow():
    assert mounted_detector(mounting("ADXV"), LIKE).distance_mm.item() == pytest.approx(-100.0)
    assert mounted_detector(mounting("MOSFLM"), LIKE).distance_mm.item() == pytest.approx(100.0)


def test_custom_turns_about_what_it_is_told():
    beam_pivot = mounting("CUSTOM", beam_centre_mm=(11.0, 21.0), **TURNED)
    assert beam_spot(beam_pivot) == pytest.approx([11.0, 21.0])
    about_sample = mounted_detector(replace(beam_pivot, pivot="sample"), LIKE)
    assert about_sample.origin_fast_mm.item() == pytest.approx(-11.0)
    assert about_sample.origin_slow_mm.item() == pytest.approx(-21.0)


@pytest.mark.parametrize("convention", AXES)
def test_the_e_vector_of_the_beam_is_that_of_the_convention(convention):
    axes = AXES[convention]
    beam = beam_along(axes, 1.0, 0.9, LIKE)
    e = torch.linalg.cross(beam.polarization_normal, beam.direction)
    assert (e - as_tensor(axes.polarization, LIKE)).abs().max() < tolerances.ROUNDING
    assert beam.polarization_fraction == pytest.approx(0.95)
    assert beam_along(axes, 1.0, None, LIKE).polarization_fraction is None


def test_the_default_setting_has_a_star_along_x_and_b_star_in_the_xy_plane():
    U = default_orientation(CELL)
    A = U @ reciprocal_matrix(CELL)
    assert torch.allclose(U @ U.T, torch.eye(3, dtype=torch.float64), atol=tolerances.ROUNDING)
    assert torch.linalg.det(U) > 0
    assert A[[1, 2, 2], [0, 0, 1]].abs().max() < tolerances.ROUNDING
    assert (A.diagonal() > 0).all()


def test_missetting_angles_turn_about_x_then_y_then_z():
    quarter = rotation_xyz((90.0, 90.0, 0.0), LIKE)
    assert torch.allclose(quarter @ vector(0, 1, 0), vector(1, 0, 0), atol=tolerances.ROUNDING)
    assert torch.allclose(
        rotation_xyz((0.0, 0.0, 90.0), LIKE) @ vector(1, 0, 0), vector(0, 1, 0), atol=tolerances.ROUNDING
    )


def test_a_matrix_gives_back_the_cell_and_the_orientation_that_made_it():
    U = rotation_xyz((20.0, -50.0, 110.0), LIKE)
    cell, found = cell_and_orientation(U @ reciprocal_matrix(CELL))
    assert (cell / CELL - 1).abs().max() < 10 * tolerances.ROUNDING
    assert (found - U).abs().max() < 10 * tolerances.ROUNDING


def test_a_left_handed_matrix_is_refused():
    with pytest.raises(ValueError, match="left-handed or flat"):
        cell_and_orientation(-reciprocal_matrix(CELL))


def test_a_sample_is_as_many_cells_as_it_takes_and_the_beam_cuts_it_across():
    assert automatic_cells(CELL, (1e-5, 1e-5, 1e-5)).tolist() == [4.0, 3.0, 3.0]
    assert automatic_cells(CELL, (1e-5, 1e-5, 1e-5), beam_size_mm=5e-6).tolist() == [4.0, 2.0, 2.0]


def test_fluence_is_photons_over_area():
    assert fluence_per_m2(1e12, 2.0, 0.1) == pytest.approx(2e20)


def test_a_mounting_is_differentiable_in_what_holds_the_detector():
    def place(distance, x, rotation, twotheta):
        m = mounting(
            "MOSFLM", distance_mm=distance, beam_centre_mm=(x, None), rotation_deg=rotation, twotheta_deg=twotheta
        )
        panel = stack_panels([mounted_detector(m, LIKE)], LIKE)
        return panel.origin, panel.fast, panel.slow

    arguments = [vector(100.0)[0], vector(11.0)[0], vector(0.0, 0.0, 0.0), vector(0.0)[0]]
    arguments = [argument.requires_grad_() for argument in arguments]
    assert torch.autograd.gradcheck(place, arguments)
    gradients = torch.autograd.grad(sum(out.sum() for out in place(*arguments)), arguments)
    assert all((gradient != 0).any() for gradient in gradients)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"convention": "HKL"}, "convention is 'HKL': expected one of MOSFLM"),
        ({"pivot": "goniometer"}, "expected beam or sample"),
        ({"distance_mm": None}, "the detector has no distance"),
    ],
)
def test_a_mounting_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        mounting(**({"convention": "MOSFLM"} | fields))
