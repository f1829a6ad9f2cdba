"""The stages of a refinement as sets of free groups, and a step of each parameter for differences."""

import torch

from dbex.refinement.parameters import _GROUPS, parametrisation
from dbex.refinement.settings import BEAM, CRYSTAL, DETECTOR
from nanobrag_torch.config import override

#: What moves in each stage: groups of the crystal, the detector and the beam.
STAGES = {
    "crystal": (CRYSTAL, (), ()),
    "crystal and detector": (CRYSTAL, DETECTOR, ()),
    "crystal and beam": (CRYSTAL, (), BEAM),
    "detector and beam": ((), DETECTOR, BEAM),
    "tensors": (("orientation", "cell", "scale", "mosaic_tensor", "size_tensor"), (), ()),
}

#: A step of each coordinate: about a fiftieth of what moves or widens a spot by its width.
STEPS = {
    "orientation": 2e-5,
    "cell": 2e-5,
    "scale": 0.01,
    "b_factor": 0.1,
    **dict.fromkeys(("size", "mosaicity", "mosaic_tensor", "size_tensor", "bandwidth"), 0.01),
    "distance": 2e-3,
    "shift": 5e-4,
    **dict.fromkeys(("tilt", "wavelength", "direction"), 2e-5),
}


def steps_of(map):
    """The steps (n,) of all free parameters."""
    group_of = {row[0]: group for group, rows in _GROUPS.items() for row in rows}
    return torch.tensor([STEPS[group_of.get(p.name, "cell")] for p in map.parameters], dtype=torch.float64)


def map_of(crystal, detector, beam, free_cell, stage, ln_scale=0.0):
    if "bandwidth" in STAGES[stage][2]:
        beam = override(beam, {"bandwidth": 1e-3})
    return parametrisation(crystal, detector, beam, free_cell, *STAGES[stage], ln_scale)
