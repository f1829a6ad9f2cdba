"""What the data ask of parameters that were held: named when they are wrong, and only then."""

from dataclasses import replace

import numpy as np
import pytest

from dbex.refinement import groups
from dbex.refinement.demands import ASKED_ESDS, Score, asked_of
from dbex.refinement.predictions import observed_predictions
from dbex.refinement.prior import ModelError
from dbex.refinement.problem import StillProblem
from dbex.refinement.refine import refine_still
from dbex.refinement.rounds import objective_for
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import shoeboxes
from dbex.refinement.tables import Solved
from dbex.report.summary import summary
from nanobrag_torch.config import override
from tests.tolerances import EXACT_ALGEBRA

FREE, HELD = 4, 3
NONE_GROWS = np.zeros(HELD, bool)


def least_squares(seed=1, true_step=0.0, design=None):
    """Normal equations at the optimum of the free numbers of a linear problem whose first held one is off."""
    rng = np.random.default_rng(seed)
    design = rng.normal(size=(200, FREE + HELD)) * np.logspace(-3, 3, FREE + HELD) if design is None else design
    data = rng.normal(size=200) + true_step * design[:, FREE]
    at_optimum = np.linalg.lstsq(design[:, :FREE], data, rcond=None)[0]
    residual = data - design[:, :FREE] @ at_optimum
    return design, data, Score.of(design.T @ design, design.T @ residual, FREE, NONE_GROWS)


def test_the_score_of_one_is_the_step_that_it_would_make_if_it_were_freed_with_the_others():
    design, data, score = least_squares()
    for held in range(HELD):
        places = [*range(FREE), FREE + held]
        whole = np.linalg.lstsq(design[:, places], data, rcond=None)[0]
        unit = np.linalg.norm(design[:, places], axis=0)
        covariance = np.linalg.inv((design[:, places] / unit).T @ (design[:, places] / unit))
        esd = np.sqrt(covariance[-1, -1]) / unit[-1]
        assert score.steps()[held] == pytest.approx(whole[-1], rel=EXACT_ALGEBRA)
        assert score.esds()[held] == pytest.approx(whole[-1] / esd, rel=EXACT_ALGEBRA)


def test_only_a_move_of_many_esds_is_asked_for_and_what_it_explains_is_not_asked_again():
    assert least_squares()[2].selected(ASKED_ESDS) == []
    _, _, score = least_squares(true_step=0.1)
    assert np.abs(score.esds()).max() > ASKED_ESDS
    assert score.selected(ASKED_ESDS) == [0]


def test_what_the_free_ones_imitate_is_never_asked():
    """The first held one is a sum of free ones: however wrong it is, they have made up for it."""
    design, _, _ = least_squares()
    design[:, FREE] = design[:, 0] - 2 * design[:, 1]
    _, _, score = least_squares(true_step=1e4, design=design)
    assert not score.can[0]
    assert score.selected(ASKED_ESDS) == []
    assert score.esds()[0] == 0.0


def test_two_held_ones_that_do_the_same_are_named_together():
    design, _, _ = least_squares()
    noise = np.random.default_rng(2).normal(size=200)
    design[:, FREE + 1] = 2 * design[:, FREE] + 1e-3 * noise
    _, _, score = least_squares(true_step=0.1, design=design)
    (chosen,) = score.selected(ASKED_ESDS)
    assert {chosen, *score.alike(chosen)} == {0, 1}
    assert score.steps()[0] == pytest.approx(2 * score.steps()[1], rel=0.1)


def test_what_can_only_grow_is_not_asked_to_shrink():
    _, _, score = least_squares(true_step=-0.1)
    assert score.selected(ASKED_ESDS) == [0]
    grows = np.array([True, False, False])
    assert replace(score, grows=grows).selected(ASKED_ESDS) == []


def tilted(still, mrad):
    """The still with a beam that is held in a wrong direction, off across the polarisation."""
    across = np.cross(still.beam.polarization_normal, still.beam.direction)
    direction = np.array(still.beam.direction) + 1e-3 * mrad * across / np.linalg.norm(across)
    return replace(still, beam=override(still.beam, {"direction": tuple(direction / np.linalg.norm(direction))}))


def asked(refined):
    """Names of what the advice asks for."""
    return [line for line in refined.verdict.advice if line.startswith("the data ask")]


def test_nothing_is_asked_of_a_model_that_is_right(drawn):
    found = refine_still(drawn[0], Settings(terms=()))
    assert found.verdict.state == "good"
    assert found.verdict.advice == ()


def test_a_beam_that_is_held_in_a_wrong_direction_is_named(drawn):
    """By itself where the detector's shift and tilt are known, which would do the same: then they are named too."""
    found = refine_still(tilted(drawn[0], 0.5), Settings(terms=(), detector=("distance", "shift")))
    (line,) = asked(found)
    assert "direction" in line
    assert "refine.beam=direction" in line
    assert found.verdict.state == "incomplete"
    assert summary(found, "out")[0].startswith("incomplete fit")


def test_a_direction_that_shift_and_tilt_make_up_for_is_not_asked(drawn):
    found = refine_still(tilted(drawn[0], 0.5), Settings(terms=(), detector=("distance", "shift", "tilt")))
    assert not asked(found)


def test_a_wavelength_is_not_asked_where_the_cell_makes_up_for_it(drawn):
    """Scaling wavelength and cell together leaves every spot in place."""
    longer = override(drawn[0].beam, {"wavelength_A": 1.002 * drawn[0].beam.wavelength_A})
    found = refine_still(replace(drawn[0], beam=longer), Settings(terms=()))
    assert not asked(found)


def test_a_bandwidth_that_is_held_at_nothing_is_asked_for(still):
    """Drawn with a bandwidth, refined without: a plain model cannot make up for streaks that grow with |q|."""
    from tests.dbex.refinement.closed_form import drawn_still, truth_of

    wide = replace(still, beam=override(still.beam, {"bandwidth": 8e-4}))
    found = refine_still(replace(drawn_still(wide, truth_of(wide)), beam=still.beam), Settings(terms=()))
    (line,) = asked(found)
    assert "bandwidth (+0." in line
    assert "refine.beam=bandwidth" in line


def test_boxes_are_asked_in_the_groups_that_their_optimum_was_found_in(drawn, monkeypatch):
    """Grouped anew, as a mixture that shows other parts now would be, the optimum's columns would be of other boxes."""
    still, truth = drawn
    spots = observed_predictions(still, truth.models)
    boxes = shoeboxes(still, spots, spots)
    found = []
    for size in (groups.NODE_PIXELS, 0):
        monkeypatch.setattr(groups, "NODE_PIXELS", size)
        objective = objective_for(still, truth.map, boxes, ModelError(0.1))
        monkeypatch.undo()
        state = StillProblem(objective).start(truth.zero.numpy())
        found.append(asked_of(Solved(objective, truth.zero, np.eye(len(truth.map)), state.variance, state.local)))
    np.testing.assert_allclose(found[1].gradient, found[0].gradient, rtol=EXACT_ALGEBRA)
