"""What stills have in common, and what each keeps."""

import pytest
import torch

from dbex.joint.shared import NO_PRIOR, Common
from dbex.refinement.parameters import detector_frame
from dbex.refinement.rounds import start
from dbex.refinement.settings import Settings
from dbex.refinement.widths import FIRST
from nanobrag_torch.panel import stack_panels


def test_on_the_common_detector_a_still_keeps_its_own_point_spread(still):
    map = start(still, Settings(detector=("distance", "point_spread")))
    panels = stack_panels(still.detector, torch.zeros((), dtype=torch.float64))
    distance = map.parameters[map.place("distance")]
    common = Common(still.detector, panels, detector_frame(panels, still.beam), None, (distance,))
    rebased, zero = common.rebased(map), torch.zeros(len(map), dtype=torch.float64)
    assert rebased.value("point_spread", zero) == pytest.approx(FIRST["point_spread"])
    assert rebased.value("distance", zero) == pytest.approx(map.value("distance", zero))
    assert rebased.parameters[rebased.place("distance")].prior == NO_PRIOR
    assert rebased.parameters[rebased.place("point_spread")].prior < NO_PRIOR
