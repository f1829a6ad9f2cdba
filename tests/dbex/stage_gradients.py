"""Prints the derivatives of a small still's χ² as JSON: run with and without NANOBRAGG_DISABLE_COMPILE.

A program of its own, since the checks of shapes that the tests hang into every function would be compiled too.
"""

import json
import sys

import numpy as np
import torch

from dbex.models import create_beam_config, create_crystal_config
from dbex.physics.forward import panel_configs
from dbex.physics.loss import compute_masked_mse_loss
from dbex.refinement.objective import Objective
from dbex.refinement.parameters import CELL
from dbex.refinement.prior import IntensityPrior
from dbex.refinement.shoeboxes import Shoeboxes
from nanobrag_torch.config import override
from nanobrag_torch.profile import Quadrature
from tests.dbex.small_still import MOSAICITY_DEG, SIZE_A, small_still
from tests.dbex.stages import map_of, steps_of


def objective(stage):
    """One box of 13 x 13 pixels in the middle of each of two panels, and data that the model does not quite fit."""
    small = small_still(8)
    crystal = override(create_crystal_config(small.crystal), {"domain_size_A": SIZE_A, "mosaicity_deg": MOSAICITY_DEG})
    panels = panel_configs(small.detector, small.beam, None)
    map = map_of(crystal, panels, create_beam_config(small.beam), (CELL, np.eye(6)), stage, ln_scale=-8.0)
    slow, fast = (axis.repeat(2) for axis in torch.cartesian_prod(torch.arange(6, 19), torch.arange(6, 19)).T)
    generator = torch.Generator().manual_seed(9)
    data = 10 + torch.rand(slow.shape, generator=generator, dtype=torch.float64)
    everywhere = torch.ones(slow.shape, dtype=torch.bool)
    x, y = ((axis - 12) / 6 for axis in (fast, slow))
    planes = torch.stack([torch.ones_like(x), x, y], -1).double()
    bbox, own = np.tile([6, 19, 6, 19], (2, 1)), torch.tensor([[0], [1]])
    boxes = Shoeboxes(
        torch.tensor([0, 1]),
        everywhere,
        torch.arange(2).repeat_interleave(len(slow) // 2),
        slow,
        fast,
        everywhere,
        data,
        torch.zeros_like(data),
        data,
        torch.ones_like(slow),
        planes,
        bbox,
        np.arange(2),
        own,
        {},
    )
    mean = torch.tensor([900.0, 1600.0], dtype=torch.float64)
    return Objective(boxes, small.struck, map, IntensityPrior(mean, 0.5 * mean), Quadrature(), torch.ones_like(data))


def gradients(stage):
    """By backward through masking and weighting, and in closed form, of half of χ² (n,)."""
    fit = objective(stage).prepared()
    x = 5 * steps_of(fit.map)
    variance = fit.first_variance()
    local = fit.solve_linear(x, variance)
    at = x.clone().requires_grad_()
    predicted = local.background + (fit.profiles(at) * local.intensity[fit.boxes.node][fit.boxes.box]).sum(-1)
    chi2 = compute_masked_mse_loss(predicted, fit.boxes.data, fit.boxes.used, variance=variance) * predicted.numel()
    chi2.backward()
    priors = np.array([p.prior for p in fit.map.parameters])
    closed = fit.normal_equations(x, variance, local).gradient + x.numpy() / priors**2
    return {"backward": (-at.grad / 2).tolist(), "closed": closed.tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps({stage: gradients(stage) for stage in sys.argv[1:]}))
