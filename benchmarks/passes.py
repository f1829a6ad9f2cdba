"""The passes over pixels: compiled against plain, and against the least that the machine could need."""

from functools import partial

import torch

from benchmarks.timing import cpu_seconds
from nanobrag_torch import passes as kernels

BOXES, PIXELS = 64, 225


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


def passes(rule):
    """Rows: pass, plain and compiled in ns a pixel, their ratio, largest difference in part of the largest."""
    (*of_boxes, nodes), weights, root = boxes()
    rays = kernels.ray_pass(*of_boxes, rule=rule)
    pulls = kernels.pull_pass(rays, nodes, weights, root, rule=rule)
    calls = [
        (kernels.ray_pass, of_boxes),
        (kernels.profile_pass, (rays, nodes)),
        (kernels.moment_pass, (rays, nodes, root)),
        (kernels.pull_pass, (rays, nodes, weights, root)),
        (kernels.panel_pass, (*of_boxes, pulls)),
        (kernels.beam_pass, (*of_boxes, pulls)),
    ]
    rows = []
    for function, arguments in calls:
        if rule not in function.shapes:
            continue
        if rule in function.missing():
            raise SystemExit("nothing is compiled yet: run `make compile` first")
        plain = cpu_seconds(partial(function.function, *arguments, rule=rule))
        compiled = cpu_seconds(partial(function, *arguments, rule=rule))
        found, expected = function(*arguments, rule=rule), function.function(*arguments, rule=rule)
        difference = float((found - expected).abs().max() / expected.abs().max())
        scale = 1e9 / (BOXES * PIXELS)
        rows.append((function.name, plain * scale, compiled * scale, plain / compiled, difference))
    return rows


#: What each pass is for, and what a pixel cannot do without in it, of one sample and for each further one: exponentials
#: (of the sensor's absorption, once), square roots with a division, which take half of one, and multiply-adds.
PASSES = {
    "ray_pass": ("rays: q, solid angle, polarisation, absorption", (3, 2, 60), (0, 1, 30)),
    "profile_pass": ("profile of a node", (1, 0, 16), (1, 0, 16)),
    "moment_pass": ("ten sums of a node", (1, 0, 36), (1, 0, 36)),
    "pull_pass": ("what the nodes pull at a ray", (1, 0, 24), (1, 0, 24)),
    "panel_pass": ("six sums of a panel", (4, 2, 110), (0, 1, 75)),
    "beam_pass": ("ten sums of the beam", (3, 2, 80), (0, 1, 50)),
}


def roofline(name, samples, copy_gb_s, gflop_s, exponential_ns):
    """The least ns a pixel by arithmetic and by memory."""
    _, one, further = PASSES[name]
    exponentials, roots, multiply_adds = (a + (samples - 1) * b for a, b in zip(one, further, strict=True))
    rays = 4 * samples
    moved = {
        "ray_pass": 2 + rays,
        "profile_pass": rays + 1,
        "moment_pass": rays + 11,
        "pull_pass": rays + 1 + rays,
        "panel_pass": 2 + rays + 6,
        "beam_pass": 2 + rays + 10,
    }[name]
    return (exponentials + roots / 2) * exponential_ns + 2 * multiply_adds / gflop_s, 8 * moved / copy_gb_s
