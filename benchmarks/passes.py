"""The passes over pixels: compiled against plain, and against the least that the machine could need."""

from functools import partial

import torch

from benchmarks.timing import cpu_seconds
from nanobrag_torch import fused
from nanobrag_torch.profile import Quadrature

BOXES, PIXELS = 64, 225
RULE = Quadrature()


def boxes(count=1):
    """Boxes of 15 x 15 pixels with `count` nodes each, as the passes take them, and random weights."""
    generator = torch.Generator().manual_seed(1)
    uniform = partial(torch.rand, generator=generator, dtype=torch.float64)
    slow = (uniform(BOXES, 1) * 2000).floor() + torch.arange(PIXELS) // 15
    fast = (uniform(BOXES, 1) * 2000).floor() + torch.arange(PIXELS) % 15
    axes = [1.0, 0, 0, 0, 1, 0, 0, 0, 1, -100, -100, 200]
    panel = torch.tensor([*axes, 0.1, 200, 3, 1, 0, 0.3], dtype=torch.float64).expand(BOXES, 18).contiguous()
    beam = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0.9, 0, 1, 0, 0.1], dtype=torch.float64)
    middle = torch.stack([0.1 * fast[:, 7] - 100, 0.1 * slow[:, 112] - 100, torch.full((BOXES,), 200.0)], -1)
    q = middle / torch.linalg.vector_norm(middle, dim=-1, keepdim=True) - beam[1:4]
    whitening = 1500 * torch.tensor([1.0, 0, 1, 0, 0, 1], dtype=torch.float64).expand(BOXES, count, 6)
    places = q[:, None] + 1e-4 * uniform(BOXES, count, 3)
    nodes = torch.cat([places, whitening, uniform(BOXES, count, 1)], -1)[None]
    return (slow, fast, panel, beam, nodes), uniform(BOXES, count), uniform(BOXES, PIXELS)


def passes():
    """Rows: pass, plain and compiled in ns a pixel, their ratio, largest difference in part of the largest."""
    given, weights, root = boxes()
    calls = [
        ("profiles", fused.profile_pass, given),
        ("ten sums of a node", fused.moment_pass, (*given, root)),
        ("six sums of a panel", fused.panel_pass, (*given, weights, root)),
        ("ten sums of the beam", fused.beam_pass, (*given, weights, root)),
    ]
    rows = []
    for name, function, arguments in calls:
        if not function.package.exists():
            raise SystemExit("nothing is compiled yet: run `make compile` first")
        plain = cpu_seconds(partial(function.function, *arguments, rule=RULE))
        compiled = cpu_seconds(partial(function, *arguments, rule=RULE))
        found, expected = function(*arguments, rule=RULE), function.function(*arguments, rule=RULE)
        difference = float((found - expected).abs().max() / expected.abs().max())
        scale = 1e9 / (BOXES * PIXELS)
        rows.append((name, plain * scale, compiled * scale, plain / compiled, difference))
    return rows


#: What a pixel cannot do without: exponentials of four samples and of the sensor's absorption, square roots with a
#: division, which take half of one, and multiply-adds, 45 a sample for its place, its factors and the node's quadratic
#: form; more for the sums: those of each pass, in the order of passes().
EXPONENTIALS, ROOTS, MULTIPLY_ADDS = 7, 5, 4 * 45
FOR_SUMS = (4, 4 * 22, 4 * 40, 4 * 30)


def roofline(copy_gb_s, gflop_s, exponential_ns, for_sums, numbers_out):
    """ns a pixel by arithmetic, which dominates, and by memory."""
    flops = 2 * (MULTIPLY_ADDS + for_sums)
    return (EXPONENTIALS + ROOTS / 2) * exponential_ns + flops / gflop_s, 8 * (3 + numbers_out) / copy_gb_s
