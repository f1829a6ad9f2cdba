"""Structure factor amplitudes |F| on a dense grid of hkl, looked up at nodes or interpolated between them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanobrag_torch.config import Number
from nanobrag_torch.tensors import as_tensor


@dataclass(frozen=True)
class StructureFactors:
    """Amplitudes |F| of every hkl of a box: `grid` (nh, nk, nl), in electrons, differentiable.

    `known` (nh, nk, nl) says which entries were listed; the others, and all outside the box, are `default_F`. The
    first entry is that of `hkl_min`. Friedel mates are separate entries.
    """

    grid: Tensor
    known: Tensor
    hkl_min: tuple[int, int, int]
    default_F: Tensor


def from_list(hkl: Tensor, F: Tensor, default_F: Number = 0.0, friedel_symmetric: bool = False) -> StructureFactors:
    """The grid of listed amplitudes: `hkl` (n, 3) integers, `F` (n,), which stays on its graph.

    With `friedel_symmetric` a mate that is not listed gets the amplitude of the one that is. Raises ValueError for an
    hkl that is listed twice with different amplitudes.
    """
    default = as_tensor(default_F, F)
    if len(hkl) == 0:
        empty = default.expand(1, 1, 1)
        return StructureFactors(empty, torch.zeros_like(empty, dtype=torch.bool), (0, 0, 0), default)
    hkl = hkl.to(device=F.device, dtype=torch.int64)
    reach = torch.cat([hkl, -hkl]) if friedel_symmetric else hkl
    low, high = reach.amin(0), reach.amax(0)
    shape = [int(n) for n in high - low + 1]
    slot = _slot(hkl - low, shape)
    _refuse_contradictions(hkl, F, slot)
    # An hkl that is listed twice, with the same amplitude, shares its derivative between both entries.
    count = torch.bincount(slot, minlength=shape[0] * shape[1] * shape[2])
    known = count > 0
    listed = torch.zeros(known.shape, dtype=F.dtype, device=F.device).index_add(0, slot, F) / count.clamp(min=1)
    grid = torch.where(known, listed, default)
    if friedel_symmetric:
        mate = _slot(-hkl - low, shape)
        missing = ~known[mate]
        grid = grid.index_put((mate[missing],), F[missing])
        known = known.index_fill(0, mate, True)
    start = (int(low[0]), int(low[1]), int(low[2]))
    return StructureFactors(grid.reshape(shape), known.reshape(shape), start, default)


def nearest(factors: StructureFactors, hkl: Tensor) -> Tensor:
    """|F| (...) at whole numbers `hkl` (..., 3), of any dtype; `default_F` outside the grid."""
    slot, inside = _slots(factors, hkl, 0, 0)
    return torch.where(inside, factors.grid.reshape(-1)[slot], factors.default_F)


def tricubic(factors: StructureFactors, hkl: Tensor) -> tuple[Tensor, Tensor]:
    """|F| (...) between nodes, at fractional `hkl` (..., 3), by the 4 x 4 x 4 Lagrange polynomial.

    Its nodes are floor(hkl) - 1 … floor(hkl) + 2. Where one of the 64 lies outside the grid the nearest node's |F|, or
    `default_F`, is returned instead; one inside that was not listed counts as `default_F`. The second result (...),
    bool, says where either happened, so that no `default_F` enters unseen.
    """
    base = torch.floor(hkl.detach())
    weights = _lagrange_weights(hkl - base)
    slot, inside = _slots(factors, base, -1, 2)
    _, nk, nl = factors.grid.shape
    flat = factors.grid.reshape(-1)
    last = len(flat) - 1
    total = torch.zeros_like(hkl[..., 0])
    for i in range(4):
        for j in range(4):
            # Terms that fall back may point behind the end; their sum is thrown away below.
            row = slot + (i * nk + j) * nl
            line = sum(weights[k][..., 2] * flat[torch.clamp(row + k, max=last)] for k in range(4))
            total = total + weights[i][..., 0] * weights[j][..., 1] * line
    fallback = nearest(factors, torch.ceil(hkl.detach() - 0.5))
    whole = inside & _complete(factors.known).reshape(-1)[slot]
    return torch.where(inside, total, fallback), ~whole


def _complete(known: Tensor) -> Tensor:
    """Whether the 4 x 4 x 4 entries from each one on are all listed (nh, nk, nl); nothing is beyond the grid's end."""
    missing = torch.nn.functional.pad((~known).to(torch.float32)[None, None], (0, 3) * 3, value=1.0)
    return torch.nn.functional.max_pool3d(missing, 4, stride=1)[0, 0] == 0


def _lagrange_weights(x: Tensor) -> list[Tensor]:
    """The weights of nodes -1, 0, 1, 2 of the cubic polynomial at `x` in [0, 1)."""
    return [
        -x * (x - 1) * (x - 2) / 6,
        (x + 1) * (x - 1) * (x - 2) / 2,
        -(x + 1) * x * (x - 2) / 2,
        (x + 1) * x * (x - 1) / 6,
    ]


def _slots(factors: StructureFactors, hkl: Tensor, below: int, above: int) -> tuple[Tensor, Tensor]:
    """Position in the flattened grid of hkl + below, and whether all of hkl + below … hkl + above is in the grid.

    Positions of what is not are 0, so that they can be looked up.
    """
    first = [hkl[..., i].to(torch.int64) + (below - factors.hkl_min[i]) for i in range(3)]
    inside = torch.ones_like(first[0], dtype=torch.bool)
    for offset, count in zip(first, factors.grid.shape, strict=True):
        inside = inside & (offset >= 0) & (offset + (above - below) < count)
    slot = (first[0] * factors.grid.shape[1] + first[1]) * factors.grid.shape[2] + first[2]
    return torch.where(inside, slot, torch.zeros_like(slot)), inside


def _slot(offset: Tensor, shape: list[int]) -> Tensor:
    """Positions (n,) in the flattened grid of offsets (n, 3) from its first entry."""
    return (offset[:, 0] * shape[1] + offset[:, 1]) * shape[2] + offset[:, 2]


def _refuse_contradictions(hkl: Tensor, F: Tensor, slot: Tensor) -> None:
    order = torch.argsort(slot, stable=True)
    values = F.detach()[order]
    clash = (slot[order][1:] == slot[order][:-1]) & (values[1:] != values[:-1])
    if clash.any():
        first = order[1:][clash][0]
        index = tuple(int(i) for i in hkl[first])
        raise ValueError(
            f"hkl {index} is listed twice with different amplitudes ({int(clash.sum())} such pairs): "
            "merge the list so that every hkl occurs once"
        )
