"""What the sampled sum holds in memory at once, as torch's profiler counts it."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from nanobrag_torch.mosaic import seeded_rotations
from nanobrag_torch.simulate import simulate
from tests.nanobrag_torch.scene import beam, crystal, factors, panel, vector

MEGABYTE = 2**20
#: The image, |F| and its derivative, and the sum of derivatives that waits for more: beside what a block needs.
RESULTS = 1 * MEGABYTE


def peak_bytes(function):
    """The largest sum of what was allocated and not yet freed since the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("interpolate", [False, True], ids=["nearest", "tricubic"])
@pytest.mark.parametrize("differentiated", [False, True], ids=["forward", "backward"])
def test_memory_stays_below_its_bound(differentiated, interpolate):
    numbers = {"N_cells": vector(5.0, 6.0, 7.0), "mosaic_rotations": seeded_rotations(0.5, 2, 1)}
    p, sf = panel(shape=(50, 40), oversample=2), factors()
    if differentiated:
        numbers["N_cells"].requires_grad_()
        p = replace(p, distance_mm=vector(60.0)[0].requires_grad_())
        sf = replace(sf, grid=sf.grid.clone().requires_grad_())

    def run(max_bytes):
        image = simulate(
            crystal(**numbers, shape="square"), p, beam(), sf, interpolate=interpolate, max_bytes=max_bytes
        )
        if differentiated:
            torch.autograd.backward(image.sum())

    peaks = [peak_bytes(lambda bound=bound: run(bound)) for bound in (2 * MEGABYTE, 8 * MEGABYTE)]
    assert peaks[0] < 2 * MEGABYTE + RESULTS
    assert 1.5 * peaks[0] < peaks[1] < 8 * MEGABYTE + RESULTS
