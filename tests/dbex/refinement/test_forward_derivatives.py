"""Every function that dbex differentiates forward, as it is called, in every stage: against the reverse mode."""

import numpy as np
import pytest
import torch

from dbex.cell_symmetry import free_cell_parameters
from dbex.refinement import conclude, objective, search, tables
from dbex.refinement.predictions import observed_predictions
from dbex.refinement.prior import ModelError
from dbex.refinement.rounds import objective_for
from dbex.refinement.shoeboxes import shoeboxes
from nanobrag_torch.jacobian import jacobian
from tests.conftest import ROOT
from tests.dbex.stages import STAGES, map_of, steps_of
from tests.reverse import largest_difference, reverse_jacobian
from tests.tolerances import FORWARD_RELATIVE

DIFFERENTIATING = (conclude, objective, search, tables)


@pytest.fixture
def differences(monkeypatch):
    """By module, the largest differences of what is differentiated from the reverse mode, call by call."""
    found = {}
    for module in DIFFERENTIATING:

        def compared(function, x, name=module.__name__):
            result = jacobian(function, x)
            expected = reverse_jacobian(function, x)
            assert any(bool(part.any()) for part in expected)
            found.setdefault(name, []).append(largest_difference(result, expected))
            return result

        monkeypatch.setattr(module, "jacobian", compared)
    return found


def test_no_other_module_differentiates_forward():
    sources = {path for path in (ROOT / "dbex").rglob("*.py") if "torch.jacobian import" in path.read_text()}
    assert sources == {ROOT / f"{module.__name__.replace('.', '/')}.py" for module in DIFFERENTIATING}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_goes_through_all_that_is_differentiated(still, stage, differences):
    free_cell = free_cell_parameters(still.experiment.crystal.get_space_group())
    map = map_of(still.crystal, still.detector, still.beam, free_cell, stage)
    x = 10 * steps_of(map) * torch.rand(len(map), generator=torch.Generator().manual_seed(6)).double()
    spots = observed_predictions(still, map.models(x)).select(np.arange(0, 96, 12))
    fit = objective_for(still, map, shoeboxes(still, spots, spots), ModelError(0.5), x.numpy())
    variance = fit.first_variance()
    local = fit.solve_linear(x, variance)
    fit.normal_equations(x, variance, local)
    tables.excitation(tables.Solved(fit, x, 1e-8 * np.eye(len(x)), variance, local))
    conclude.reported_slopes(map, x)
    search.spot_equations(still, map, x.numpy())
    search.search(still, map, x.numpy())
    assert set(differences) == {module.__name__ for module in DIFFERENTIATING}
    assert max(map_difference for each in differences.values() for map_difference in each) < FORWARD_RELATIVE
