"""Shoeboxes in groups that are worked on together: alike in pixels and nodes, small enough for a processor's cache."""

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
#: A box joins a group whose padding stays below this part of what is worked on.
PADDING = 0.5


@dataclass(frozen=True)
class Group:
    """Boxes `part`, each with `reach` nodes, as arrays (b, p) whose rows begin with a box's pixels: those of the
    `segment` of all pixels, at the places `inner` of the flat array. `where` the pixels are, padding included, and the
    `rule` by which they are sampled; the places (b, l) of the boxes' parts in the list of all, and which of the box's
    nodes each belongs to (b, l), -1 for padding."""

    part: slice
    segment: slice
    inner: Tensor
    reach: int
    where: BoxPixels
    rule: Quadrature
    parts: Tensor
    owner: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """Values of all pixels (N,) as an array (b, p), 0 in padding."""
        array = torch.zeros_like(self.where.slow)
        array.view(-1)[self.inner] = values[self.segment]
        return array

    def gathered(self, array: Tensor) -> Tensor:
        """The values of the segment's pixels in an array (..., b, p)."""
        return array.flatten(-2)[..., self.inner]

    def given(self, boxes: Shoeboxes) -> Tensor:
        """Basis and what basis and nodes are to explain (b, 4, p): the data without the light of other lattices."""
        own = boxes.data[self.segment] - boxes.others[self.segment]
        b, p = self.where.slow.shape
        array = torch.zeros(FIRST_NODE, b * p, dtype=own.dtype)
        array[:, self.inner] = torch.cat([boxes.basis[self.segment].T, own[None]])
        return array.view(FIRST_NODE, b, p).transpose(0, 1)

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
    """All groups of boxes with these nodes (n, k), of which these have `whole` pixels, for a model of so many
    `components`; the parts of the distinct nodes, and for each reflection the first of its nodes."""

    node: Tensor
    whole: Bools | None
    components: int
    groups: tuple[Group, ...]
    parts: Parts
    first: Tensor

    def are_of(self, boxes: Shoeboxes, whole: Bools | None, components: int) -> bool:
        """Whether these are the groups of boxes, of which these have whole pixels, for so many components."""
        return self.node is boxes.node and self.whole is whole and self.components == components


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


def grouped(
    boxes: Shoeboxes, distinct: Distinct, seen: Bools, whole: Bools | None, rules: tuple[Quadrature, Quadrature]
) -> Grouping:
    """The boxes in groups, for a model whose distinct nodes (m,) have these of its components (m, c), or more; `rules`
    sample pixels that are split and those that are taken `whole`, as in some boxes (n,)."""
    component, of = np.nonzero(seen.T)
    number = np.full(seen.shape, -1)
    number[of, component] = np.arange(len(of))
    reach = (boxes.node.numpy() >= 0).sum(1)
    taken, components = distinct.whole[distinct.place[:, 0]], (number >= 0).sum(1)
    has = np.arange(distinct.place.shape[1]) < reach[:, None]
    count, most = (components[distinct.place] * has).sum(1), boxes.counts
    ends = np.cumsum(most)
    groups = []
    for first, last in _runs(reach * 2 + taken, most, count):
        part, p, n = slice(first, last), int(most[first:last].max()), last - first
        segment = slice(int(ends[first] - most[first]), int(ends[last - 1]))
        row, place = counted(most[part])
        inner = torch.as_tensor(row * p + place)
        where = BoxPixels(boxes.panel[part], *(_filled_up(a[segment], inner, n, p) for a in (boxes.slow, boxes.fast)))
        rows = number[distinct.place[part, : reach[first]]].reshape(n, -1)
        parts, owner = _filled(rows, int(reach[first]), int(count[part].max()))
        groups.append(Group(part, segment, inner, int(reach[first]), where, rules[int(taken[first])], parts, owner))
    oversample = np.where(distinct.whole, rules[1].oversample, rules[0].oversample)
    columns = (of, distinct.reflection[of], distinct.panel[of], oversample[of], component)
    _, first_node = np.unique(distinct.reflection, return_index=True)
    parts_of = Parts(*map(torch.as_tensor, columns))
    return Grouping(boxes.node, whole, seen.shape[1], tuple(groups), parts_of, torch.as_tensor(first_node))


def _runs(kind: Ints, pixels: Ints, parts: Ints) -> Iterator[tuple[int, int]]:
    """First and last + 1 of runs of boxes of a kind (n,), whose pixels times parts (n,) padded to the most of both stay
    below `NODE_PIXELS` and are mostly real."""
    first = 0
    kinds, all_pixels, all_parts = kind.tolist(), pixels.tolist(), parts.tolist()
    while first < len(kinds):
        last, wide, many, real = first, 0, 0, 0
        while last < len(kinds) and kinds[last] == kinds[first]:
            wider, more = max(wide, all_pixels[last]), max(many, all_parts[last])
            real += all_pixels[last] * all_parts[last]
            size = (last + 1 - first) * wider * more
            if last > first and (size > NODE_PIXELS or real < PADDING * size):
                break
            last, wide, many = last + 1, wider, more
        yield first, last
        first = last


def _filled_up(values: Tensor, inner: Tensor, n: int, p: int) -> Tensor:
    """Coordinates of pixels as an array (n, p) of float64, padding at the box's first pixel."""
    array = torch.zeros(n * p, dtype=torch.float64)
    array[inner] = values.double()
    array = array.view(n, p)
    real = torch.zeros(n * p, dtype=torch.bool)
    real[inner] = True
    return torch.where(real.view(n, p), array, array[:, :1])


def _filled(rows: Ints, reach: int, most: int) -> tuple[Tensor, Tensor]:
    """Places of parts (b, most) from rows (b, reach components) with -1 where there is none, and their owners, -1 for
    padding, which repeats a box's first."""
    real_first = np.argsort(rows < 0, axis=1, kind="stable")[:, :most]
    place = np.take_along_axis(rows, real_first, 1)
    owner = np.where(place < 0, -1, real_first // (rows.shape[1] // reach))
    return torch.as_tensor(np.where(place < 0, place[:, :1], place)), torch.as_tensor(owner)
