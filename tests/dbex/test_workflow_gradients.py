"""DB-AT-011: the refinement's closed-form derivatives are those of its model, in every stage."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch.func import vmap

from dbex.cell_symmetry import free_cell_parameters
from dbex.models import create_beam_config, create_crystal_config
from dbex.physics.forward import panel_configs
from dbex.physics.loss import compute_masked_mse_loss
from dbex.refinement.objective import Objective, component_rows
from dbex.refinement.parameters import _GROUPS, CELL
from dbex.refinement.predictions import observed_predictions
from dbex.refinement.prior import ModelError, intensity_prior
from dbex.refinement.shoeboxes import shoeboxes
from nanobrag_torch.config import override
from nanobrag_torch.node_columns import part_nodes
from nanobrag_torch.profile import Quadrature, pair_intensities
from tests.conftest import ROOT
from tests.dbex.conftest import SHIPPED
from tests.dbex.gradient_cases import PAIRS, PIXELS
from tests.dbex.small_still import small_still
from tests.dbex.stages import STAGES, map_of, steps_of
from tests.differences import extrapolated_difference
from tests.reports import acceptance_report
from tests.tolerances import CLOSED_FORM_JACOBIAN_RELATIVE, EXTRAPOLATED_DIFFERENCE_RELATIVE


def test_every_group_that_can_be_free_is_in_a_stage():
    assert {group for stage in STAGES.values() for groups in stage for group in groups} == {*_GROUPS, "cell"}


@pytest.fixture(scope="module")
def spots(still):
    """A dozen indexed spots of the shipped still."""
    map = map_of(still.crystal, still.detector, still.beam, free_cell_parameters(group_of(still)), "crystal")
    return observed_predictions(still, map.models(torch.zeros(len(map), dtype=torch.float64))).select(
        np.arange(0, 96, 8)
    )


def group_of(still):
    return still.experiment.crystal.get_space_group()


@pytest.fixture(params=STAGES)
def stage(request):
    return request.param


@pytest.fixture
def fit(still, spots, stage):
    """A stage's objective on a dozen boxes, a point x near its start, frozen variances and the optimum there."""
    map = map_of(still.crystal, still.detector, still.beam, free_cell_parameters(group_of(still)), stage)
    objective = objective_of(still, map, spots)
    x = 10 * steps_of(map) * torch.rand(len(map), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    variance = objective.variance(objective.solve_linear(x, objective.first_variance()))
    return objective, x, variance, objective.solve_linear(x, variance)


def objective_of(still, map, spots):
    boxes = shoeboxes(still, spots, spots)
    prior = intensity_prior(still.amplitudes, boxes.reflections, ModelError(0.5))
    hkl = torch.as_tensor(still.amplitudes.hkl[boxes.reflections])
    return Objective(boxes, hkl, map, prior, Quadrature(), torch.ones_like(boxes.data)).prepared()


def prediction(objective, x, local):
    """The model (N,) of all pixels at x, planes and intensities held."""
    at_nodes = local.intensity[objective.boxes.node.clamp_min(0)] * (objective.boxes.node >= 0)
    return local.background + (objective.profiles(x) * at_nodes[objective.boxes.box]).sum(-1)


def backward(predicted, objective, variance):
    """The loss of a prediction through masking and weighting, times the number of pixels: χ²."""
    boxes = objective.boxes
    return compute_masked_mse_loss(predicted, boxes.data, boxes.used, variance=variance) * boxes.used.sum()


class TestDB_AT_011_Workflow:
    def test_db_at_011_every_free_parameter_has_the_closed_forms_gradient(self, fit, stage):
        objective, x, variance, local = fit
        at = x.clone().requires_grad_()
        backward(prediction(objective, at, local), objective, variance).backward()
        normal = objective.normal_equations(x, variance, local)
        priors = torch.tensor([p.prior for p in objective.map.parameters], dtype=torch.float64)
        closed = torch.as_tensor(normal.gradient) + x / priors**2
        # what the gradient would be if every residual pulled the same way
        scale = np.sqrt(np.diag(normal.matrix) * local.chi2)
        with acceptance_report(
            "DB-AT-011",
            stage.replace(" ", "_"),
            tolerances={"relative": CLOSED_FORM_JACOBIAN_RELATIVE},
            inputs=tuple(SHIPPED),
        ) as values:
            for i, parameter in enumerate(objective.map.parameters):
                values[parameter.name] = {"autograd": at.grad[i].item(), "closed_form": -2 * closed[i].item()}
            assert torch.isfinite(at.grad).all()
            assert (at.grad != 0).all()
            assert ((at.grad / -2 - closed).abs().numpy() < CLOSED_FORM_JACOBIAN_RELATIVE * scale).all()

    def test_db_at_011_every_column_of_the_jacobian_is_that_of_autograd(self, fit):
        objective, x, _, local = fit
        at_nodes = local.intensity[objective.boxes.node.clamp_min(0)] * (objective.boxes.node >= 0)
        columns = objective.jacobian(x, at_nodes)
        generator = torch.Generator().manual_seed(5)
        at = x.clone().requires_grad_()
        predicted = prediction(objective, at, local)
        for _ in range(3):
            weights = torch.randn(predicted.shape, generator=generator, dtype=torch.float64)
            (gradient,) = torch.autograd.grad(predicted, at, weights, retain_graph=True)
            closed = (columns * weights[:, None]).sum(0)
            size = torch.sqrt((columns * weights[:, None]).square().sum(0))
            assert (size > 0).all()
            assert ((gradient - closed).abs() < CLOSED_FORM_JACOBIAN_RELATIVE * size).all()

    def test_db_at_011_the_gradient_is_that_of_the_merit_with_all_that_is_linear_solved_anew(self, fit):
        """Planes and intensities are at their optimum, where moving them changes nothing to first order."""
        objective, x, variance, local = fit
        normal = objective.normal_equations(x, variance, local)
        priors = torch.tensor([p.prior for p in objective.map.parameters], dtype=torch.float64)
        # all parameters at once move a spot farther than one of them
        direction = 0.2 * steps_of(objective.map) * torch.sign(torch.as_tensor(normal.gradient))

        def merit(at):
            return objective.solve_linear(at, variance).merit + ((at / priors) ** 2).sum()

        numeric = extrapolated_difference(merit, x, direction)
        analytic = -2 * (normal.gradient * direction.numpy()).sum()
        assert abs(analytic / numeric - 1) < EXTRAPOLATED_DIFFERENCE_RELATIVE

    def test_db_at_011_the_matrix_is_the_schur_complement_of_the_whole_problem(self, fit):
        objective, x, variance, local = fit
        boxes = objective.boxes
        at_nodes = local.intensity[boxes.node.clamp_min(0)] * (boxes.node >= 0)
        J, profiles = objective.jacobian(x, at_nodes), objective.profiles_of(local.columns)
        root = torch.sqrt(objective.weights(variance))
        pixel = torch.arange(len(root))
        planes = torch.zeros(len(root), len(boxes), 3, dtype=torch.float64)
        planes[pixel, boxes.box] = boxes.basis
        intensities = torch.zeros(len(root), len(objective.prior.mean), dtype=torch.float64)
        for k in range(boxes.node.shape[1]):
            node = boxes.node[boxes.box, k]
            intensities[pixel[node >= 0], node[node >= 0]] += profiles[node >= 0, k]
        rows = torch.cat([J, planes.flatten(1), intensities * objective.prior.sd], 1) * root[:, None]
        whole = rows.T @ rows
        free = len(x)
        whole[range(free), range(free)] += torch.as_tensor(np.array([q.prior**-2.0 for q in objective.map.parameters]))
        last = range(len(whole) - len(objective.prior.mean), len(whole))
        whole[last, last] += 1.0
        A, B, C = whole[:free, :free], whole[:free, free:], whole[free:, free:]
        schur = A - B @ torch.linalg.solve(C, B.T)
        found = torch.as_tensor(objective.normal_equations(x, variance, local).matrix)
        size = torch.sqrt(A.diagonal()[:, None] * A.diagonal())
        assert ((found - schur).abs() / size).max() < CLOSED_FORM_JACOBIAN_RELATIVE

    @pytest.mark.parametrize("disabled", ["0", "1"], ids=["compiled", "plain"])
    def test_db_at_011_boxes_with_whole_pixels_among_others_have_their_models_gradient(
        self, fit, disabled, monkeypatch
    ):
        monkeypatch.setenv("NANOBRAGG_DISABLE_COMPILE", disabled)
        split, x, variance, _ = fit
        mixed = replace(split, whole=np.arange(len(split.boxes)) % 3 == 0).prepared()
        assert len({group.rule for group in mixed.groups.groups}) == (2 if mixed.map.component_count <= 2 else 1)
        local = mixed.solve_linear(x, variance)
        at = x.clone().requires_grad_()
        predicted = prediction(mixed, at, local)
        torch.testing.assert_close(
            predicted.detach(), local.background + local.bragg, rtol=CLOSED_FORM_JACOBIAN_RELATIVE, atol=0
        )
        backward(predicted, mixed, variance).backward()
        normal = mixed.normal_equations(x, variance, local)
        priors = torch.tensor([p.prior for p in mixed.map.parameters], dtype=torch.float64)
        closed = torch.as_tensor(normal.gradient) + x / priors**2
        scale = np.sqrt(np.diag(normal.matrix) * local.chi2)
        assert ((at.grad / -2 - closed).abs().numpy() < CLOSED_FORM_JACOBIAN_RELATIVE * scale).all()
        columns = mixed.jacobian(x, mixed.at_nodes(local.intensity))
        weights = torch.randn(predicted.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
        at = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(prediction(mixed, at, local), at, weights)
        weighted = columns * weights[:, None]
        size = torch.sqrt(weighted.square().sum(0))
        assert ((gradient - weighted.sum(0)).abs() < CLOSED_FORM_JACOBIAN_RELATIVE * size).all()

    @pytest.mark.slow
    def test_db_at_011_compiled_or_not_the_gradient_is_the_same(self):
        if find_spec("nanobrag_torch.compiling") is None:
            pytest.skip("nothing is compiled yet")
        stages = ["crystal", "crystal and detector", "crystal and beam"]
        plain, compiled = (
            gradients_of(stages, environment) for environment in ({"NANOBRAGG_DISABLE_COMPILE": "1"}, {})
        )
        for stage in stages:
            for way in ("backward", "closed"):
                found, expected = np.array(compiled[stage][way]), np.array(plain[stage][way])
                assert np.isfinite(found).all()
                assert (found != 0).all()
                size = np.abs(expected).max()
                np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSED_FORM_JACOBIAN_RELATIVE * size)


def gradients_of(stages, environment):
    """The derivatives of a small still by stage, from a program of its own with that environment."""
    inherited = {name: value for name, value in os.environ.items() if name != "NANOBRAGG_DISABLE_COMPILE"}
    command = [sys.executable, "-m", "tests.dbex.stage_gradients", *stages]
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestDB_AT_010_RefinedParameters:
    def test_db_at_010_the_derivative_in_every_free_parameter(self, stage):
        """At 25 points x of every stage, of a small still with two panels and all six numbers of its cell free."""
        small = small_still(8)
        crystal = override(create_crystal_config(small.crystal), {"domain_size_A": 600.0, "mosaicity_deg": 0.15})
        free_cell = (CELL, np.eye(6))
        panels = panel_configs(small.detector, small.beam, None)
        map = map_of(crystal, panels, create_beam_config(small.beam), free_cell, stage, ln_scale=5.0)
        generator = torch.Generator().manual_seed(4)
        steps = steps_of(map)
        x = 20 * steps * (2 * torch.rand(25, len(map), generator=generator, dtype=torch.float64) - 1)
        rule, both = Quadrature(), torch.tensor([0, 1])

        def total(x):
            models, image = map.models(x), torch.zeros_like(small.weight)
            rows = component_rows(models)
            for i in range(len(rows)):
                at = part_nodes(rows, torch.full_like(both, i), models.panels, small.struck, both, rule)
                image = image + pair_intensities(at, models.panels, models.beam, PIXELS, PAIRS, rule)
            return (image * small.weight).sum()

        f = vmap(total)
        at = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(f(at).sum(), at)
        tolerance = {"relative_error": EXTRAPOLATED_DIFFERENCE_RELATIVE}
        with acceptance_report("DB-AT-010", f"refined_{stage.replace(' ', '_')}", tolerances=tolerance) as values:
            with torch.no_grad():
                for i, parameter in enumerate(map.parameters):
                    step = torch.zeros_like(x)
                    step[:, i] = steps[i]
                    central = [(f(x + h * step) - f(x - h * step)) / (2 * h * steps[i]) for h in (1.0, 0.5)]
                    numeric = (4 * central[1] - central[0]) / 3
                    values[parameter.name] = ((gradient[:, i] - numeric) / numeric).abs().max().item()
                    assert (gradient[:, i] != 0).all()
            assert max(values.values()) < EXTRAPOLATED_DIFFERENCE_RELATIVE
