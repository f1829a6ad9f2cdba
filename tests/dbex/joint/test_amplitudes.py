"""|F|² that stills share: what each says of them, the steps of one dense system, and the truth within esds."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.joint.amplitude_visits import AmplitudeVisitor
from dbex.joint.amplitudes import said_of_squares, solved
from dbex.joint.normal_equations import own_places
from dbex.joint.solve_amplitudes import CONVERGED_ESDS, Known, _Problem, refine_squares, spread_of
from dbex.refinement.prior import IntensityPrior
from dbex.refinement.problem import StillProblem
from tests.tolerances import COVERED, DENSE_ESDS, QUADRATIC_RELATIVE, SPREAD_RELATIVE, TRUTH_OF_SHARED_ESDS

#: Of each F² the list is wrong by, and intensities scatter by in the tests of single steps.
LIST_ERROR, SPREAD = 0.1, 0.05


def ended(drawn):
    return [drawn.visitor.ended(drawn.joint.task(place))[1] for place in range(len(drawn.stills))]


def scattered(final, squares):
    """A still's objective about these |F|² of its reflections, its x, state and normal equations there."""
    objective = final.objective
    sd = torch.as_tensor(SPREAD * np.maximum(squares, 0.1 * squares.mean()))
    objective = replace(objective, prior=IntensityPrior(torch.as_tensor(squares), sd))
    problem, x = StillProblem(objective), final.solution.x
    state = problem.at(x, final.state.variance, final.state.ln_captured)
    return objective, x, state, objective.normal_equations(torch.as_tensor(x), state.variance, state.local)


def test_what_a_still_says_of_its_F2_is_how_its_merit_follows_them(drawn_jointly):
    """For fixed x the merit is a quadratic function of them: pixels and planes are linear."""
    final = ended(drawn_jointly)[0]
    squares = drawn_jointly.stills[0].amplitudes.F[final.objective.boxes.reflections] ** 2 * 1.02
    objective, x, state, normal = scattered(final, squares)
    places = drawn_jointly.joint.common.places(objective.map)
    said = said_of_squares(normal, state.local, squares, np.arange(len(squares)), places)
    pull = (state.local.intensity.numpy() - squares) / state.local.sd.numpy() ** 2
    change = 0.01 * squares * np.random.default_rng(2).normal(size=len(squares))
    there = replace(objective, prior=IntensityPrior(torch.as_tensor(squares + change), objective.prior.sd))
    merit = StillProblem(there).at(x, state.variance, state.ln_captured).local.merit - state.local.merit
    expected = -2 * pull @ change + change @ (said.near @ change)
    assert abs(expected) > 1
    assert merit == pytest.approx(expected, rel=QUADRATIC_RELATIVE)
    assert said.near.nnz < 0.2 * len(squares) ** 2, (
        "only reflections that share pixels have anything to do with each other"
    )


def test_the_step_is_that_of_the_dense_normal_equations(drawn_jointly):
    """Three stills in their own numbers, what they share, and all |F|²."""
    common, classes = drawn_jointly.joint.common, np.arange(len(drawn_jointly.stills[0].amplitudes.F))
    count = len(common.parameters)
    parts, wanted = [], []
    for still, final in zip(drawn_jointly.stills, ended(drawn_jointly), strict=True):
        place = classes[final.objective.boxes.reflections]
        squares = still.amplitudes.F[place] ** 2 * 1.03
        objective, _, state, normal = scattered(final, squares)
        shared = common.places(objective.map)
        parts.append((normal, state.local, squares, place, shared))
        wanted.append(place)
    seen, where = np.unique(np.concatenate(wanted), return_inverse=True)
    places = np.split(where, np.cumsum([len(w) for w in wanted])[:-1])
    prior = 1 / (LIST_ERROR * drawn_jointly.stills[0].amplitudes.F[seen] ** 2 + 1) ** 2
    total = count + len(seen) + sum(len(normal.gradient) - count for normal, *_ in parts)
    dense, right, first, said = np.zeros((total, total)), np.zeros(total), count + len(seen), []
    dense[range(count, count + len(seen)), range(count, count + len(seen))] = prior
    for (normal, local, squares, _, shared), place in zip(parts, places, strict=True):
        own = own_places(len(normal.gradient), shared)
        at = np.empty(len(normal.gradient), dtype=int)
        at[shared], at[own] = np.arange(count), first + np.arange(len(own))
        first += len(own)
        sd = local.sd.numpy()
        dense[np.ix_(at, at)] += normal.matrix
        right[at] += normal.gradient
        by_x = -normal.sensitivity.T / sd**2 - normal.by_prior.T / sd
        dense[np.ix_(at, count + place)] += by_x
        dense[np.ix_(count + place, at)] += by_x.T
        K = np.linalg.inv(local.factor.solve(np.eye(len(sd))))
        dense[np.ix_(count + place, count + place)] += (np.eye(len(sd)) - np.linalg.inv(K)) / np.outer(sd, sd)
        right[count + place] += (local.intensity.numpy() - squares) / sd**2
        said.append(said_of_squares(normal, local, squares, place, shared))
    scale = 1 / np.sqrt(np.diag(dense))
    assert np.linalg.eigvalsh(dense * np.outer(scale, scale)).min() > 0
    inverse = np.linalg.inv(dense * np.outer(scale, scale)) * np.outer(scale, scale)
    expected, esds = inverse @ right, np.sqrt(np.diag(inverse))
    matrix, diagonal = sum(one.matrix for one in said), prior.copy()
    right_g, right_F = sum(one.gradient for one in said), np.zeros(len(seen))
    for one in said:
        np.add.at(diagonal, one.place, one.diagonal)
        np.add.at(right_F, one.place, one.pull)

    def times(g, F):
        over_g, over_F = np.zeros(count), prior * F
        for one in said:
            by_g, by_F = one.times(g, F)
            over_g = over_g + by_g
            np.add.at(over_F, one.place, by_F)
        return over_g, over_F

    g, F = solved(matrix, diagonal, (right_g, right_F), times)
    found = np.concatenate([g, F, *(one.own_change(g, F) for one in said)])
    assert np.abs(expected / esds).max() > 0.1
    assert np.abs((found - expected) / esds).max() < DENSE_ESDS


@pytest.fixture(scope="module")
def refined(drawn_jointly, tmp_path_factory):
    """The |F|² of the three drawn stills from a list that is wrong by a tenth, and the true ones."""
    folder = tmp_path_factory.mktemp("squares") / "spool"
    shutil.copytree(drawn_jointly.visitor.folder, folder)
    truth = drawn_jointly.stills[0].amplitudes.F ** 2
    listed = truth * (1 + LIST_ERROR * np.random.default_rng(4).normal(size=len(truth)))
    sd = LIST_ERROR * truth + 1e-3 * truth.mean()
    known = Known(np.maximum(listed, 1e-6), sd, resolutions(drawn_jointly), np.arange(len(truth)))
    visitor = replace(drawn_jointly.visitor, folder=folder)
    return *refine_squares(drawn_jointly.joint, visitor, map, known, lambda line: None), truth, listed


def resolutions(drawn):
    amplitudes = drawn.stills[0].amplitudes
    A = np.asarray(drawn.stills[0].experiment.crystal.get_A()).reshape(3, 3)
    return ((amplitudes.hkl @ A.T) ** 2).sum(1)


def test_F2_come_out_within_their_esds(refined, drawn_jointly):
    joint, squares, truth, listed = refined
    well = (squares.means.count > 0) & (squares.means.sigma < 0.05 * truth)
    assert well.sum() > 50
    z = (squares.means.value - truth)[well] / squares.means.sigma[well]
    assert squares.steps[-1] < CONVERGED_ESDS
    assert COVERED[0] < np.mean(np.abs(z) < 1) < COVERED[1]
    before = np.abs(listed / truth - 1)[well].mean()
    assert np.abs(squares.means.value / truth - 1)[well].mean() < before / 2
    shared = joint.g - drawn_jointly.joint.g
    assert np.abs(shared / np.sqrt(np.diag(joint.covariance))).max() < TRUTH_OF_SHARED_ESDS


def test_without_a_prior_scale_and_B_are_held(drawn_jointly, tmp_path):
    truth = drawn_jointly.stills[0].amplitudes.F ** 2
    s2 = resolutions(drawn_jointly)
    visitor = AmplitudeVisitor(replace(drawn_jointly.visitor, folder=tmp_path), SPREAD)
    visitor.keep("reference", truth)
    problem = _Problem(
        visitor, map, Known(truth, None, s2, np.arange(len(truth))), drawn_jointly.joint, truth, np.ones(3)
    )
    scale, falloff = problem.functionals
    assert scale @ (1.001 * truth - truth) == pytest.approx(0.001)
    assert falloff @ truth == pytest.approx(0.0, abs=1e-9)
    assert abs(falloff @ (truth * s2)) == pytest.approx(1.0)


def test_scatter_of_intensities_is_found_from_pairs():
    rng = np.random.default_rng(1)
    truth, stills = rng.exponential(1e4, 2000) + 500, []
    for _ in range(3):
        place = rng.choice(2000, 1200, replace=False)
        value = truth[place] * (1 + SPREAD * rng.normal(size=1200)) + 50 * rng.normal(size=1200)
        stills.append((place, value, np.full(1200, 2500.0)))
    assert spread_of(stills, truth) == pytest.approx(SPREAD, rel=SPREAD_RELATIVE)
