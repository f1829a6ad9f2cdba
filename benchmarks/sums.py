"""The closed form against the sampled sum of the same scene, pixel by pixel."""

from dataclasses import replace

import torch

from benchmarks.timing import cpu_seconds
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig
from nanobrag_torch.panel import all_pixels
from nanobrag_torch.profile import Pairs, Quadrature, profile
from nanobrag_torch.simulate import simulate
from nanobrag_torch.structure_factors import from_list

DOMAINS = 50


def closed_against_sampled():
    """ns a pixel-step of the sampled sum, its steps a pixel, and ns a pixel of the readable closed form."""
    crystal = CrystalConfig(50.0, 60.0, 70.0, N_cells=(20.0, 20.0, 20.0), mosaicity_deg=0.1)
    panel = DetectorConfig((1.0, 0, 0), (0, -1.0, 0), -100.0, -2.0, 2.0, 0.1, (40, 40), oversample=2)
    beam = BeamConfig(1.0)
    hkl, F = torch.tensor([[1, 0, 0]]), torch.tensor([100.0], dtype=torch.float64)
    pixels = all_pixels([panel])
    sampled = replace(crystal, mosaic_domains=DOMAINS)
    factors = from_list(hkl, F, default_F=10.0)
    seconds = cpu_seconds(lambda: simulate(sampled, panel, beam, factors, pixels=pixels), 3)
    steps = DOMAINS * panel.oversample**2
    pairs = Pairs(torch.arange(len(pixels)), torch.zeros(len(pixels), dtype=torch.long))
    columns = (pixels.panel, pixels.slow, pixels.fast)
    first = torch.zeros(1, dtype=torch.long)
    closed = cpu_seconds(lambda: profile(crystal, [panel], beam, hkl, F, columns, pairs, first, Quadrature()))
    scale = 1e9 / len(pixels)
    return seconds * scale / steps, steps, closed * scale
