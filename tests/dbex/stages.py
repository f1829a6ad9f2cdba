"""The stages of a refinement as sets of free groups, and a step of each parameter for differences."""

from dataclasses import replace

import torch

from dbex.refinement.parameters import _GROUPS, parametrisation
from dbex.refinement.settings import BEAM, CRYSTAL, DETECTOR
from dbex.refinement.square_blocks import SQUARE

#: What moves in each stage: groups of the crystal, the detector and the beam.
STAGES = {
    "crystal": (CRYSTAL, (), ()),
    "crystal and detector": (CRYSTAL, DETECTOR, ()),
    "crystal and beam": (CRYSTAL, (), BEAM),
    "detector and beam": ((), DETECTOR, BEAM),
    "widths": (("orientation", "scale", "cell_spread"), ("point_spread",), ("divergence",)),
    "tensors": (("orientation", "cell", "scale", "mosaic_tensor", "size_tensor"), (), ()),
    "square blocks": (("orientation", "cell", "scale", "b_factor", "square", "mosaicity"), (), ()),
    "two components": (("orientation", "cell", "scale", "b_factor", "size", "mosaic_tensor", "component"), (), ()),
}

#: A step of each coordinate: about a fiftieth of what moves or widens a spot by its width.
STEPS = {
    "orientation": 2e-5,
    "cell": 2e-5,
    "scale": 0.01,
    "b_factor": 0.1,
    **dict.fromkeys(("size", "mosaicity", "mosaic_tensor", "size_tensor", "bandwidth", "square"), 0.01),
    **dict.fromkeys(("divergence", "cell_spread", "point_spread"), 0.01),
    "distance": 2e-3,
    "shift": 5e-4,
    **dict.fromkeys(("tilt", "wavelength", "direction"), 2e-5),
    "component": 0.01,
    # the turns of a second component, among its shares and widths
    **dict.fromkeys(("second_x", "second_y", "second_z"), 5e-5),
}


def steps_of(map):
    """The steps (n,) of all free parameters."""
    group_of = {row[0]: group for group, rows in _GROUPS.items() for row in rows}
    steps = [STEPS.get(p.name, STEPS[group_of.get(p.name, "cell")]) for p in map.parameters]
    return torch.tensor(steps, dtype=torch.float64)


def map_of(crystal, detector, beam, free_cell, stage, ln_scale=0.0):
    """The parametrisation of a stage; a second component starts as the first one is, so that zero changes nothing.

    Of the many Gaussians of square blocks, which all follow one formula, these are some: lobe, fringes and tail.
    """
    map = parametrisation(crystal, detector, beam, free_cell, *STAGES[stage], ln_scale)
    return replace(map, second_width_deg=float(crystal.mosaicity_deg), square_peaks=SQUARE[::17])
