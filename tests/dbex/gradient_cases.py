"""What every number of the records is for a derivative of the closed form: a start, a step, and its company.

Steps are about a fiftieth of what moves a spot of the small stills by its width, or one hundredth of a width itself.
"""

import dataclasses

import numpy as np
import torch

from dbex.models import create_beam_config, create_crystal_config, create_detector_config
from dbex.physics.candidates import box_pixels
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, ScanConfig
from nanobrag_torch.profile import Pairs, Quadrature, profile
from tests.dbex.small_still import SIZE_A, small_still

RECORDS = {"crystal": CrystalConfig, "detector": DetectorConfig, "beam": BeamConfig, "scan": ScanConfig}

ANGLE, LENGTH = 2e-5, 2e-3  # radians; Å and mm

#: The step of every number, as it is, and None for one hundredth of its size.
STEPS = {
    "crystal": {
        **dict.fromkeys(("cell_a", "cell_b", "cell_c"), LENGTH),
        **dict.fromkeys(("cell_alpha", "cell_beta", "cell_gamma", "misset_deg"), 2e-3),
        "U": ANGLE,
        **dict.fromkeys(("N_cells", "domain_size_A", "size_covariance", "fudge"), None),
        **dict.fromkeys(("mosaicity_deg", "mosaic_covariance_deg2", "strain"), None),
        "b_factor_A2": None,
    },
    "detector": {
        **dict.fromkeys(("fast_axis", "slow_axis"), ANGLE),
        **dict.fromkeys(("distance_mm", "origin_fast_mm", "origin_slow_mm"), LENGTH),
        "pixel_size_mm": 1e-4,
        **dict.fromkeys(("sensor_thickness_mm", "sensor_mu_per_mm", "point_spread_mm"), None),
    },
    "beam": {
        "wavelength_A": 5e-5,
        "direction": ANGLE,
        "polarization_normal": 2e-3,
        **dict.fromkeys(("polarization_fraction", "fluence"), None),
        **dict.fromkeys(("bandwidth", "divergence_h_mrad", "divergence_v_mrad"), None),
    },
    "scan": {"axis": 2e-3, "start_deg": 4e-3, "width_deg": None},
}

#: Numbers that only the sampled sum knows: the closed form has widths in their place, and refuses them.
ONLY_SAMPLED = {
    "crystal": {"mosaic_rotations"},
    "detector": set(),
    "beam": {"source_directions", "source_wavelengths_A", "source_weights"},
    "scan": set(),
}

#: Fields that are no numbers which could be differentiated.
NO_DERIVATIVE = {
    ("crystal", "shape"): "a name",
    ("crystal", "mosaic_domains"): "a count",
    ("crystal", "mosaic_seed"): "a seed",
    ("detector", "shape"): "counts of pixels",
    ("detector", "parallax"): "yes or no",
    ("detector", "oversample"): "a count",
    ("detector", "depth_layers"): "a count",
    ("detector", "point_pixel"): "yes or no",
    ("detector", "curved"): "yes or no",
    ("scan", "steps"): "a count",
}

#: Kinds of crystals: which fields are set to stand in for others.
KINDS = {
    "blocks of cells": {
        "shape": "gauss",
        "domain_size_A": None,
        "size_covariance": None,
        "mosaic_covariance_deg2": None,
    },
    "blocks of one size": {"shape": "gauss_isotropic", "size_covariance": None, "mosaic_covariance_deg2": None},
    "tensors": {"shape": "gauss", "domain_size_A": None},
}

#: The fields that each kind does not look at. Every field of STEPS is looked at by one.
NOT_LOOKED_AT = {
    "blocks of cells": {"domain_size_A", "size_covariance", "mosaic_covariance_deg2"},
    "blocks of one size": {"size_covariance", "mosaic_covariance_deg2"},
    "tensors": {"domain_size_A", "mosaicity_deg"},
}


def widths(rng):
    """Random widths of every cause, and what else the records hold that dxtbx's models do not."""

    def tensor(width):
        root = width * (np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3)))
        return root @ root.T

    return {
        "crystal": {
            "misset_deg": rng.normal(0, 0.02, 3),
            "N_cells": rng.uniform(14, 20, 3),
            "domain_size_A": rng.uniform(0.8, 1.2) * SIZE_A,
            "size_covariance": tensor(0.4 / SIZE_A),
            "fudge": rng.uniform(0.8, 1.2),
            "mosaicity_deg": rng.uniform(0.1, 0.2),
            "mosaic_covariance_deg2": tensor(0.15),
            "strain": rng.uniform(1e-3, 2e-3),
            "b_factor_A2": rng.uniform(5, 20),
        },
        "detector": {"point_spread_mm": rng.uniform(0.05, 0.1)},
        "beam": {
            "bandwidth": rng.uniform(1e-3, 3e-3),
            "divergence_h_mrad": rng.uniform(0.5, 1),
            "divergence_v_mrad": rng.uniform(0.5, 1),
        },
        "scan": {"axis": rng.normal(size=3), "start_deg": rng.uniform(-0.2, 0), "width_deg": rng.uniform(0.2, 0.4)},
    }


@dataclasses.dataclass(frozen=True)
class Problem:
    """A small still as tensors: `values` by record and field, hkl and F of its two reflections, weights of pixels."""

    values: dict
    hkl: torch.Tensor
    F: torch.Tensor
    weight: torch.Tensor


def problem(seed):
    """Every number of a small still with widths of its own."""
    still, rng = small_still(seed), np.random.default_rng(1000 + seed)
    panels = [create_detector_config(panel, still.beam) for panel in still.detector]
    records = {
        "crystal": [create_crystal_config(still.crystal)],
        "detector": panels,
        "beam": [create_beam_config(still.beam)],
        "scan": [ScanConfig()],
    }
    extra = widths(rng)
    values = {}
    for record, configs in records.items():
        rows = [{name: extra[record].get(name, getattr(config, name)) for name in STEPS[record]} for config in configs]
        stacked = {name: torch.stack([torch.as_tensor(row[name]).double() for row in rows]) for name in STEPS[record]}
        values[record] = stacked if record == "detector" else {name: value[0] for name, value in stacked.items()}
    F = torch.as_tensor(rng.uniform(20, 120, 2))
    return Problem(values, still.struck.double(), F, still.weight)


PIXELS = box_pixels(small_still(0).inputs, torch.device("cpu")).pixels
#: Each panel's pixels with that panel's reflection.
PAIRS = Pairs(torch.arange(len(PIXELS[0])), PIXELS[0])
#: As the refinement samples a pixel.
RULE = Quadrature()


def intensities(values, hkl, F, kind, rule=RULE):
    """The closed form (n,) of a small still from its numbers; turning where `values` have a scan."""
    crystal = CrystalConfig(**{**values["crystal"], **KINDS[kind]})
    detector = [
        DetectorConfig(
            **{name: value[i] for name, value in values["detector"].items()}, shape=(24, 24), parallax=i == 0
        )
        for i in range(2)
    ]
    scan = ScanConfig(**values["scan"]) if "scan" in values else None
    both = torch.tensor([0, 1])
    return profile(crystal, detector, BeamConfig(**values["beam"]), hkl, F, PIXELS, PAIRS, both, rule, scan)
