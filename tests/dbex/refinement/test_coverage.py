"""DB-AT-060: errors that are told are those that are made, on stills drawn from the model."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dbex.refinement.objective import Objective
from dbex.refinement.predictions import predict
from dbex.refinement.prior import ModelError
from dbex.refinement.problem import StillProblem
from dbex.refinement.rounds import objective_for
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import shoeboxes
from dbex.refinement.solvers.levenberg_marquardt import minimise
from dbex.refinement.uncertainty import curvature
from tests.dbex.conftest import SHIPPED
from tests.dbex.refinement.closed_form import BACKGROUND, truth_of
from tests.reports import acceptance_report
from tests.tolerances import COVERAGE_68_OF_50, COVERAGE_68_OF_MANY, COVERAGE_95_OF_MANY

REPEATS, BOXES, F_ERROR = 50, 40, 0.2
#: Seeds and draws of each: 1,000 in all, so that 5 % are three and a half standard errors of a part of 68 %, for the
#: farthest of 14 parameters.
MANY = ((62, 600), (630, 100), (631, 100), (632, 100), (633, 100))


@dataclass(frozen=True)
class Drawing:
    """The boxes of a model at its truth, x = 0, and what there is to draw data from."""

    objective: Objective
    profiles: torch.Tensor
    planes: torch.Tensor

    def data(self, rng, intensity):
        """Photons (N,) of reflections with those intensities (m,)."""
        boxes = self.objective.boxes
        at_nodes = torch.as_tensor(intensity)[boxes.node.clamp_min(0)] * (boxes.node >= 0)
        expected = (self.profiles * at_nodes[boxes.box]).sum(-1) + (boxes.basis * self.planes[boxes.box]).sum(-1)
        return torch.as_tensor(rng.poisson(expected.clamp_min(0)).astype(np.float64))


@pytest.fixture(scope="module")
def drawing(still):
    """Sixty boxes of the shipped geometry, strong and absent ones, each on a sloping background."""
    truth = truth_of(still, Settings(detector=("distance",)))
    shapes = [panel.shape for panel in still.detector]
    everything = predict(truth.models, still.amplitudes, 1.8, 4.0, shapes)
    chosen = everything.select(np.abs(everything.k) < 3.0)
    rng = np.random.default_rng(0)
    chosen = chosen.select(np.sort(rng.choice(len(chosen), min(BOXES, len(chosen)), replace=False)))
    boxes = shoeboxes(still, chosen, everything)
    objective = objective_for(still, truth.map, boxes, ModelError(F_ERROR))
    slopes = rng.normal(0, 1.5, (len(boxes), 3))
    slopes[:, 0] = BACKGROUND
    return Drawing(objective, objective.profiles(truth.zero), torch.as_tensor(slopes))


def scaled_errors(drawing, taken_for_exact, seed, repeats):
    """(x - truth)/esd (repeats, n): F² are off by their prior's width, which the refinement knows or does not."""
    rng = np.random.default_rng(seed)
    objective = drawing.objective
    known = objective.prior
    if taken_for_exact:
        objective = replace(objective, prior=replace(known, sd=1e-3 * known.mean + 1e-6))
    result = []
    for _ in range(repeats):
        intensity = known.mean.numpy() + known.sd.numpy() * rng.normal(size=len(known.mean))
        data = drawing.data(rng, intensity)
        problem = StillProblem(replace(objective, boxes=replace(objective.boxes, data=data)))
        state = problem.start(np.zeros(len(objective.map)))
        esd = np.sqrt(np.diag(np.linalg.inv(problem.normal(np.zeros(len(objective.map)), state)[0])))
        start = esd * rng.normal(size=len(esd))
        found = minimise(problem, start, 30, 0.05)
        assert found.converged
        covariance = curvature(found.matrix, objective.map).covariance
        result.append(found.x / np.sqrt(np.diag(covariance)))
    return np.array(result)


def told(drawing, z):
    names = [p.name for p in drawing.objective.map.parameters]
    return {
        "within_one_esd": float((np.abs(z) < 1).mean()),
        "within_two_esds": float((np.abs(z) < 2).mean()),
        "by_parameter": {
            name: {
                "within_one_esd": (np.abs(z[:, i]) < 1).mean(),
                "within_two": (np.abs(z[:, i]) < 2).mean(),
                "mean": z[:, i].mean(),
                "rms": z[:, i].std(),
            }
            for i, name in enumerate(names)
        },
        "boxes": len(drawing.objective.boxes),
        "repeats": len(z),
    }


class TestDB_AT_060_Coverage:
    @pytest.mark.slow
    def test_db_at_060_of_errors_68_percent_are_within_one_esd(self, drawing):
        tolerances = {"fraction_within_one_esd": [0.6827 - COVERAGE_68_OF_50, 0.6827 + COVERAGE_68_OF_50]}
        with acceptance_report("DB-AT-060", "in_model", tolerances=tolerances, inputs=tuple(SHIPPED)) as values:
            z = scaled_errors(drawing, taken_for_exact=False, seed=60, repeats=REPEATS)
            values |= told(drawing, z)
            assert abs(values["within_one_esd"] - 0.6827) < COVERAGE_68_OF_50
            assert abs(values["within_two_esds"] - 0.9545) < COVERAGE_68_OF_50 / 2
            # no parameter is off by more than four standard errors of its mean
            assert np.abs(z.mean(0)).max() < 4 / np.sqrt(REPEATS)

    @pytest.mark.full_profile
    def test_db_at_060_of_every_parameters_errors_68_and_95_percent_are_within_one_and_two_esds(self, drawing):
        tolerances = {"within_one_esd": [0.68, COVERAGE_68_OF_MANY], "within_two_esds": [0.95, COVERAGE_95_OF_MANY]}
        with acceptance_report("DB-AT-060", "every_parameter", tolerances=tolerances, inputs=tuple(SHIPPED)) as values:
            z = np.concatenate([scaled_errors(drawing, False, seed, repeats) for seed, repeats in MANY])
            values |= told(drawing, z)
            one, two = ((np.abs(z) < esds).mean(0) for esds in (1, 2))
            values["farthest"] = {
                "within_one_esd": np.abs(one - 0.68).max(),
                "within_two_esds": np.abs(two - 0.95).max(),
            }
            assert values["repeats"] >= 100
            assert np.abs(one - 0.68).max() < COVERAGE_68_OF_MANY
            assert np.abs(two - 0.95).max() < COVERAGE_95_OF_MANY
            assert np.abs(z.mean(0)).max() < 4 / np.sqrt(len(z))

    @pytest.mark.slow
    def test_db_at_060_structure_factors_taken_for_exact_that_are_not_would_be_noticed(self, drawing):
        tolerances = {"fraction_within_one_esd_below": 0.6827 - COVERAGE_68_OF_50}
        with acceptance_report("DB-AT-060", "F_taken_for_exact", tolerances=tolerances) as values:
            values |= told(drawing, scaled_errors(drawing, taken_for_exact=True, seed=61, repeats=10))
            assert values["within_one_esd"] < 0.6827 - COVERAGE_68_OF_50
