"""How much of a reflection the Ewald sphere captures, and that its error does not pull the scale."""

from dataclasses import replace

import numpy as np
import torch

from dbex.refinement.captured import ln_captured
from dbex.refinement.objective import Objective
from dbex.refinement.predictions import observed_predictions
from dbex.refinement.prior import ModelError
from dbex.refinement.refine import refine_still
from dbex.refinement.rounds import objective_for
from dbex.refinement.settings import CRYSTAL, Settings
from dbex.refinement.shoeboxes import shoeboxes
from tests.dbex.refinement.closed_form import truth_of
from tests.dbex.stages import steps_of
from tests.differences import extrapolated_difference
from tests.tolerances import EXTRAPOLATED_DIFFERENCE_RELATIVE, SCALED_TOGETHER, TRUTH_ESDS

#: Relative error of a mean |F|²: taken for a scale, its square would be a quarter.
ERROR_OF_F2 = 0.5


def test_the_amplitude_follows_crystal_and_beam_as_its_derivatives_say(still):
    truth = truth_of(still, Settings(beam=("wavelength", "direction"), detector=("distance",)))
    spots = observed_predictions(still, truth.models)
    fit = objective_for(still, truth.map, shoeboxes(still, spots, spots), ModelError(0.1))
    x = truth.zero
    slopes = captured_slopes_of(fit, x)
    steps = 0.1 * steps_of(truth.map)
    for i, parameter in enumerate(truth.map.parameters):
        direction = torch.zeros_like(x)
        direction[i] = steps[i]

        def total(at):
            there = fit.at(at)
            return float(ln_captured(there.nodes, there.parts.node, fit.sphere(there.models)).sum())

        numeric = extrapolated_difference(total, x, direction)
        # a rotation about the beam changes nothing but the last digits
        largest = max(float(slopes[:, i].abs().sum() * steps[i]), 1e-4)
        assert abs(float(slopes[:, i].sum() * steps[i]) - numeric) <= EXTRAPOLATED_DIFFERENCE_RELATIVE * largest, (
            parameter.name
        )


def captured_slopes_of(fit: Objective, x: torch.Tensor):
    at = fit.at(x)
    return fit.captured_slopes(at, fit.by_x(at))


def test_wavelength_and_crystal_scaled_together_capture_as_many_photons(still):
    """No pixel sees that scale, so the errors of |F|² may not see it either: they would pull it away from its prior."""
    truth = truth_of(still, Settings(beam=("wavelength",)))
    spots = observed_predictions(still, truth.models)
    fit = objective_for(still, truth.map, shoeboxes(still, spots, spots), ModelError(0.1))
    x = truth.zero
    # the scale holds the volume of the reciprocal cell
    by_name = {"wavelength": 1.0, "cell_a": 1.0, "cell_b": 1.0, "cell_c": 1.0, "domain_size": 1.0, "scale": -3.0}
    direction = torch.tensor([by_name.get(p.name, 0.0) for p in truth.map.parameters], dtype=torch.float64)
    along = captured_slopes_of(fit, x) @ direction
    assert fit.map.crystal.b_factor_A2 == 0
    assert float(along.abs().max()) < SCALED_TOGETHER
    assert float(captured_slopes_of(fit, x)[:, fit.map.place("wavelength")].abs().max()) > 1


def test_structure_factors_that_are_half_wrong_leave_the_scale_where_it_is(drawn):
    still, truth = drawn
    rng = np.random.default_rng(11)
    F = still.amplitudes.F
    error = 0.5 * ERROR_OF_F2 * np.sqrt(np.mean(F**2))
    known = replace(still.amplitudes, F=np.abs(F + error * rng.normal(size=len(F))))
    # with B free the scale is its partner, hardly determined
    groups = tuple(group for group in CRYSTAL if group != "b_factor")
    refined = refine_still(replace(still, amplitudes=known), Settings(crystal=groups, terms=()))
    told = {e.name: e for e in refined.estimates}["scale"]
    assert abs(np.log(told.after) - float(truth.models.ln_scale)) < TRUTH_ESDS * told.esd / told.after
    assert told.esd / told.after < ERROR_OF_F2**2 / 2
