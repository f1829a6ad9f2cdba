"""DB-AT-010: derivatives of the loss of the shipped still with respect to cell, distance and wavelength are exact."""

from functools import cache

import pytest
import torch

from tests.dbex.conftest import SHIPPED, reading
from tests.differences import extrapolated_difference, relative_error
from tests.reports import acceptance_report
from tests.tolerances import EXTRAPOLATED_DIFFERENCE_RELATIVE

EPS, ATOL, RTOL = 1e-6, 1e-5, 0.05
#: The step of the differences that are extrapolated, in Å, degrees and mm.
STEP = 1e-4
SIGMA_ADU = 3.0

PARAMETERS = {
    "cell_a": ("crystal_overrides", lambda still: still.crystal.get_unit_cell().parameters()[0]),
    "cell_gamma": ("crystal_overrides", lambda still: still.crystal.get_unit_cell().parameters()[5]),
    # A user's harness gives the distance as a positive number, wherever the panel's normal points.
    "distance_mm": ("detector_overrides", lambda still: abs(still.detector[0].get_origin()[2])),
    "wavelength_A": ("beam_overrides", lambda still: still.beam.get_wavelength()),
}


@pytest.fixture(autouse=True)
def plain_python(monkeypatch):
    """The environment in which the harness runs: nothing compiled, and two OpenMP libraries tolerated."""
    monkeypatch.setenv("NANOBRAGG_DISABLE_COMPILE", "1")
    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "TRUE")


class Harness:
    """The loss of the shipped still as a function of one overridden number."""

    def __init__(self):
        from dbex.refinement.inputs import prepare_refinement_inputs

        self.still = still = reading().DataLoad(SHIPPED.args())
        self.inputs = prepare_refinement_inputs(
            still.data,
            still.background_image,
            still.trusted_mask,
            still.bbox,
            still.pids,
            still.detector,
            sigma_readout=SIGMA_ADU,
        )
        self.target = torch.as_tensor(self.inputs.target)
        self.mask = torch.as_tensor(self.inputs.loss_mask)
        self.sigma = torch.full_like(self.target, SIGMA_ADU)

    def predicted(self, parameter, value):
        from dbex.physics.forward import simulate_forward_torch

        still = self.still
        return simulate_forward_torch(
            self.inputs,
            still.detector,
            still.beam,
            still.crystal,
            still.Expt,
            still.F.indices(),
            still.F.data(),
            spot_scale_override=1.0,
            device="cpu",
            dtype=torch.float64,
            **{PARAMETERS[parameter][0]: {parameter: value}},
        )

    def loss(self, parameter, value):
        from dbex.physics.loss import compute_masked_mse_loss

        return compute_masked_mse_loss(self.predicted(parameter, value), self.target, self.mask, self.sigma)

    def check(self, parameter, values):
        """Fills `values` with the derivative in three ways, and asserts that they agree."""
        base = torch.tensor(PARAMETERS[parameter][1](self.still), dtype=torch.float64, requires_grad=True)
        values |= {"base_value": base.item(), "eps": EPS, "atol": ATOL, "rtol": RTOL, "step": STEP}
        (analytic,) = torch.autograd.grad(self.loss(parameter, base), base)
        values["analytic"] = analytic.item()
        with torch.no_grad():
            step = torch.tensor(STEP, dtype=torch.float64)
            numeric = extrapolated_difference(lambda x: self.loss(parameter, x), base.detach(), step) / STEP
        values |= {"numeric": numeric, "relative_error": relative_error(analytic.item(), numeric)}
        passed = torch.autograd.gradcheck(
            lambda x: self.loss(parameter, x), base, eps=EPS, atol=ATOL, rtol=RTOL, raise_exception=False
        )
        values["gradcheck_passed"] = passed
        assert values["analytic"] != 0, f"the loss does not depend on {parameter}"
        assert passed, f"gradcheck of {parameter}: analytic {values['analytic']}, numeric {numeric}"
        assert values["relative_error"] <= EXTRAPOLATED_DIFFERENCE_RELATIVE


@pytest.fixture(scope="class")
def harness():
    return Harness()


@pytest.fixture(scope="class")
def outcome(harness):
    """A function that checks one parameter, once, and writes its report: the failure in words, or None."""

    @cache
    def checked(parameter):
        try:
            with acceptance_report(
                "DB-AT-010",
                parameter,
                tolerances={"relative_error": EXTRAPOLATED_DIFFERENCE_RELATIVE},
                inputs=tuple(SHIPPED),
                file=f"gradcheck_{parameter}",
                top_level=("base_value", "gradcheck_passed", "eps", "atol", "rtol", "analytic", "numeric"),
            ) as values:
                harness.check(parameter, values)
        except AssertionError as error:
            return str(error)
        return None

    return checked


class TestDB_AT_010_Gradcheck:
    def test_db_at_010_gradcheck_crystal_cell_a(self, outcome):
        assert outcome("cell_a") is None

    def test_db_at_010_gradcheck_crystal_cell_gamma(self, outcome):
        assert outcome("cell_gamma") is None

    def test_db_at_010_gradcheck_detector_distance(self, outcome):
        assert outcome("distance_mm") is None

    def test_db_at_010_gradcheck_beam_wavelength(self, outcome):
        assert outcome("wavelength_A") is None

    def test_db_at_010_gradcheck(self, outcome):
        with acceptance_report("DB-AT-010", "gradcheck", tolerances={}, inputs=tuple(SHIPPED)) as values:
            values |= {parameter: outcome(parameter) or "passed" for parameter in PARAMETERS}
            assert set(values.values()) == {"passed"}

    def test_a_loss_whose_variance_is_cut_from_the_graph_does_not_pass(self, harness):
        """The check can fail: with V detached, value and gradient belong to two different functions."""

        def cut(value):
            predicted = harness.predicted("cell_a", value)[harness.mask]
            residual = harness.target[harness.mask] - predicted
            return (residual**2 / (predicted.detach() + SIGMA_ADU**2)).mean()

        base = torch.tensor(PARAMETERS["cell_a"][1](harness.still), dtype=torch.float64, requires_grad=True)
        assert not torch.autograd.gradcheck(cut, base, eps=EPS, atol=ATOL, rtol=RTOL, raise_exception=False)
