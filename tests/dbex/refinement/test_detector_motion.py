"""A detector that moves as one body, and one whose parts move by themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.refinement.detector_motion import detector_frame, motions_between, moved, second_moments, unit_frame
from dbex.refinement.parameters import Parameter
from dbex.refinement.rounds import all_predicted, start, strong_stage
from dbex.refinement.settings import Settings
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.rotation import rotation_from_vector
from tests.dbex.joint.cut_panels import cut_detector, cut_still
from tests.tolerances import MOTION_MM, UNIT_SLOPE_RELATIVE

EACH = [(0,), (1,), (2,), (3,)]
ZERO = torch.zeros((), dtype=torch.float64)
SETTINGS = Settings(detector=("distance", "shift", "tilt"), d_min=2.2, start="near", terms=())


@pytest.fixture(scope="module")
def four(still):
    """Four panels cut from one, as records and stacked."""
    records = cut_detector(still.detector[0])
    return records, stack_panels(records, ZERO)


def random_motions(units, seed=0):
    rng = np.random.default_rng(seed)
    shift, turn = rng.normal(0, 0.2, (units, 3)), rng.normal(0, 0.003, (units, 3))
    return torch.as_tensor(shift), torch.as_tensor(turn)


def test_motions_of_units_are_found_again(four):
    records, panels = four
    frame = unit_frame(panels, records, EACH)
    shift, turn = random_motions(4)
    found = motions_between(frame, panels, moved(panels, frame, shift, turn))
    assert found == pytest.approx(torch.cat([shift, turn], 1).numpy(), abs=MOTION_MM)


def test_one_unit_of_all_panels_moves_as_the_detector_does(four, still):
    """Wherever its pivot is: the whole moves about where the beam meets it, the unit about its middle."""
    records, panels = four
    whole = detector_frame(panels, still.beam)
    shift, turn = random_motions(1)
    after = moved(panels, whole, shift, turn)
    unit = unit_frame(panels, records, [(0, 1, 2, 3)])
    motions = torch.as_tensor(motions_between(unit, panels, after))
    again = moved(panels, unit, motions[:, :3], motions[:, 3:])
    for name in ("fast", "slow", "normal", "origin", "distance"):
        assert getattr(again, name).numpy() == pytest.approx(getattr(after, name).numpy(), abs=MOTION_MM)


def test_a_rotation_of_a_unit_moves_nothing_on_the_mean(four):
    records, panels = four
    frame = unit_frame(panels, records, [(0, 1), (2, 3)])
    _, turn = random_motions(2)
    after = moved(panels, frame, torch.zeros_like(turn), turn)
    before, now = (unit_frame(of, records, [(0, 1), (2, 3)]).pivot.numpy() for of in (panels, after))
    assert now == pytest.approx(before, abs=MOTION_MM)


def test_second_moments_are_those_of_all_pixels(four):
    records, panels = four
    frame = unit_frame(panels, records, [(0, 1), (2, 3)])
    areas, moments = second_moments(panels, records, frame)
    points = []
    for i in (0, 1):
        slow, fast = (torch.arange(n, dtype=torch.float64)[::5] + 0.5 for n in records[i].shape)
        size = panels.pixel_size[i]
        grid = panels.origin[i] + size * (slow[:, None, None] * panels.slow[i] + fast[:, None] * panels.fast[i])
        points.append(grid.reshape(-1, 3))
    offset = (torch.cat(points) - frame.pivot[0]).numpy()
    assert moments[0] == pytest.approx(offset.T @ offset / len(offset), rel=0.02, abs=1.0)
    expected = sum(records[i].shape[0] * records[i].shape[1] for i in (0, 1)) * records[0].pixel_size_mm ** 2
    assert areas[0] == pytest.approx(expected)


def test_every_pixel_follows_the_motions_of_its_own_panel_alone(still):
    """The derivatives of the pixels by all 24 motions, against differences of the model."""
    cut = cut_still(still)
    map = start(cut, SETTINGS)
    x, map = strong_stage(cut, map, np.zeros(len(map)), SETTINGS, lambda iteration: None)
    found = all_predicted(cut, map, x, SETTINGS, lambda iteration: None, 1, 1.0)
    map, x = found.objective.map, found.solution.x
    own = [(p, value) for p, value in zip(map.parameters, x, strict=True) if p.group != "detector"]
    frame = unit_frame(map.panels, cut.detector, EACH)
    units = [
        Parameter(name, "detector", "mm" if name.startswith("shift") else "mrad", 1.0, 1.0)
        for names in frame.names
        for name in names
    ]
    parameters = (*(p for p, _ in own), *units)
    objective = replace(found.objective, map=replace(map, frame=frame, parameters=parameters), grouping=None)
    at = torch.as_tensor(np.concatenate([[value for _, value in own], np.zeros(len(units))]))
    local = objective.prepared(at).solve_linear(at, objective.first_variance())
    at_nodes = objective.at_nodes(local.intensity)
    rows = objective.jacobian(at, at_nodes)
    panel = objective.boxes.panel[objective.boxes.box]
    for place in range(len(own), len(at)):
        step = torch.zeros_like(at)
        step[place] = 1e-5
        of_pixels = at_nodes[objective.boxes.box]
        high, low = ((objective.profiles(at + s * step) * of_pixels).sum(-1) for s in (1, -1))
        expected = (high - low) / 2e-5
        mine = panel == (place - len(own)) // 6
        assert (rows[~mine, place] == 0).all()
        assert expected[mine].abs().max() > 0
        assert (rows[:, place] - expected).abs().max() < UNIT_SLOPE_RELATIVE * expected.abs().max()


def test_a_rotation_about_the_crystal_is_a_rigid_motion_of_every_unit(four):
    records, panels = four
    turn = rotation_from_vector(torch.tensor([0.0, 0.0, 0.002], dtype=torch.float64))
    axes = {name: getattr(panels, name) @ turn.T for name in ("fast", "slow", "normal", "origin")}
    frame = unit_frame(panels, records, EACH)
    motions = torch.as_tensor(motions_between(frame, panels, replace(panels, **axes)))
    again = moved(panels, frame, motions[:, :3], motions[:, 3:])
    assert again.origin.numpy() == pytest.approx(axes["origin"].numpy(), abs=MOTION_MM)
