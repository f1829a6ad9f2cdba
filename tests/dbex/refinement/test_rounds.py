"""Rounds: which neighbours boxes know of, and when boxes are laid out anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.errors import BadInput
from dbex.refinement import rounds
from dbex.refinement.groups import in_tiles
from dbex.refinement.intensities import solved_without_prior
from dbex.refinement.lit import DARK, FAINT, LEFT_OUT, WIDER, all_profiles, light_left_out, lit_anew, lit_boxes
from dbex.refinement.prior import ModelError
from dbex.refinement.problem import StillProblem
from dbex.refinement.rounds import (
    CONVERGED_ESDS,
    ROUGHLY_ESDS,
    SAME_BOXES,
    STAYED_LN_ERROR,
    STAYED_LN_SIZE,
    STAYED_PX,
    all_predicted,
    esds,
    objective_for,
    start,
    strong_stage,
    where_lit,
)
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import shoeboxes
from dbex.refinement.summation import summed
from dbex.refinement.terms import solved_with
from dbex.still import OtherLattices
from tests.dbex.refinement.closed_form import LN_SCALE
from tests.tolerances import COMPILED_RELATIVE, REORDERED_SUM

ERROR = ModelError(0.3)


def quiet(iteration):
    """Reports nothing."""


@pytest.fixture(scope="module")
def crowded(long_axis):
    """An objective of boxes with many neighbours, and the same without those that are faint."""
    still, map, everything = long_axis
    boxes = shoeboxes(still, everything.select(np.abs(everything.k) < 3.0), everything)
    x = np.zeros(len(map))
    every = objective_for(still, map, boxes, ERROR, x)
    return every, where_lit(still, every, ERROR, x), torch.as_tensor(x)


@pytest.fixture(scope="module")
def ended(drawn):
    """A still, what is asked for, and a round that ended."""
    still, truth = drawn
    still, settings = replace(still, d_min_A=2.2), Settings(max_iterations=30)
    map = replace(start(still, settings), crystal=truth.map.crystal, ln_scale=LN_SCALE)
    return still, settings, all_predicted(still, map, np.zeros(len(map)), settings, quiet)


def pixel_order(boxes):
    """The real pixels in the order of their places, in which each is once."""
    panel = boxes.panel[boxes.box].numpy()
    order = np.lexsort((boxes.fast.numpy(), boxes.slow.numpy(), panel))
    return order[boxes.real.numpy()[order]]


def names(boxes):
    """By a box's own reflection, all that reach it."""
    found = [boxes.reflections[row[row >= 0]].tolist() for row in boxes.node.numpy()]
    return {row[0]: set(row) for row in found}


def test_faint_neighbours_leave_and_nothing_else_does(crowded):
    every, fewer, x = crowded
    before, after = names(every.boxes), names(fewer.boxes)
    assert before.keys() == after.keys()
    assert all(after[own] <= before[own] for own in before)
    gone = sum(len(before[own] - after[own]) for own in before)
    assert gone > len(before)
    assert sum(map(len, after.values())) > 1.5 * len(after)
    bright, order = every.bright * every.boxes.largest(every.profiles(x)), {}
    for row, light in zip(every.boxes.node.tolist(), bright.tolist(), strict=True):
        shown = [(every.boxes.reflections[n], most) for n, most in zip(row, light, strict=True) if n >= 0]
        order[shown[0][0]] = {name for name, most in shown[1:] if most > FAINT} | {shown[0][0]}
    assert order == after


def light(fit, every, x):
    """Photons (N, k) of the nodes of every pixel's box, were all intensities an sd above their prior's mean in `every`,
    and that of the own one higher by the esd that the pixels alone would give it; and the most (N, k) that each sends
    to a pixel of the box; 0 for those that pixels stand in for."""
    place = {name: n for n, name in enumerate(every.boxes.reflections)}
    same = [place[name] for name in fit.boxes.reflections]
    profiles = all_profiles(fit, x)
    bright = fit.at_nodes((every.prior.mean + every.prior.sd)[same])
    bright[:, 0] += fit.boxes.sums(profiles[:, 0] ** 2 * fit.boxes.used / fit.first_variance()) ** -0.5
    photons = profiles * bright[fit.boxes.box]
    return photons * fit.boxes.real[:, None], fit.boxes.largest(photons)[fit.boxes.box]


def test_the_light_of_those_that_left_is_faint_in_every_pixel(crowded):
    """Were they as bright as they may be."""
    found, dropped, (every, fewer, x) = [], [], crowded
    for fit in (every, fewer):
        order = pixel_order(fit.boxes)
        found.append(light(fit, every, x)[0].sum(1)[order])
        dropped.append((fit.boxes.node >= 0).sum(1)[fit.boxes.box][order])
    less = found[0] - found[1]
    count = dropped[0] - dropped[1]
    assert (less >= -REORDERED_SUM * found[0]).all()
    assert (less <= FAINT * count + REORDERED_SUM * found[0]).all()
    assert float(less.max()) > FAINT / 10


@pytest.fixture(scope="module")
def dim(crowded, ended):
    """Boxes of neighbours side by side, and boxes of single spots: all that a still may have, and where it is lit."""
    still, _, found = ended
    fit, x = found.objective, found.solution.x
    every = replace(fit.boxes, reach=(fit.boxes.node >= 0).sum(1)[fit.boxes.box])
    every = objective_for(still, fit.map, every, found.model_error, x)
    return crowded, (every, where_lit(still, every, found.model_error, x), torch.as_tensor(x))


def test_a_pixel_holds_the_nodes_that_light_it_and_no_more(dim):
    unlit = []
    for every, fewer, x in dim:
        (photons, most), boxes = light(fewer, every, x), fewer.boxes
        held = torch.arange(photons.shape[1]) < boxes.reach[:, None]
        assert (photons[~held] < DARK).all()
        profiles = fewer.profiles(x)
        assert not profiles[~held].any()
        whole = all_profiles(fewer, x)
        torch.testing.assert_close(profiles, whole * held, rtol=COMPILED_RELATIVE, atol=0)
        # were it wider, the last that is held would be seen and those beyond would not: ln falls with the variance
        wider = most * (photons / most).nan_to_num() ** WIDER**-2.0
        lit = boxes.real & (boxes.reach > 0)
        last = wider[lit].gather(1, boxes.reach[lit, None] - 1)
        assert float(last.min()) > DARK * (1 - COMPILED_RELATIVE)
        assert (wider[~held] <= DARK * (1 + COMPILED_RELATIVE)).all()
        unlit.append(float((boxes.reach[boxes.real] == 0).double().mean()))
    assert 0.1 < max(unlit) < 0.9


def test_a_spot_whose_amplitude_is_nothing_is_lit_as_far_as_noise_can_hide_it(dim):
    """Its intensity without prior is what it would be if all pixels held it."""
    every, _, x = dim[1]
    share = (torch.arange(len(every.prior.mean)) % 2).double()
    absent = replace(
        every, prior=replace(every.prior, mean=share * every.prior.mean, sd=every.prior.sd * (share + 1e-9))
    )
    boxes = in_tiles(lit_boxes(absent, x), absent.whole)
    lit = replace(absent, boxes=boxes, weight=torch.ones_like(boxes.data), grouping=None).prepared(x)
    assert lit.boxes.sums((lit.boxes.reach > 0).double()).min() > 0
    assert 0.1 < float((lit.boxes.reach[lit.boxes.real] == 0).double().mean()) < 0.9
    found = []
    for fit in (absent, lit):
        variance = fit.first_variance()
        found.append(solved_without_prior(fit, variance, fit.solve_linear(x, variance)))
    (value, variance), (again, other) = found
    assert (np.abs(again - value) < CONVERGED_ESDS * np.sqrt(variance)).all()
    np.testing.assert_allclose(other, variance, rtol=CONVERGED_ESDS)


def test_a_spot_is_measured_all_over_however_faint_it_was_thought_to_be(dim):
    """A sum of pixels knows nothing of the list of amplitudes, also where its spot was thought to be dark."""
    for every, _, x in dim:
        prior = every.prior
        dark = lit_anew(replace(every, prior=replace(prior, mean=1e-6 * prior.mean, sd=1e-6 * prior.sd)), x)
        assert (dark.boxes.reach == 0).any()
        found = []
        for fit in (every, replace(dark, prior=prior)):
            variance = fit.first_variance()
            found.append(summed(fit, variance, fit.solve_linear(x, variance)))
        assert np.isfinite(found[0][1]).sum() > 30
        np.testing.assert_allclose(found[1][1], found[0][1], rtol=COMPILED_RELATIVE)


def test_light_that_pixels_do_not_hold_is_found_and_then_held(dim):
    """A crystal of four times the mosaicity lights pixels that were dark."""
    every, fewer, x = dim[1]
    variance, intensity = fewer.first_variance(), fewer.prior.mean
    assert light_left_out(every, x, every.prior.mean, every.first_variance()) == 0
    assert 0 < light_left_out(fewer, x, intensity, variance) < CONVERGED_ESDS**2
    broad = x.clone()
    broad[fewer.map.place("mosaicity")] += np.log(4.0)
    left_out = light_left_out(fewer, broad, intensity, variance)
    assert left_out > 1
    held = lit_anew(fewer, broad)
    np.testing.assert_array_equal(held.boxes.reflections, fewer.boxes.reflections)
    assert torch.equal(held.boxes.node, fewer.boxes.node)
    assert light_left_out(held, broad, intensity, held.first_variance()) < CONVERGED_ESDS**2
    assert held.solve_linear(broad, held.first_variance()).chi2 > 0
    before, after = (pixel_order(fit.boxes) for fit in (fewer, held))
    for name in ("slow", "fast", "used", "data", "box"):
        assert torch.equal(getattr(fewer.boxes, name)[before], getattr(held.boxes, name)[after])


def test_the_solution_does_not_move_by_what_a_solver_leaves(crowded):
    steps, widths = [], []
    for fit in crowded[:2]:
        problem = StillProblem(fit)
        matrix, gradient = problem.normal(crowded[2].numpy(), problem.start(crowded[2].numpy()))
        steps.append(np.linalg.solve(matrix, gradient))
        widths.append(np.sqrt(np.diag(np.linalg.inv(matrix))))
    assert (np.abs(steps[0]) > 10 * CONVERGED_ESDS * widths[0]).any()
    assert (np.abs(steps[1] - steps[0]) < CONVERGED_ESDS * widths[0]).all()
    np.testing.assert_allclose(widths[1], widths[0], rtol=CONVERGED_ESDS)


def test_a_round_that_comes_to_light_dark_pixels_goes_on_with_them(ended, monkeypatch):
    """From blocks five times as large, whose spots are narrow, in one round."""
    still, settings, found = ended
    narrow = found.solution.x.copy()
    narrow[found.objective.map.place("domain_size")] += np.log(5.0)
    anew, before = [], rounds.lit_anew
    monkeypatch.setattr(rounds, "lit_anew", lambda *given: anew.append(given) or before(*given))
    ending = all_predicted(still, found.objective.map, narrow, settings, quiet, 1, ROUGHLY_ESDS)
    assert len(anew) == 1
    state, x = ending.state, torch.as_tensor(ending.solution.x)
    left_out = [
        light_left_out(fit, x, state.local.intensity, variance)
        for fit, variance in ((anew[0][0], anew[0][0].first_variance()), (ending.objective, state.variance))
    ]
    assert left_out[0] > LEFT_OUT > left_out[1]


@pytest.fixture
def laid(monkeypatch):
    """Counts how often boxes are laid out."""
    count, before = [], rounds.objective_of
    monkeypatch.setattr(rounds, "objective_of", lambda *given: count.append(given) or before(*given))
    return count


def again(still, settings, found):
    return all_predicted(still, found.objective.map, found.solution.x, settings, quiet, before=found)


def test_boxes_that_stay_are_not_laid_out_again(ended, laid):
    still, settings, found = ended
    # a still that differs in nothing that boxes hold
    told = replace(still, left_out=still.left_out | {"spots": 1})
    result = again(told, settings, found)
    assert not laid
    assert result.objective.boxes is found.objective.boxes
    assert result.still is told
    assert result.solution.converged
    moved = (result.solution.x - found.solution.x) / esds(found.solution, found.objective)
    assert np.abs(moved).max() < ROUGHLY_ESDS


CHANGES = {
    "trusted": lambda still: {"trusted": tuple(mask.copy() for mask in still.trusted)},
    "image": lambda still: {"images_photons": tuple(image.copy() for image in still.images_photons)},
    "held out": lambda still: {"held_out": np.arange(len(still.amplitudes.hkl)) % 4 == 0},
    "other lattices": lambda still: {
        "others": OtherLattices(1, tuple(np.zeros(image.shape, np.float32) for image in still.images_photons))
    },
    "limit of resolution": lambda still: {"d_min_A": 2.0},
}


@pytest.mark.parametrize("change", CHANGES)
def test_boxes_are_laid_out_again_where_what_they_hold_changes(ended, laid, change):
    still, settings, found = ended
    other = replace(still, **CHANGES[change](still))
    result = again(other, settings, found)
    assert laid
    assert all(given[0] is other for given in laid)
    assert result.objective.boxes is not found.objective.boxes
    assert result.still is other


def test_boxes_are_laid_out_again_for_another_model(ended, laid):
    still, settings, found = ended
    trial = solved_with(found, found.objective.map, found.solution.x, settings, "none", quiet)
    assert trial.objective.boxes is found.objective.boxes
    again(still, settings, trial)
    assert len(laid) > 0


def test_boxes_stay_while_most_are_those_that_would_be_chosen_and_the_error_of_the_amplitudes_does(ended):
    still, _, found = ended
    chosen, error = found.predictions, found.model_error
    n = len(chosen)
    stays = rounds._stays
    assert stays(found, still, chosen, error)
    few = int((1 - SAME_BOXES) * n)
    assert few > 0
    assert stays(found, still, chosen.select(np.arange(few, n)), error)
    assert not stays(found, still, chosen.select(np.arange(few + 1, n)), error)
    for sign in (1, -1):
        near, far = (
            replace(error, relative=error.relative * np.exp(sign * part * STAYED_LN_ERROR)) for part in (0.9, 1.1)
        )
        assert stays(found, still, chosen, near)
        assert not stays(found, still, chosen, far)
    for field, change in (("xy_px", STAYED_PX), ("sigma_px", STAYED_LN_SIZE)):
        for part, kept in ((0.9, True), (1.1, False)):
            values = getattr(chosen, field)
            there = values + part * change if field == "xy_px" else values * np.exp(part * change)
            assert stays(found, still, replace(chosen, **{field: there}), error) == kept
    # an error that was given as none stays none
    exact = replace(found, model_error=ModelError(0.0))
    assert stays(exact, still, chosen, ModelError(0.0))
    assert not stays(replace(found, still=None), still, chosen, error)


def test_indexed_spots_without_trusted_pixels_are_refused_by_name(still):
    dark = replace(still, trusted=tuple(np.zeros_like(mask) for mask in still.trusted))
    map = start(still, Settings())
    with pytest.raises(BadInput, match="no indexed spot has enough trusted pixels"):
        strong_stage(dark, map, np.zeros(len(map)), Settings(), quiet)
