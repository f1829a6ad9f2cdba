"""A crystal with one long axis, whose spots lie a few pixels apart and overlap, on the shipped still's detector."""

from dataclasses import replace

import numpy as np
import torch
from dxtbx.model import Crystal

from dbex.models import create_crystal_config
from dbex.refinement.parameters import CELL, parametrisation
from dbex.refinement.predictions import predict
from dbex.still import Amplitudes
from tests.dbex.refinement.closed_form import add_spots

LONG_A, DOMAIN_A, MOSAICITY_DEG = 250.0, 500.0, 0.35
BACKGROUND = 9.0
#: Relative error of the listed F, which the image does not know.
F_ERROR = 0.15


def long_axis_still(still, seed=3):
    """The still with another crystal, its amplitudes, and an image drawn of it; and the parametrisation about it."""
    rng = np.random.default_rng(seed)
    crystal = Crystal((0.0, 31.0, 3.0), (2.0, 0.0, 29.0), (LONG_A, 7.0, -5.0), "P 1")
    config = create_crystal_config(crystal, domain_size_A=DOMAIN_A, mosaicity_deg=MOSAICITY_DEG)
    few, many = np.arange(-9, 10), np.arange(-70, 71)
    hkl = np.stack(np.meshgrid(few, few, many, indexing="ij"), -1).reshape(-1, 3)
    F = np.sqrt(rng.exponential(4e4, len(hkl))) + 20
    known = Amplitudes(hkl, F, 0.03 * F, "F", "P 1", crystal.get_unit_cell().parameters())
    groups = ("orientation", "cell", "scale", "b_factor", "size", "mosaicity")
    map = parametrisation(config, still.detector, still.beam, (CELL, np.eye(6)), groups, ("distance",), (), -4.0)
    models = map.models(torch.zeros(len(map), dtype=torch.float64))
    shapes = [panel.shape for panel in still.detector]
    everything = predict(models, known, 3.5, 4.0, shapes)
    expected = [np.full(shape, BACKGROUND) for shape in shapes]
    add_spots(expected, models, everything, replace(known, F=F * np.exp(rng.normal(0, F_ERROR, len(F)))))
    images = tuple(rng.poisson(image).astype(np.float64) for image in expected)
    return replace(still, crystal=config, amplitudes=known, images_photons=images), map, everything
