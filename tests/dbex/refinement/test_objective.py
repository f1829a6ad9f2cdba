"""The elimination of planes and intensities against the dense problem, on spots that overlap."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.refinement.prior import ModelError
from dbex.refinement.problem import StillProblem
from dbex.refinement.rounds import objective_for
from dbex.refinement.shoeboxes import shoeboxes
from dbex.refinement.tables import Solved, free_intensities
from dbex.refinement.uncertainty import curvature
from tests.dbex.stages import steps_of
from tests.differences import extrapolated_difference
from tests.tolerances import DENSE_RELATIVE, EXTRAPOLATED_DIFFERENCE_RELATIVE, REORDERED_SUM

MODEL_ERROR = ModelError(0.3)


@pytest.fixture(scope="module")
def crowded(long_axis):
    """Neighbouring boxes whose spots overlap; x a little off the truth; variances of a model."""
    found, map, everything = long_axis
    boxes = shoeboxes(found, everything, everything)
    # the most crowded box and those whose reflections it shares
    centre = int((boxes.node >= 0).sum(1).argmax())
    shared = set(boxes.node[centre][boxes.node[centre] >= 0].tolist())
    own = [int(i) for i in boxes.node[:, 0]]
    # and some all over the detector, so that the data determine every parameter
    names = boxes.reflections[[n for n in own if n in shared][:6] + own[::8]]
    boxes = shoeboxes(found, everything.select(np.isin(everything.index, names)), everything)
    assert len(boxes) >= 2
    objective = objective_for(found, map, boxes, MODEL_ERROR)
    x = steps_of(map) * torch.linspace(-1, 1, len(map), dtype=torch.float64)
    variance = objective.variance(objective.solve_linear(x, objective.first_variance()))
    return objective, x, variance, objective.solve_linear(x, variance)


def dense(objective, x, variance):
    """Weighted rows (pixels and priors) of the whole linearised problem, and the right-hand side: columns are the
    planes of all boxes and the intensities; written out one pixel after the other."""
    boxes, profiles = objective.boxes, objective.profiles(x)
    count, m = len(boxes), len(objective.prior.mean)
    rows, right = [], []
    for b in range(count):
        for p in torch.nonzero(boxes.used & (boxes.box == b))[:, 0].tolist():
            row = np.zeros(3 * count + m)
            row[3 * b : 3 * b + 3] = boxes.basis[p]
            for k, node in enumerate(boxes.node[b].tolist()):
                if node >= 0:
                    row[3 * count + node] = profiles[p, k]
            root = 1 / np.sqrt(variance[p].item())
            rows.append(row * root)
            right.append(boxes.data[p].item() * root)
    for node in range(m):
        row = np.zeros(3 * count + m)
        row[3 * count + node] = 1 / objective.prior.sd[node].item()
        rows.append(row)
        right.append(objective.prior.mean[node].item() / objective.prior.sd[node].item())
    return np.array(rows), np.array(right)


def solution_of(rows, right):
    """Least squares with columns brought to one length: intensities and planes have other units."""
    length = np.linalg.norm(rows, axis=0)
    found, *_ = np.linalg.lstsq(rows / length, right, rcond=None)
    return found / length


def test_the_spots_of_these_boxes_overlap(crowded):
    objective, _, _, local = crowded
    light = objective.boxes.sums(objective.profiles_of(local.columns))
    assert (light[:, 1:] / light[:, :1]).max() > 0.05
    reaching = [set(row[row >= 0].tolist()) for row in objective.boxes.node]
    assert sum(len(a & b) > 1 for a in reaching for b in reaching if a is not b) > 2


def test_planes_and_intensities_are_those_of_the_dense_problem(crowded):
    objective, x, variance, local = crowded
    rows, right = dense(objective, x, variance)
    expected = solution_of(rows, right)
    planes = expected[: local.planes.numel()].reshape(-1, 3)
    np.testing.assert_allclose(local.planes, planes, rtol=DENSE_RELATIVE, atol=DENSE_RELATIVE * np.abs(planes).max())
    sd = objective.prior.sd.numpy()
    assert np.abs((local.intensity.numpy() - expected[planes.size :]) / sd).max() < DENSE_RELATIVE
    # the data have moved them: this is no test of the prior alone
    assert np.abs((local.intensity - objective.prior.mean).numpy() / sd).max() > 0.5


def test_the_merit_is_that_of_the_dense_problem(crowded):
    objective, x, variance, local = crowded
    rows, right = dense(objective, x, variance)
    assert local.merit == pytest.approx(((rows @ solution_of(rows, right) - right) ** 2).sum(), rel=DENSE_RELATIVE)
    pixels = int(objective.boxes.used.sum())
    assert local.chi2 == pytest.approx(
        ((rows[:pixels] @ solution_of(rows, right) - right[:pixels]) ** 2).sum(), rel=DENSE_RELATIVE
    )


def test_spots_that_do_not_overlap_are_solved_as_those_that_might(crowded):
    """Only own spots: with room for a neighbour in the boxes' list of nodes, and without."""
    objective, x, variance, _ = crowded
    own = objective.boxes.node[:, :1]
    found = []
    for node in (own, torch.cat([own, torch.full_like(own, -1)], 1)):
        boxes = replace(objective.boxes, node=node, reach=torch.ones_like(objective.boxes.reach))
        alone = replace(objective, boxes=boxes).prepared()
        local = alone.solve_linear(x, variance)
        system = alone.normal_equations(x, variance, local)
        found.append((*free_intensities(Solved(alone, x, np.eye(len(x)), variance, local)), local, system))
    for value, expected in zip(found[0][:2], found[1][:2], strict=True):
        np.testing.assert_allclose(value, expected, rtol=REORDERED_SUM)
    (*_, local, system), (*_, expected, equations) = found
    np.testing.assert_allclose(local.intensity, expected.intensity, rtol=REORDERED_SUM)
    # rounding is that of the matrix before the intensities were eliminated
    sensitivity = system.sensitivity / local.sd.numpy()[:, None]
    before = np.sqrt(np.diag(system.matrix) + (local.factor.numbers[:, None] * sensitivity**2).sum(0))
    assert np.abs((system.matrix - equations.matrix) / np.outer(before, before)).max() < REORDERED_SUM
    root = np.sqrt(np.diag(equations.matrix))
    change = (system.sensitivity - equations.sensitivity) / local.sd.numpy()[:, None] / root
    assert np.abs(change).max() < REORDERED_SUM


def test_the_covariance_of_the_model_is_a_block_of_the_dense_one(crowded):
    objective, x, variance, local = crowded
    boxes = objective.boxes
    at_nodes = local.intensity[boxes.node.clamp_min(0)] * (boxes.node >= 0)
    # rows are those of one box after the other
    pixel = torch.nonzero(boxes.used)[:, 0]
    pixel = pixel[torch.argsort(boxes.box[pixel], stable=True)]
    weighted = (objective.jacobian(x, at_nodes)[pixel] / torch.sqrt(variance[pixel])[:, None]).numpy()
    rows, _ = dense(objective, x, variance)
    n, pixels = len(x), len(weighted)
    whole = np.zeros((len(rows) + n, n + rows.shape[1]))
    whole[:pixels, :n] = weighted
    whole[: len(rows), n:] = rows
    whole[len(rows) :, :n] = np.diag([1 / p.prior for p in objective.map.parameters])
    length = np.linalg.norm(whole, axis=0)
    # the triangle of the rows themselves: their squares would have the square of the condition
    triangle = np.linalg.inv(np.linalg.qr(whole / length, mode="r"))
    inverse = triangle @ triangle.T / np.outer(length, length)
    matrix = objective.normal_equations(x, variance, local).matrix
    found = curvature(matrix, objective.map).covariance
    esd = np.sqrt(np.diag(inverse)[:n])
    assert np.abs((found - inverse[:n, :n]) / np.outer(esd, esd)).max() < DENSE_RELATIVE


def test_the_sensitivity_of_the_intensities_is_how_they_follow_the_model(crowded):
    """Both solved anew at x ± a step: Gauss-Newton leaves out only the curvature times the residuals."""
    objective, x, variance, local = crowded
    # without noise there is no residual
    quiet = replace(objective, boxes=replace(objective.boxes, data=local.background + local.bragg))
    quiet = replace(quiet, prior=replace(quiet.prior, mean=local.intensity))
    at = quiet.solve_linear(x, variance)
    told = quiet.normal_equations(x, variance, at).sensitivity
    steps = 1e-3 * steps_of(objective.map)
    for i in range(len(x)):
        step = torch.zeros_like(x)
        step[i] = steps[i]
        ends = [quiet.solve_linear(x + sign * step, variance).intensity for sign in (1, -1)]
        numeric = ((ends[0] - ends[1]) / (2 * steps[i])).numpy()
        assert np.abs(told[:, i] - numeric).max() < 1e-5 * np.abs(numeric).max(), objective.map.parameters[i].name


def test_the_gradient_is_that_of_the_merit_with_all_that_is_linear_solved_anew(crowded):
    objective, x, variance, local = crowded
    problem = StillProblem(objective)
    held = objective.ln_captured(objective.at(x))
    state = replace(problem.start(x.numpy()), variance=variance, local=replace(local, ln_captured=held))
    _, gradient = problem.normal(x.numpy(), state)
    steps = 0.2 * steps_of(objective.map)
    scale = np.abs(gradient * steps.numpy()).max()
    for i, parameter in enumerate(objective.map.parameters):
        direction = torch.zeros_like(x)
        direction[i] = steps[i]

        def merit(at):
            return problem.merit(problem.trial(at.numpy(), state))

        numeric = extrapolated_difference(merit, x, direction)
        analytic = -2 * gradient[i] * steps[i].item()
        assert abs(analytic - numeric) < EXTRAPOLATED_DIFFERENCE_RELATIVE * max(abs(numeric), scale), parameter.name


def test_a_robust_weight_of_nothing_is_a_pixel_less(crowded):
    objective, x, variance, local = crowded
    p = torch.nonzero(objective.boxes.used)[0, 0]
    weight, used = objective.weight.clone(), objective.boxes.used.clone()
    weight[p], used[p] = 0.0, False
    weighed = replace(objective, weight=weight).solve_linear(x, variance)
    without = replace(objective, boxes=replace(objective.boxes, used=used)).solve_linear(x, variance)
    assert weighed.merit == without.merit != local.merit


def test_variances_hold_the_background_and_the_spot_and_never_vanish(crowded):
    objective, _, _, local = crowded
    read = replace(objective, boxes=replace(objective.boxes, sigma_squared=torch.full_like(objective.boxes.data, 4.0)))
    np.testing.assert_allclose(read.variance(local), local.background.clamp_min(0) + local.bragg.clamp_min(0) + 4.0)
    dark = replace(local, background=-torch.ones_like(local.background), bragg=torch.zeros_like(local.bragg))
    assert (objective.variance(dark) > 0).all()


def test_an_intensity_without_prior_is_the_limit_of_a_prior_that_says_nothing(crowded):
    objective, x, variance, _ = crowded
    wide = replace(objective, prior=replace(objective.prior, sd=1e7 * objective.prior.sd))
    # a neighbour without a box of its own is known by its prior alone: only boxes that stand alone are compared
    alone = objective.boxes.node.clone()
    alone[:, 1:] = -1
    wide = replace(wide, boxes=replace(wide.boxes, node=alone))
    local = wide.solve_linear(x, variance)
    value, _ = free_intensities(Solved(wide, x, np.eye(len(x)), variance, local))
    np.testing.assert_allclose(value, local.intensity[alone[:, 0]], rtol=1e-6)
