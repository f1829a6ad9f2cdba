"""Shoeboxes in groups that are worked on together: alike in pixels and nodes, small enough for a processor's cache.

What a group holds are tiles: those pixels of a box that the same number of its nodes reach. Most pixels of most boxes
see background alone, and few see the light of neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.shoeboxes import Shoeboxes, counted
from dbex.still import Bools, Ints
from nanobrag_torch.fused import BoxPixels
from nanobrag_torch.profile import Quadrature

#: Pixels of a group, counted once for each node: ten sums of each are 1.3 MB, for a core's second-level cache. Measured
#: on 1.3 million: within a tenth from 8,000 to 65,000.
NODE_PIXELS = 16_384
#: Rows of a group's linear columns before those of the nodes: the plane's basis and the data.
DATA, FIRST_NODE = 3, 4
#: Tiles are filled up to one size as long as so much of them is real, or no more pixels than these are not: a group
#: costs as much as some hundred pixels.
MOSTLY_REAL, SPARE = 0.95, 1000


@dataclass(frozen=True)
class Group:
    """Tiles, each of a `box` (b,) of its own, that the first `reach` nodes of their boxes reach: the `segment` of all
    pixels, as arrays (b, p) whose rows are tiles. `where` the pixels are, and the `rule` by which they are sampled; the
    places (b, l) of the tiles' parts in the list of all, and which of the box's nodes each belongs to (b, l), -1 for
    padding."""

    box: Tensor
    segment: slice
    reach: int
    where: BoxPixels
    rule: Quadrature
    parts: Tensor
    owner: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Values of all pixels (..., N) as an array (..., b, p)."""
        return values[..., self.segment].unflatten(-1, self.where.slow.shape)

    def of_parts(self, weights: Tensor) -> Tensor:
        """Weights (b, reach) of nodes as those of their parts (b, l), zero for padding."""
        return weights.gather(1, self.owner.clamp_min(0)) * (self.owner >= 0)

    def of_nodes(self, profiles: Tensor) -> Tensor:
        """Profiles (b, l, pixels) of parts, together those of the nodes (b, reach, pixels)."""
        if self.owner.shape[1] == self.reach:
            return profiles
        whose = torch.arange(self.reach)[:, None] == self.owner[:, None]
        return whose.to(profiles.dtype) @ profiles


@dataclass(frozen=True)
class Parts:
    """The parts of distinct nodes, in the order of their components: which node, the reflection's place, its panel, how
    many sub-pixels its pixels have along an edge, and the component, all (k,)."""

    node: Tensor
    reflection: Tensor
    panel: Tensor
    oversample: Tensor
    component: Tensor


@dataclass(frozen=True)
class Grouping:
    """All groups of boxes whose pixels so many nodes `reach` (N,), some with `whole` pixels, for a model of these many
    `components`; the parts of the distinct nodes, and for each reflection the first of its nodes."""

    reach: Tensor
    whole: Bools | None
    components: int
    groups: tuple[Group, ...]
    parts: Parts
    first: Tensor

    @property
    def reached(self) -> tuple[Group, ...]:
        """The groups that nodes reach."""
        return tuple(group for group in self.groups if group.reach)

    def of_reached(self, columns: list[Tensor]) -> list[Tensor]:
        """Of what is told of every group that of those."""
        return [X for group, X in zip(self.groups, columns, strict=True) if group.reach]

    def are_of(self, boxes: Shoeboxes, whole: Bools | None, components: int) -> bool:
        """Whether these are the groups of boxes, of which these have whole pixels, for so many components."""
        return self.reach is boxes.reach and self.whole is whole and self.components == components


@dataclass(frozen=True)
class Distinct:
    """The distinct nodes of boxes: place of the reflection, panel, and whether pixels are taken whole (m,), and where
    each box's nodes stand (n, k); places of a box without a node repeat its own."""

    reflection: Ints
    panel: Ints
    whole: Bools
    place: Ints


def distinct_nodes(boxes: Shoeboxes, whole: Bools) -> Distinct:
    """Each reflection once for every panel that its light reaches and for every way to sample pixels, that of boxes
    whose pixels are taken `whole` (n,) and that of others."""
    node = boxes.node.numpy()
    real = np.where(node < 0, node[:, :1], node)
    kind = boxes.panel.numpy() * 2 + whole
    name = kind[:, None] * (int(real.max(initial=0)) + 1) + real
    _, first, place = np.unique(name, return_index=True, return_inverse=True)
    box = first // node.shape[1]
    return Distinct(real.ravel()[first], kind[box] // 2, whole[box], place.reshape(node.shape))


def in_tiles(boxes: Shoeboxes, whole: Bools) -> Shoeboxes:
    """The boxes with their pixels tile by tile, those of a kind and about a size together, filled up to one size."""
    kinds = int(boxes.reach.max()) + 1
    real = np.flatnonzero(boxes.real.numpy())
    tile = (boxes.box * kinds + boxes.reach).numpy()[real]
    counts = np.bincount(tile, minlength=len(boxes) * kinds)
    names = np.flatnonzero(counts)
    box, reach = np.divmod(names, kinds)
    order = np.lexsort((counts[names], whole[box], reach))
    names, kind = names[order], (reach * 2 + whole[box])[order]
    counts = counts[names]
    rank = np.empty(len(boxes) * kinds, dtype=np.int64)
    rank[names] = np.arange(len(names))
    pixel = real[np.argsort(rank[tile], kind="stable")]
    width = _filled_up(kind, counts)
    row, place = counted(counts)
    exists = np.zeros(int(width.sum()), dtype=bool)
    exists[(np.cumsum(width) - width)[row] + place] = True
    index = np.repeat(pixel[np.cumsum(counts) - counts], width)
    index[exists] = pixel
    return boxes.laid_out(index, exists)


def _filled_up(kind: Ints, counts: Ints) -> Ints:
    """The size to which each tile (t,) of so many pixels is filled up: that of the largest of those of its kind that
    follow, as far as these are mostly real; tiles of a kind are in the order of their size."""
    width, first, real = counts.copy(), 0, 0
    kinds, all_counts = kind.tolist(), counts.tolist()
    for last, (mine, count) in enumerate(zip(kinds, all_counts, strict=True)):
        size = (last + 1 - first) * count
        if last > first and (mine != kinds[first] or size - real - count > max((1 - MOSTLY_REAL) * size, SPARE)):
            first, real = last, 0
        width[first : last + 1] = count
        real += count
    return width


def grouped(
    boxes: Shoeboxes, distinct: Distinct, seen: Bools, whole: Bools | None, rules: tuple[Quadrature, Quadrature]
) -> Grouping:
    """The tiles of boxes in groups, for a model whose distinct nodes (m,) have these of its components (m, c), or more;
    `rules` sample pixels that are split and those that are taken `whole`, as in some boxes (n,)."""
    component, of = np.nonzero(seen.T)
    number = np.full(seen.shape, -1)
    number[of, component] = np.arange(len(of))
    ends = _ends(boxes)
    starts = np.concatenate([[0], ends[:-1]])
    most, box, reach = ends - starts, boxes.box.numpy()[starts], boxes.reach.numpy()[starts]
    taken, components = distinct.whole[distinct.place[box, 0]], (number >= 0).sum(1)
    count = (components[distinct.place[box]] * (np.arange(distinct.place.shape[1]) < reach[:, None])).sum(1)
    groups = []
    for first, last in _runs(reach * 2 + taken * (reach > 0), most, count):
        shape, r = (last - first, int(most[first])), int(reach[first])
        mine, segment = torch.as_tensor(box[first:last]), slice(int(starts[first]), int(ends[last - 1]))
        slow, fast = (a[segment].to(torch.float64).view(shape) for a in (boxes.slow, boxes.fast))
        rows = number[distinct.place[box[first:last], :r]].reshape(shape[0], -1)
        parts, owner = _filled(rows, r, int(count[first:last].max()))
        where = BoxPixels(boxes.panel[mine], slow, fast)
        groups.append(Group(mine, segment, r, where, rules[int(taken[first])], parts, owner))
    oversample = np.where(distinct.whole, rules[1].oversample, rules[0].oversample)
    columns = (of, distinct.reflection[of], distinct.panel[of], oversample[of], component)
    _, first_node = np.unique(distinct.reflection, return_index=True)
    parts_of = Parts(*map(torch.as_tensor, columns))
    return Grouping(boxes.reach, whole, seen.shape[1], tuple(groups), parts_of, torch.as_tensor(first_node))


def _ends(boxes: Shoeboxes) -> Ints:
    """The last pixel + 1 of each tile (t,): runs of pixels of one box and one reach."""
    box, reach = boxes.box.numpy(), boxes.reach.numpy()
    return np.append(np.flatnonzero((np.diff(box) != 0) | (np.diff(reach) != 0)) + 1, len(box))


def _runs(kind: Ints, pixels: Ints, parts: Ints) -> Iterator[tuple[int, int]]:
    """First and last + 1 of runs of tiles of a kind and of so many pixels (t,), whose pixels times parts (t,) padded to
    the most stay below `NODE_PIXELS`."""
    first = 0
    like, all_parts = list(zip(kind.tolist(), pixels.tolist(), strict=True)), np.maximum(parts, 1).tolist()
    while first < len(like):
        last, many = first, 0
        while last < len(like) and like[last] == like[first]:
            more = max(many, all_parts[last])
            if last > first and (last + 1 - first) * like[first][1] * more > NODE_PIXELS:
                break
            last, many = last + 1, more
        yield first, last
        first = last


def _filled(rows: Ints, reach: int, most: int) -> tuple[Tensor, Tensor]:
    """Places of parts (b, most) from rows (b, reach components) with -1 where there is none, and their owners, -1 for
    padding, which repeats a box's first; none where nothing reaches the tiles."""
    if not reach:
        return torch.zeros(len(rows), 0, dtype=torch.int64), torch.zeros(len(rows), 0, dtype=torch.int64)
    real_first = np.argsort(rows < 0, axis=1, kind="stable")[:, :most]
    place = np.take_along_axis(rows, real_first, 1)
    owner = np.where(place < 0, -1, real_first // (rows.shape[1] // reach))
    return torch.as_tensor(np.where(place < 0, place[:, :1], place)), torch.as_tensor(owner)
