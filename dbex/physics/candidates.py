"""Which nodes may reach the pixels of a still's boxes: whole numbers, which have no gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dbex.still import RefinementInputs
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig
from nanobrag_torch.lattice import fractional_hkl, reciprocal_basis
from nanobrag_torch.panel import pixel_positions, stack_panels
from nanobrag_torch.profile import Pairs, centroids
from nanobrag_torch.spread import node_covariance
from nanobrag_torch.tensors import as_tensor, unit

#: Nodes farther from the Ewald sphere than this many widths give nothing, but the nearest of a box is always kept.
K_MAX = 8.0
#: Nodes are looked for this many pixels beyond a box, whose tails reach into it.
REACH_PX = 4


@dataclass(frozen=True)
class BoxPixels:
    """Pixels of boxes: `pixels` are panel, slow and fast (n,), each pixel once, in the order of the image. `place` (m,)
    says which pixel each of the boxes' m points is, `box` (m,) whose point it is; `bounds` (boxes, 5) are the boxes'
    panel, x0, x1, y0 and y1, upper bounds exclusive."""

    pixels: tuple[Tensor, Tensor, Tensor]
    place: Tensor
    box: Tensor
    bounds: Tensor


def box_pixels(inputs: RefinementInputs, device: torch.device) -> BoxPixels:
    """The pixels of the inputs' boxes; those that boxes share are listed once. Raises ValueError without any box."""
    if not inputs.panel_slices:
        raise ValueError("the inputs have no box: expected at least one; check the reflections' shoeboxes")
    _, n_slow, n_fast = inputs.target.shape
    return pixels_of(inputs.panel_slices, (n_slow, n_fast), device)


def pixels_of(
    boxes: Sequence[tuple[int, tuple[int, int, int, int]]], shape: tuple[int, int], device: torch.device
) -> BoxPixels:
    """The pixels of boxes (panel, (x0, x1, y0, y1)) on panels that are no larger than `shape` (slow, fast)."""
    bounds = torch.as_tensor([(panel, *box) for panel, box in boxes], dtype=torch.long, device=device)
    box, slow, fast = _points(bounds, 0)
    n_slow, n_fast = shape
    code, place = torch.unique((bounds[box, 0] * n_slow + slow) * n_fast + fast, return_inverse=True)
    row = code // n_fast
    return BoxPixels((row // n_slow, row % n_slow, code % n_fast), place, box, bounds)


def _points(bounds: Tensor, margin: int) -> tuple[Tensor, Tensor, Tensor]:
    """Box, slow and fast (m,) of every pixel of boxes that are widened by a margin, box by box."""
    _, x0, x1, y0, y1 = bounds.unbind(-1)
    width, height = x1 - x0 + 2 * margin, y1 - y0 + 2 * margin
    count = width * height
    box = torch.repeat_interleave(torch.arange(len(bounds), device=bounds.device), count)
    within = torch.arange(len(box), device=bounds.device) - _starts(count)[box]
    return box, (y0 - margin)[box] + within // width[box], (x0 - margin)[box] + within % width[box]


@dataclass(frozen=True)
class Candidates:
    """The nodes that may reach the boxes: `index` (m,) into the list of hkl, `panel` (m,), and their pairs with the
    pixels of BoxPixels."""

    index: Tensor
    panel: Tensor
    pairs: Pairs


def candidates(
    at: BoxPixels,
    detector: Sequence[DetectorConfig],
    beam: BeamConfig,
    crystal: CrystalConfig,
    hkl: Tensor,
    like: Tensor,
) -> Candidates:
    """Nodes nearest to a pixel in or near a box. Which nodes they are is no smooth function: it has no gradient."""
    with torch.no_grad():
        box, near = _nearest_nodes(at.bounds, detector, beam, crystal, like)
        q = near.to(like.dtype) @ reciprocal_basis(crystal, like).T
        k = torch.abs(centroids(q, node_covariance(crystal, beam, q), beam).k)
        least = torch.full((len(at.bounds),), torch.inf, dtype=k.dtype, device=k.device)
        least = least.scatter_reduce(0, box, k, "amin")
        index = _places(near, hkl)
        kept = ((k < K_MAX) | (k == least[box])) & (index >= 0)
    if not kept.any():
        raise ValueError("no reflection of the list lies near the boxes: expected hkl of the crystal that they show")
    box, index = box[kept], index[kept]
    names, node = torch.unique(at.bounds[box, 0] * len(hkl) + index, return_inverse=True)
    size = torch.bincount(at.box, minlength=len(at.bounds))
    # Every node of a box meets every point of it; where boxes overlap the same pair occurs twice.
    pair = torch.repeat_interleave(torch.arange(len(box), device=box.device), size[box])
    point = _starts(size)[box][pair] + torch.arange(len(pair), device=box.device) - _starts(size[box])[pair]
    code = torch.unique(at.place[point] * len(names) + node[pair])
    return Candidates(names % len(hkl), names // len(hkl), Pairs(code // len(names), code % len(names)))


def _starts(count: Tensor) -> Tensor:
    """Where each of consecutive runs of these lengths starts."""
    return torch.cumsum(count, 0) - count


def _nearest_nodes(
    bounds: Tensor, detector: Sequence[DetectorConfig], beam: BeamConfig, crystal: CrystalConfig, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Box (m,) and hkl (m, 3) of the nodes nearest to the pixels in or near each box, each once a box."""
    box, slow, fast = _points(bounds, REACH_PX)
    panels = stack_panels(detector, like)
    s1 = unit(pixel_positions(panels, bounds[box, 0], slow.to(like.dtype) + 0.5, fast.to(like.dtype) + 0.5))
    q = (s1 - unit(as_tensor(beam.direction, like))) / as_tensor(beam.wavelength_A, like)
    h = torch.round(fractional_hkl(q, reciprocal_basis(crystal, like))).long()
    low, shape = h.amin(0), h.amax(0) - h.amin(0) + 1
    cell = torch.unique(box * shape.prod() + _code(h - low, shape))
    return cell // shape.prod(), _hkl(cell % shape.prod(), shape) + low


def _code(h: Tensor, shape: Tensor) -> Tensor:
    """One whole number (n,) for indices h (n, 3) that lie in [0, shape)."""
    return (h[:, 0] * shape[1] + h[:, 1]) * shape[2] + h[:, 2]


def _hkl(code: Tensor, shape: Tensor) -> Tensor:
    row = code // shape[2]
    return torch.stack([row // shape[1], row % shape[1], code % shape[2]], -1)


def _places(wanted: Tensor, hkl: Tensor) -> Tensor:
    """Where each of `wanted` (m, 3) stands in `hkl` (n, 3), -1 for what it lacks."""
    low, high = wanted.amin(0), wanted.amax(0)
    inside = torch.nonzero(((hkl >= low) & (hkl <= high)).all(-1))[:, 0]
    place = torch.full((int((high - low + 1).prod()),), -1, dtype=torch.long, device=hkl.device)
    place[_code(hkl[inside] - low, high - low + 1)] = inside
    return place[_code(wanted - low, high - low + 1)]
