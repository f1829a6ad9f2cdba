"""DB-AT-032: panels that stand elsewhere than believed, each by its own, are found from all stills together."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dbex.errors import BadInput
from dbex.joint.conclude import shared_estimates
from dbex.joint.gauges import gauges_of, mean_rotation
from dbex.joint.shared import Common, Sharing, Units
from dbex.joint.solve import Joint, solve
from dbex.joint.visits import Visitor
from dbex.models import panel_groups
from dbex.refinement.detector_motion import motions_between, moved, unit_frame
from dbex.refinement.parameters import panel_records
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.rotation import rotation_from_vector
from tests.dbex.conftest import SHIPPED
from tests.dbex.joint.conftest import SETTINGS
from tests.dbex.joint.cut_panels import cut_detector, cut_still
from tests.reports import acceptance_report
from tests.tolerances import MEAN_ROTATION_RELATIVE, TRUTH_OF_SHARED_ESDS

ZERO = torch.zeros((), dtype=torch.float64)
EACH = ((0,), (1,), (2,), (3,))
UNITS = Units(EACH, ("a", "b", "c", "d"), shift_mm=0.5, tilt_mrad=10.0)
#: Fewer reflections than were drawn: a third of the time.
D_MIN_A = 2.4
#: How far the panels stand from where they are believed, mm and radians, and the one on which nothing is trusted.
OFF_MM, OFF_RAD, DARK = 0.06, 1e-3, 3


@dataclass(frozen=True)
class Misplaced:
    """The visitor, the joint solution, and the true motions (4, 6) of the panels, mm and mrad, by how much they turn
    together about the beam, radians."""

    visitor: Visitor
    joint: Joint
    motions: np.ndarray
    believed: tuple


@pytest.fixture(scope="module")
def misplaced(drawn_jointly, tmp_path_factory):
    """The three drawn stills on four panels, of which three can be seen, each believed elsewhere."""
    rng = np.random.default_rng(5)
    true = cut_detector(drawn_jointly.truth[0])
    panels = stack_panels(true, ZERO)
    frame = unit_frame(panels, true, EACH)
    shift, turn = (torch.as_tensor(rng.normal(0, size, (4, 3))) for size in (OFF_MM, OFF_RAD))
    believed = panel_records(true, moved(panels, frame, shift, turn))
    read = stack_panels(believed, ZERO)
    motions = motions_between(unit_frame(read, believed, EACH), read, panels)

    def dark(still):
        trusted = tuple(mask & (number != DARK) for number, mask in enumerate(still.trusted))
        return replace(still, trusted=trusted)

    stills = [dark(cut_still(still)) for still in drawn_jointly.stills]
    visitor = Visitor(
        stills.__getitem__,
        replace(SETTINGS, d_min=D_MIN_A),
        Sharing(SETTINGS.detector, (), True, UNITS),
        believed,
        tmp_path_factory.mktemp("units"),
    )
    joint = solve(visitor, range(len(stills)), stills[0].beam, map, SETTINGS.max_iterations, lambda line: None)
    return Misplaced(visitor, joint, motions * ([1.0] * 3 + [1e3] * 3), believed)


def common_of(detector):
    panels = stack_panels(detector, ZERO)
    frame = unit_frame(panels, detector, EACH)
    return Common(detector, panels, frame, None, UNITS.parameters(frame, SETTINGS.detector))


class TestDB_AT_032_Panels:
    def test_db_at_032_each_panel_is_found_within_its_esds(self, misplaced):
        """But for what all turn about the beam together, which the crystals have taken."""
        tolerances = {"esds": TRUTH_OF_SHARED_ESDS}
        with acceptance_report("DB-AT-032", "panels", tolerances=tolerances, inputs=tuple(SHIPPED)) as values:
            joint = misplaced.joint
            still, final = misplaced.visitor.ended(joint.task(0))
            shared, _ = shared_estimates(joint, still, final, misplaced.visitor.detector)
            assert joint.solution.converged
            found = {e.name: e for e in shared if "[" in e.name}
            told = np.array([[found[name].after for name in names] for names in joint.common.frame.names])
            esd = np.array([[found[name].esd for name in names] for names in joint.common.frame.names])
            seen = [number for number in range(4) if number != DARK]
            true = misplaced.motions[seen]
            together = rigid_turn(misplaced.believed, told[seen] - true, esd[seen], seen)
            z = (told[seen] - true - together) / esd[seen]
            for number, errors in zip(seen, z.tolist(), strict=True):
                names = joint.common.frame.names[number]
                values[f"errors of panel {number}, esds"] = dict(zip(names, errors, strict=True))
            values["motions, esds"] = np.abs(true / esd[seen]).max(0)
            values["largest error, esds"] = np.abs(z).max()
            assert np.abs(true / esd[seen]).max() > 30
            assert values["largest error, esds"] < TRUTH_OF_SHARED_ESDS

    def test_db_at_032_a_panel_without_spots_is_named_and_stays_with_the_detector(self, misplaced):
        with acceptance_report("DB-AT-032", "without_spots", tolerances={}, inputs=tuple(SHIPPED)) as values:
            joint = misplaced.joint
            values["undetermined"] = joint.undetermined
            esds = np.sqrt(np.diag(joint.covariance))
            where = [p.name for p in joint.common.parameters].index(f"shift_normal[{DARK}]")
            values["shift_normal, mm"], values["its esd, mm"] = joint.g[where], esds[where]
            assert set(joint.undetermined) == set(joint.common.frame.names[DARK])
            assert abs(joint.g[where]) < 1e-3 < UNITS.shift_mm / 2 < esds[where]

    def test_db_at_032_what_no_still_can_tell_is_held_and_named(self, misplaced):
        with acceptance_report("DB-AT-032", "held", tolerances={}, inputs=tuple(SHIPPED)) as values:
            values["held"] = [gauge.words for gauge in misplaced.joint.gauges]
            (gauge,) = misplaced.joint.gauges
            assert "about the beam" in gauge.words
            assert abs(gauge.functional @ misplaced.joint.g) < 1e-6


def rigid_turn(believed, difference, esd, seen):
    """The part of differences of motions (n, 6) that is a rotation of all panels about the beam, by least squares."""
    panels = stack_panels(believed, ZERO)
    frame = unit_frame(panels, believed, EACH)
    turn = rotation_from_vector(torch.tensor([0.0, 0.0, 1e-6], dtype=torch.float64))
    axes = {name: getattr(panels, name) @ turn.T for name in ("fast", "slow", "normal", "origin")}
    mode = motions_between(frame, panels, replace(panels, **axes))[seen] * ([1e6] * 3 + [1e9] * 3)
    return mode * (mode * difference / esd**2).sum() / (mode**2 / esd**2).sum()


def test_a_turn_of_all_panels_is_what_the_gauge_measures(drawn_jointly):
    detector = cut_detector(drawn_jointly.truth[0])
    common = common_of(detector)
    for axis in ([0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        turn = rotation_from_vector(torch.tensor(axis, dtype=torch.float64) * 0.002)
        axes = {name: getattr(common.panels, name) @ turn.T for name in ("fast", "slow", "normal", "origin")}
        motions = motions_between(common.frame, common.panels, replace(common.panels, **axes))
        angle = mean_rotation(common, np.array(axis), np.ones(4)) @ motions.ravel()
        assert angle == pytest.approx(0.002, rel=MEAN_ROTATION_RELATIVE)


def test_a_unit_that_is_not_seen_does_not_say_where_the_others_are(drawn_jointly):
    common = common_of(cut_detector(drawn_jointly.truth[0]))
    (gauge,) = gauges_of(common, (0.0, 0.0, -1.0), False, np.array([1.0, 1.0, 1.0, 0.0]))
    functional = gauge.functional.reshape(4, 6)
    assert (functional[DARK] == 0).all()
    assert (np.abs(functional[:DARK]).max(1) > 0).all()


def test_a_beam_that_moves_opens_two_more_directions(drawn_jointly):
    common = common_of(cut_detector(drawn_jointly.truth[0]))
    assert len(gauges_of(common, (0.0, 0.0, -1.0), False)) == 1
    assert len(gauges_of(common, (0.0, 0.0, -1.0), True)) == 3


def test_groups_follow_the_hierarchy_of_the_detector():
    pytest.importorskip("dxtbx", reason="dxtbx is not installed")
    from dxtbx.model import Detector

    detector = Detector()
    for quadrant in range(2):
        group = detector.hierarchy().add_group()
        group.set_name(f"quadrant {quadrant}")
        for number in range(2):
            group.add_panel().set_name(f"panel {quadrant}{number}")
    assert panel_groups(detector, 1) == [("quadrant 0", (0, 1)), ("quadrant 1", (2, 3))]
    assert [panels for _, panels in panel_groups(detector, 2)] == [(0,), (1,), (2,), (3,)]


def test_units_without_a_motion_are_refused():
    with pytest.raises(BadInput, match=r"refine\.detector is none"):
        Sharing((), (), True, UNITS)
