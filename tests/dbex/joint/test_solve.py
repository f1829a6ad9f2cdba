"""All stills jointly: what they share comes out right, and the same as from one large system."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.errors import BadInput
from dbex.joint.conclude import conclude
from dbex.joint.normal_equations import own_places, reduced
from dbex.joint.shared import Sharing, on_detector
from dbex.joint.solve import solve
from tests.tolerances import DENSE_ESDS, HELD_BYTES, JOINT_ESDS

OFF_ESDS = 0.5


def ended(drawn):
    return [drawn.visitor.ended(drawn.joint.task(place))[1] for place in range(len(drawn.stills))]


def shared_truth(drawn):
    """The shared numbers at which the believed detector is the true one: no tilt, so plain differences."""
    true, believed = drawn.truth[0], drawn.visitor.detector[0]
    values = {
        "distance": true.distance_mm - believed.distance_mm,
        "shift_fast": true.origin_fast_mm - believed.origin_fast_mm,
    }
    return np.array([values.get(p.name, 0.0) for p in drawn.joint.common.parameters])


def test_the_detector_is_found_within_its_esds(drawn_jointly):
    joint = drawn_jointly.joint
    assert joint.solution.converged
    z = (joint.g - shared_truth(drawn_jointly)) / np.sqrt(np.diag(joint.covariance))
    assert np.abs(z).max() < JOINT_ESDS


def test_together_the_stills_say_more_than_any_of_them_alone(drawn_jointly):
    joint = drawn_jointly.joint
    together = np.sqrt(np.diag(joint.covariance))
    for told in joint.state.visited:
        assert (together < np.sqrt(np.diag(np.linalg.inv(drawn_jointly.visitor.said(told.index).matrix)))).all()


def test_every_still_ends_with_the_same_detector(drawn_jointly):
    panels = [final.objective.map.detector_at(torch.as_tensor(final.solution.x))[0] for final in ended(drawn_jointly)]
    assert panels[0] == panels[1] == panels[2]


def test_the_joint_step_is_that_of_the_dense_normal_equations(drawn_jointly):
    """Three stills half an esd away from their optimum, each in all of its numbers."""
    rng = np.random.default_rng(3)
    common = drawn_jointly.joint.common
    parts, size = [], len(common.parameters)
    for final in ended(drawn_jointly):
        places = common.places(final.objective.map)
        x = final.solution.x + OFF_ESDS * rng.normal(size=len(final.solution.x)) * np.sqrt(
            np.diag(np.linalg.inv(final.solution.matrix))
        )
        x[places] = drawn_jointly.joint.g * 1.001
        problem = final.problem
        parts.append((*problem.normal(x, problem.start(x)), places))
    total = size + sum(len(gradient) - size for _, gradient, _ in parts)
    dense, right, first = np.zeros((total, total)), np.zeros(total), size
    S, s, own = np.zeros((size, size)), np.zeros(size), []
    for matrix, gradient, places in parts:
        mine = own_places(len(gradient), places)
        where = np.empty(len(gradient), dtype=int)
        where[places], where[mine] = np.arange(size), first + np.arange(len(mine))
        dense[np.ix_(where, where)] += matrix
        right[where] += gradient
        first += len(mine)
        own.append(reduced(matrix, gradient, places))
        S, s = S + own[-1].matrix, s + own[-1].gradient
    step = np.linalg.solve(S, s)
    joint = np.concatenate([step, *(part.own_change(step) for part in own)])
    scale = 1 / np.sqrt(np.diag(dense))
    inverse = np.linalg.inv(dense * np.outer(scale, scale)) * np.outer(scale, scale)
    esds = np.sqrt(np.diag(inverse))
    assert np.abs(right).max() > 0
    assert (
        np.abs((joint - scale * np.linalg.solve(dense * np.outer(scale, scale), scale * right)) / esds).max()
        < DENSE_ESDS
    )
    assert np.linalg.inv(S) == pytest.approx(inverse[:size, :size], rel=1e-6)


def test_what_is_held_of_a_still_between_visits_is_small(drawn_jointly):
    joint = drawn_jointly.joint
    held = len(pickle.dumps((joint.begun, joint.state.visited))) / len(drawn_jointly.stills)
    assert held < HELD_BYTES


def test_a_still_ends_with_the_covariance_of_the_joint_solution(drawn_jointly):
    still, final = drawn_jointly.visitor.ended(drawn_jointly.joint.task(1))
    refined = conclude(still, drawn_jointly.visitor.settings, final)
    esd = {estimate.name: estimate.esd_formal for estimate in refined.estimates}
    places = [p.name for p in drawn_jointly.joint.common.parameters]
    noise = drawn_jointly.joint.state.visited[1].noise
    shift = places.index("shift_fast")
    assert esd["shift_fast"] * noise == pytest.approx(drawn_jointly.joint.covariance[shift, shift] ** 0.5, rel=1e-6)


def test_a_still_that_cannot_be_refined_is_left_out_and_named(drawn_jointly, tmp_path):
    stills = drawn_jointly.stills
    dark = replace(stills[1], name="dark", trusted=tuple(np.zeros_like(mask) for mask in stills[1].trusted))
    visitor = replace(drawn_jointly.visitor, read=[stills[0], dark].__getitem__, folder=tmp_path)
    joint = solve(visitor, range(2), stills[0].beam, map, 5, lambda line: None)
    assert [b.name for b in joint.begun] == ["drawn 0"]
    assert [b.name for b in joint.left_out] == ["dark"]
    assert "trusted" in str(joint.left_out[0].reason)


def test_a_still_of_another_detector_is_refused(drawn_jointly):
    still = drawn_jointly.stills[0]
    with pytest.raises(BadInput, match="expected one detector"):
        on_detector(still, (*still.detector, *still.detector))


def test_nothing_shared_is_refused():
    with pytest.raises(BadInput, match="nothing is shared"):
        Sharing(())
