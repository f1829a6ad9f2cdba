"""DB-AT-026: the configs are dxtbx's models, number for number, and go back into them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("dxtbx", reason="dxtbx is not installed")

from cctbx import sgtbx, uctbx
from dxtbx.model import Crystal, DetectorFactory, MosaicCrystalSauter2014, ParallaxCorrectedPxMmStrategy

from dbex.models import (
    create_beam_config,
    create_crystal_config,
    create_detector_config,
    free_cell_parameters,
    to_dxtbx_beam,
    to_dxtbx_crystal,
    to_dxtbx_detector,
)
from nanobrag_torch.config import override
from nanobrag_torch.lattice import reciprocal_basis
from nanobrag_torch.panel import pixel_positions, stack_panels
from tests.reports import acceptance_report
from tests.tolerances import A_MATRIX_ABSOLUTE, MODEL_ROUND_TRIP, PIXEL_POSITION_MM

LIKE = torch.zeros((), dtype=torch.float64)

#: A space group of each crystal system, a cell of it, and the numbers of the cell that are free.
SYSTEMS = {
    "triclinic": ("P 1", (27.4, 32.1, 34.5, 88.8, 71.6, 68.2), ("a", "b", "c", "alpha", "beta", "gamma")),
    "monoclinic": ("P 1 21 1", (40.1, 52.3, 61.7, 90, 104.3, 90), ("a", "b", "c", "beta")),
    "orthorhombic": ("P 21 21 21", (34.1, 45.2, 98.9, 90, 90, 90), ("a", "b", "c")),
    "tetragonal": ("P 43 21 2", (79.1, 79.1, 37.9, 90, 90, 90), ("a", "c")),
    "rhombohedral": ("R 3 :R", (56.2, 56.2, 56.2, 81.3, 81.3, 81.3), ("a", "alpha")),
    "hexagonal": ("P 61 2 2", (93.4, 93.4, 131.1, 90, 90, 120), ("a", "c")),
    "cubic": ("I 2 3", (78.2, 78.2, 78.2, 90, 90, 90), ("a",)),
}
OTHER_SETTINGS = {
    "P 1 1 21": ("a", "b", "c", "gamma"),
    "P 21 1 1": ("a", "b", "c", "alpha"),
    "I 1 2 1": ("a", "b", "c", "beta"),
    "R 3 :H": ("a", "c"),
    "P 31 2 1": ("a", "c"),
    "F 4 3 2": ("a",),
}


def crystal_of(system, kind=Crystal):
    symbol, cell, _ = SYSTEMS[system]
    F = np.asarray(uctbx.unit_cell(cell).orthogonalization_matrix()).reshape(3, 3)
    rotation, upper = np.linalg.qr(np.random.default_rng(len(system)).normal(size=(3, 3)))
    rotation *= np.sign(np.diag(upper)) * np.sign(np.linalg.det(rotation) * np.prod(np.sign(np.diag(upper))))
    return kind(*(rotation @ F).T.tolist(), space_group=sgtbx.space_group_info(symbol).group())


def basis(config):
    return reciprocal_basis(config, LIKE).numpy()


class TestDB_AT_026_Geometry:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_db_at_026_reciprocal_basis_is_that_of_dxtbx(self, system):
        crystal = crystal_of(system)
        with acceptance_report("DB-AT-026", f"A_{system}", tolerances={"A": A_MATRIX_ABSOLUTE}) as values:
            config = create_crystal_config(crystal)
            values["space_group"] = str(crystal.get_space_group().info())
            for name, ours, theirs in (
                ("U", config.U, crystal.get_U()),
                ("B", basis(replace(config, U=torch.eye(3))), crystal.get_B()),
                ("A", basis(config), crystal.get_A()),
            ):
                error = np.abs(np.asarray(ours).ravel() - np.asarray(theirs)).max()
                values[f"largest difference of {name}"] = error
                assert error < A_MATRIX_ABSOLUTE

    def test_db_at_026_shipped_crystal(self, still, shipped):
        with acceptance_report(
            "DB-AT-026", "A_shipped", tolerances={"A": A_MATRIX_ABSOLUTE}, inputs=[shipped.expt]
        ) as values:
            error = np.abs(basis(still.crystal).ravel() - np.asarray(still.experiment.crystal.get_A())).max()
            values["largest difference of A"] = error
            assert error < A_MATRIX_ABSOLUTE

    def test_db_at_026_pixels_stand_where_dxtbx_has_them(self, still, shipped):
        panel, config = still.experiment.detector[0], still.detector[0]
        with acceptance_report(
            "DB-AT-026", "pixels_shipped", tolerances={"mm": PIXEL_POSITION_MM}, inputs=[shipped.expt]
        ) as values:
            values["largest difference, mm"] = error = position_error(config, panel)
            assert error < PIXEL_POSITION_MM


def position_error(config, panel):
    """Largest distance between our pixels and dxtbx's, without parallax, over corners, edges and the middle."""
    slow, fast = config.shape
    xy = torch.tensor([(x, y) for x in (0, 0.5, fast / 2, fast) for y in (0, 0.5, slow / 3, slow)], dtype=LIKE.dtype)
    ours = pixel_positions(stack_panels([config], LIKE), torch.zeros(len(xy), dtype=torch.long), xy[:, 1], xy[:, 0])
    size = panel.get_pixel_size()[0]
    theirs = np.array([panel.get_lab_coord((x * size, y * size)) for x, y in xy.tolist()])
    return np.abs(ours.numpy() - theirs).max()


@pytest.mark.parametrize("setting", OTHER_SETTINGS)
def test_free_numbers_of_a_cell_in_other_settings(setting):
    names, _ = free_cell_parameters(sgtbx.space_group_info(setting))
    assert names == tuple(f"cell_{name}" for name in OTHER_SETTINGS[setting])


@pytest.mark.parametrize("system", SYSTEMS)
def test_free_numbers_of_a_cell_are_those_of_its_crystal_system(system):
    symbol, cell, expected = SYSTEMS[system]
    names, rows = free_cell_parameters(sgtbx.space_group_info(symbol).group(), cell)
    assert names == tuple(f"cell_{name}" for name in expected)
    assert set(np.unique(rows)) <= {0.0, 1.0}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_step_along_the_free_numbers_stays_in_the_crystal_system(system):
    symbol, cell, _ = SYSTEMS[system]
    group = sgtbx.space_group_info(symbol).group()
    _, rows = free_cell_parameters(group, cell)
    moved = np.asarray(cell) + rows @ np.linspace(0.3, 0.7, rows.shape[1])
    assert group.is_compatible_unit_cell(uctbx.unit_cell(moved.tolist()), 1e-9, 1e-9)


def test_a_primitive_setting_of_a_centred_cell_keeps_its_constraint_to_first_order():
    info = sgtbx.space_group_info("I 4 2 2").primitive_setting()
    to_primitive = sgtbx.space_group_info("I 4 2 2").change_of_basis_op_to_primitive_setting()
    cell = uctbx.unit_cell((80, 80, 38, 90, 90, 90)).change_basis(to_primitive).parameters()
    longer = uctbx.unit_cell((80 + 1e-4, 80 + 1e-4, 38, 90, 90, 90)).change_basis(to_primitive).parameters()
    names, rows = free_cell_parameters(info, cell)
    step = (np.array(longer) - cell) / 1e-4
    chosen = step[[("a", "b", "c", "alpha", "beta", "gamma").index(name[5:]) for name in names]]
    assert len(names) == 2
    np.testing.assert_allclose(rows @ chosen, step, atol=1e-4)


def panel_of(distance_sign=-1.0, strategy=True):
    """A panel that is tilted, shifted and not centred; its normal points away from the crystal, or back to it."""
    a, b = np.radians((12.0, 7.0))
    fast = np.array([np.cos(a), np.sin(a), 0.0])
    slow = distance_sign * np.array([-np.sin(a) * np.cos(b), np.cos(a) * np.cos(b), np.sin(b)])
    detector = DetectorFactory.make_detector(
        "SENSOR_PAD", fast.tolist(), slow.tolist(), [-40.0, 38.0, -150.0], (0.1, 0.1), (700, 600), (0, 1e6)
    )
    detector[0].set_thickness(0.45)
    detector[0].set_material("Si")
    detector[0].set_mu(3.83)
    if strategy:
        detector[0].set_px_mm_strategy(ParallaxCorrectedPxMmStrategy(3.83, 0.45))
    return detector[0]


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_tilted_panel_keeps_the_sign_of_its_distance(sign, still):
    panel = panel_of(sign)
    config = create_detector_config(panel, still.experiment.beam)
    assert config.distance_mm == pytest.approx(panel.get_directed_distance(), abs=PIXEL_POSITION_MM)
    assert np.sign(config.distance_mm) == -sign
    assert position_error(config, panel) < PIXEL_POSITION_MM


@pytest.mark.parametrize("parallax", [True, False])
def test_parallax_is_corrected_where_dxtbx_corrects_it(parallax, still):
    config = create_detector_config(panel_of(strategy=parallax), still.experiment.beam)
    assert (config.parallax, config.sensor_thickness_mm, config.sensor_mu_per_mm) == (parallax, 0.45, 3.83)


def test_a_sensor_without_absorption_is_that_of_its_material(still):
    panel = panel_of(strategy=False)
    panel.set_mu(0.0)
    config = create_detector_config(panel, still.experiment.beam)
    assert config.sensor_mu_per_mm == pytest.approx(still.detector[0].sensor_mu_per_mm, rel=1e-6)


def test_a_box_of_a_panel_stands_where_the_panel_has_it(still):
    panel, beam = still.experiment.detector[0], still.experiment.beam
    config = create_detector_config(panel, beam, roi_bbox=(100, 130, 200, 215), oversample=3)
    ours = stack_panels([config], LIKE).origin[0].numpy()
    edge = panel.get_pixel_size()[0]
    np.testing.assert_allclose(ours, panel.get_lab_coord((100 * edge, 200 * edge)), atol=PIXEL_POSITION_MM)
    assert (config.shape, config.oversample) == ((15, 30), 3)


def test_panels_of_a_hierarchy_stand_where_dxtbx_has_them(thermolysin):
    pairs = zip(thermolysin.detector, thermolysin.experiment.detector, strict=True)
    errors = [position_error(*pair) for pair in pairs]
    assert max(errors) < PIXEL_POSITION_MM


def test_the_beam_travels_from_source_to_crystal(still):
    assert still.beam.direction == tuple(still.experiment.beam.get_unit_s0())
    assert still.beam.direction[2] == -1.0
    assert (still.beam.wavelength_A, still.beam.polarization_fraction) == (0.9768000000000001, 0.999)


def test_block_size_and_mosaicity_are_those_that_the_crystal_carries(still):
    assert still.crystal.domain_size_A == still.experiment.crystal.get_domain_size_ang()
    assert still.crystal.mosaicity_deg == still.experiment.crystal.get_half_mosaicity_deg()
    assert still.crystal.shape == "gauss_isotropic"


def test_a_plain_crystal_takes_what_the_caller_says():
    config = create_crystal_config(crystal_of("cubic"), domain_size_A=391.0, mosaicity_deg=0.2)
    assert (config.domain_size_A, config.mosaicity_deg) == (391.0, 0.2)
    assert config.N_cells == pytest.approx((5.0, 5.0, 5.0))


def test_a_mosaicity_below_zero_counts_as_none():
    crystal = crystal_of("cubic", MosaicCrystalSauter2014)
    crystal.set_domain_size_ang(500.0)
    crystal.set_half_mosaicity_deg(-0.001)
    assert create_crystal_config(crystal).mosaicity_deg == 0.0


def test_a_moved_crystal_comes_back_from_dxtbx(still):
    moved = override(
        still.crystal,
        {
            "cell_a": 27.5,
            "cell_beta": 71.5,
            "misset_deg": (0.1, -0.2, 0.3),
            "domain_size_A": 650.0,
            "mosaicity_deg": 0.04,
        },
    )
    crystal = to_dxtbx_crystal(moved, still.experiment.crystal)
    again = create_crystal_config(crystal)
    np.testing.assert_allclose(basis(again), basis(moved), atol=MODEL_ROUND_TRIP)
    assert again.cell_a == pytest.approx(27.5, abs=MODEL_ROUND_TRIP)
    assert (again.domain_size_A, again.mosaicity_deg) == (650.0, 0.04)
    assert still.experiment.crystal.get_domain_size_ang() != 650.0


def test_a_moved_detector_comes_back_from_dxtbx_and_from_its_file(thermolysin):
    moved = tuple(
        replace(p, distance_mm=p.distance_mm + 0.25, origin_fast_mm=p.origin_fast_mm - 0.1)
        for p in thermolysin.detector
    )
    detector = to_dxtbx_detector(moved, thermolysin.experiment.detector)
    from_file = DetectorFactory.from_dict(copy.deepcopy(detector.to_dict()))
    for config, panel, reread in zip(moved, detector, from_file, strict=True):
        for found in (panel, reread):
            again = create_detector_config(found, thermolysin.experiment.beam)
            for name in ("distance_mm", "origin_fast_mm", "origin_slow_mm", "fast_axis", "slow_axis"):
                np.testing.assert_allclose(getattr(again, name), getattr(config, name), atol=MODEL_ROUND_TRIP)


def test_a_moved_beam_comes_back_from_dxtbx(still):
    direction = np.array([1e-3, -2e-3, -1.0]) / np.linalg.norm([1e-3, -2e-3, -1.0])
    moved = override(still.beam, {"wavelength_A": 0.98, "direction": tuple(direction)})
    again = create_beam_config(to_dxtbx_beam(moved, still.experiment.beam))
    assert again.wavelength_A == pytest.approx(0.98, abs=MODEL_ROUND_TRIP)
    np.testing.assert_allclose(again.direction, direction, atol=MODEL_ROUND_TRIP)
