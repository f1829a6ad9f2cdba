"""What is written of each reflection, against DIALS and against the pixels."""

import numpy as np
import pytest
import torch

from dbex.refinement.predictions import observed_predictions
from dbex.refinement.prior import ModelError
from dbex.refinement.rounds import objective_for, start
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import Shoeboxes, shoeboxes
from dbex.refinement.tables import Solved, box_table, correlation, excitation
from nanobrag_torch.lattice import reciprocal_basis
from nanobrag_torch.profile import centroids
from nanobrag_torch.spread import node_covariance
from tests.tolerances import DELPSI_RELATIVE, ROUNDING


@pytest.fixture(scope="module")
def solved(still):
    """The shipped model on its indexed spots, unrefined."""
    map = start(still, Settings())
    x = torch.zeros(len(map), dtype=torch.float64)
    spots = observed_predictions(still, map.models(x))
    objective = objective_for(still, map, shoeboxes(still, spots, spots), ModelError(0.5))
    variance = objective.first_variance()
    return Solved(objective, x, 1e-8 * np.eye(len(x)), variance, objective.solve_linear(x, variance))


@pytest.fixture(scope="module")
def table(solved, still):
    return box_table(solved, still, torch.ones(len(solved.objective.boxes), dtype=torch.float64))


def rows_of_file(still, table):
    assert (table.row >= 0).all()
    return {
        name: np.array(still.table[name])[table.row] for name in ("delpsical.rad", "s1", "miller_index", "xyzcal.px")
    }


def test_the_angle_to_the_sphere_has_the_sign_and_size_of_dials(still, table):
    file = rows_of_file(still, table)
    np.testing.assert_array_equal(file["miller_index"], table.hkl)
    assert np.abs(file["delpsical.rad"]).max() > 1e-3
    difference = table.delpsi_rad - file["delpsical.rad"]
    assert np.abs(difference).max() < DELPSI_RELATIVE * np.abs(file["delpsical.rad"]).max()


def test_turning_a_node_by_that_angle_brings_it_onto_the_sphere(still, solved, table):
    """About the axis across q and the beam, right-handed from q to the beam's direction and back again."""
    s0 = np.array(still.experiment.beam.get_s0())
    A = np.array(still.experiment.crystal.get_A()).reshape(3, 3)
    q = table.hkl @ A.T
    axis = np.cross(q, s0)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    turned = q + table.delpsi_rad[:, None] * np.cross(axis, q)
    before = np.linalg.norm(q + s0, axis=1) - np.linalg.norm(s0)
    after = np.linalg.norm(turned + s0, axis=1) - np.linalg.norm(s0)
    assert np.abs(after).max() < 0.01 * np.abs(before).max()


def test_diffracted_rays_have_the_length_of_the_wavelength_and_point_at_their_spots(still, table):
    (panel,) = still.experiment.detector
    length = np.linalg.norm(table.s1, axis=1)
    np.testing.assert_allclose(length, 1 / still.experiment.beam.get_wavelength(), rtol=ROUNDING)
    seen = np.array([panel.get_ray_intersection_px(tuple(v)) for v in table.s1])
    assert np.abs(seen - table.xy_px).max() < 0.05
    np.testing.assert_allclose(table.xy_mm, table.xy_px * panel.get_pixel_size()[0])


def test_partiality_is_that_of_a_node_at_its_distance(solved, table):
    np.testing.assert_allclose(table.partiality, np.exp(-0.5 * table.excitation**2))
    assert (np.sign(table.excitation) == -np.sign(table.delpsi_rad)).all()
    assert table.partiality_esd.max() > 0


def test_the_error_of_a_partiality_is_what_a_change_of_the_model_makes_of_it(solved):
    """Along one parameter whose esd is known and alone: half the difference of ln p at plus and minus one esd."""
    objective = solved.objective
    for name, esd in (("misset_y", 1e-5), ("mosaicity", 1e-3)):
        i = objective.map.place(name)
        covariance = np.zeros((len(solved.x), len(solved.x)))
        covariance[i, i] = esd**2
        told = excitation(Solved(objective, solved.x, covariance, solved.variance, solved.local)).ln_partiality_esd
        ends = []
        for sign in (1, -1):
            x = solved.x.clone()
            x[i] += sign * esd
            at = excitation(Solved(objective, x, covariance, solved.variance, solved.local))
            ends.append(-0.5 * at.k**2 - ln_widths(objective, x))
        np.testing.assert_allclose(told, np.abs(ends[0] - ends[1]) / 2, rtol=1e-3, atol=1e-9)


def ln_widths(objective, x):
    """ln of the rms of each node along the sphere's normal."""
    models = objective.map.models(x)
    q = objective.hkl[objective.boxes.node[:, 0]].double() @ reciprocal_basis(models.crystal, x).T
    return torch.log(centroids(q, node_covariance(models.crystal, models.beam, q), models.beam).width).numpy()


def test_correlation_is_pearsons_over_the_used_pixels():
    rng = np.random.default_rng(2)
    x, y, used = rng.normal(size=(4, 50)), rng.normal(size=(4, 50)), rng.random((4, 50)) < 0.7
    y[1] += 3 * x[1]
    y[2, ~used[2]] = 1e9
    four, none, every = torch.arange(4), torch.zeros(200), torch.ones(200, dtype=torch.bool)
    boxes = Shoeboxes(
        four,
        every,
        four.repeat_interleave(50),
        none,
        none,
        torch.as_tensor(used.ravel()),
        none,
        none,
        none,
        every.long(),
        torch.zeros(200, 3),
        np.zeros((4, 4), dtype=np.int64),
        np.arange(4),
        four[:, None],
        {},
    )
    for row, found in enumerate(correlation(boxes, *(torch.as_tensor(a.ravel()) for a in (x, y)))):
        assert found == pytest.approx(np.corrcoef(x[row, used[row]], y[row, used[row]])[0, 1], abs=1e-12)
