"""Three drawn stills of one crystal in different orientations on one detector, refined jointly from a detector that
stands elsewhere."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dbex.joint.shared import Sharing
from dbex.joint.solve import Joint, solve
from dbex.joint.visits import Visitor
from dbex.refinement.settings import Settings
from dbex.still import Still
from nanobrag_torch.config import DetectorConfig, override
from nanobrag_torch.rotation import rotation_from_vector
from tests.dbex.refinement.closed_form import drawn_still, truth_of

TURNS = ((0.0, 0.0, 0.0), (0.5, 0.2, 0.0), (0.0, -0.4, 0.7))
D_MIN_A = 1.9
#: By how much the detector that was read stands too near, and to the side, mm.
TOO_NEAR_MM, ASIDE_MM = 0.08, 0.05
SETTINGS = Settings(
    detector=("distance", "shift", "tilt"), d_min=D_MIN_A, model_error=0.02, start="near", terms=(), max_iterations=30
)


@dataclass(frozen=True)
class DrawnJointly:
    """The stills, the true panels, the visitor and the joint solution."""

    stills: list[Still]
    truth: tuple[DetectorConfig, ...]
    visitor: Visitor
    joint: Joint


def turned(still, turn):
    """The still's crystal turned by a rotation vector, radians."""
    R = rotation_from_vector(torch.tensor(turn, dtype=torch.float64))
    U = R @ torch.as_tensor(still.crystal.U, dtype=torch.float64)
    return replace(still, crystal=override(still.crystal, {"U": tuple(tuple(row) for row in U.tolist())}))


def elsewhere(panel):
    """The panel as somebody believes it to stand."""
    return override(
        panel,
        {
            "distance_mm": panel.distance_mm - np.sign(panel.distance_mm) * TOO_NEAR_MM,
            "origin_fast_mm": panel.origin_fast_mm + ASIDE_MM,
        },
    )


@pytest.fixture(scope="session")
def drawn_jointly(still, tmp_path_factory):
    """Drawn and refined once."""
    stills = []
    for number, turn in enumerate(TURNS):
        one = turned(replace(still, name=f"drawn {number}"), turn)
        stills.append(drawn_still(one, truth_of(one, SETTINGS), seed=number, d_min=D_MIN_A))
    believed = tuple(elsewhere(panel) for panel in still.detector)
    folder = tmp_path_factory.mktemp("spool")
    visitor = Visitor(stills.__getitem__, SETTINGS, Sharing(SETTINGS.detector), believed, folder)
    joint = solve(visitor, range(len(stills)), still.beam, map, SETTINGS.max_iterations, lambda line: None)
    return DrawnJointly(stills, still.detector, visitor, joint)
