"""Crystals of blocks with flat faces, whose nodes are no Gaussians but mixtures of some.

The transform of a block of N cells along an axis is sinc²(N Δh): a central lobe and fringes, each a Gaussian here.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanobrag_torch.config import CrystalConfig, Vector, override
from nanobrag_torch.lattice import cell_tensor, reciprocal_matrix


@dataclass(frozen=True)
class Component:
    """A part of a crystal's nodes: a crystal with widths or an orientation of its own, ln of its share of the
    intensity, and the offset in h (3,) of its Gaussian from the node."""

    crystal: CrystalConfig
    ln_weight: Tensor
    offset_h: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Peak:
    """A Gaussian of a mixture that makes up a shape in t = N Δh: weight, and offset and rms width along each axis."""

    weight: float
    offset: tuple[float, ...]
    width: tuple[float, ...]


def product(peaks: Sequence[Peak], least: float) -> tuple[Peak, ...]:
    """The same shape along a, b and c at once, heaviest first: what carries more than `least`."""
    found = [
        Peak(a.weight * b.weight * c.weight, a.offset + b.offset + c.offset, a.width + b.width + c.width)
        for a, b, c in itertools.product(peaks, repeat=3)
    ]
    kept = sorted((peak for peak in found if peak.weight > least), key=lambda peak: -peak.weight)
    total = sum(peak.weight for peak in kept)
    return tuple(replace(peak, weight=peak.weight / total) for peak in kept)


def mirrored(weight: float, offset: float, width: float) -> tuple[Peak, Peak]:
    """A pair of Gaussians on both sides."""
    return Peak(weight, (offset,), (width,)), Peak(weight, (-offset,), (width,))


#: sinc²(t), the interference function of a block of N cells at t = N Δh: two Gaussians for the central lobe, which is
#: flatter than one, a pair for each of four fringes, and one for what lies beyond; a least-squares fit out to |t| = 14
#: with variances in proportion to the value, after smoothing by 0.15, which no still falls short of.
SINC_SQUARED = (
    *mirrored(0.4539, 0.2209, 0.2537),
    *mirrored(0.0214, 1.4621, 0.1653),
    *mirrored(0.0068, 2.4683, 0.1592),
    *mirrored(0.0028, 3.4786, 0.1193),
    *mirrored(0.0013, 4.4846, 0.0704),
    Peak(0.0278, (0.0,), (6.622,)),
)
SQUARE = product(SINC_SQUARED, 5e-4)
#: The same in three Gaussians about the node, with its mean tail but without fringes: where and how wide spots are.
OUTLINE = product([Peak(w, (0.0,), (width,)) for w, width in ((0.849, 0.326), (0.111, 1.38), (0.040, 5.09))], 0.01)


def square_components(crystal: CrystalConfig, edges_A: Tensor, peaks: Sequence[Peak]) -> tuple[Component, ...]:
    """A crystal of blocks with flat faces, of these lengths along a, b and c: a mixture of Gaussians in h."""
    cell = cell_tensor(crystal, edges_A)
    B, period = reciprocal_matrix(cell), cell[:3] / edges_A
    of_peaks = [
        torch.as_tensor(n, dtype=edges_A.dtype) for n in zip(*((p.offset, p.width) for p in peaks), strict=True)
    ]
    offset, width = (numbers * period for numbers in of_peaks)
    size = (B * (width**2)[:, None]) @ B.T
    ln_weight = torch.log(torch.as_tensor([peak.weight for peak in peaks], dtype=edges_A.dtype))
    return tuple(
        Component(override(crystal, {"size_covariance": one}), share, shift)
        for one, share, shift in zip(size.unbind(), ln_weight.unbind(), offset.unbind(), strict=True)
    )
