"""All stills jointly: what their solution is made of; that it is the right one is DB-AT-070."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.errors import BadInput
from dbex.joint.conclude import conclude
from dbex.joint.shared import Sharing, on_detector
from dbex.joint.solve import solve
from tests.dbex.joint.drawing import ended
from tests.tolerances import HELD_BYTES


def test_together_the_stills_say_more_than_any_of_them_alone(drawn_jointly):
    joint = drawn_jointly.joint
    together = np.sqrt(np.diag(joint.covariance))
    for told in joint.state.visited:
        assert (together < np.sqrt(np.diag(np.linalg.inv(drawn_jointly.visitor.said(told.index).matrix)))).all()


def test_every_still_ends_with_the_same_detector(drawn_jointly):
    panels = [final.objective.map.detector_at(torch.as_tensor(final.solution.x))[0] for final in ended(drawn_jointly)]
    assert panels[0] == panels[1] == panels[2]


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
