"""Shoeboxes in groups that are worked on together: alike in pixels and nodes, small enough for a processor's cache."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.shoeboxes import Shoeboxes
from dbex.still import Bools, Ints
from nanobrag_torch.fused import BoxPixels

#: Pixels of a group, counted once for each node: ten sums of each are 1.3 MB, for a core's second-level cache. Measured
#: on 1.3 million: within a tenth from 8,000 to 65,000.
NODE_PIXELS = 16_384
#: Rows of a group's linear columns before those of the nodes: the plane's basis and the data.
DATA, FIRST_NODE = 3, 4
#: A box joins a group whose padding stays below this part of what is worked on.
PADDING = 0.5


@dataclass(frozen=True)
class Group:
    """Boxes `part`, of which the fullest has `pixels`, each with `reach` nodes; where the pixels are; the places
    (b, l) of their parts in the list of all, and which of the box's nodes each belongs to (b, l), -1 for padding."""

    part: slice
    pixels: int
    reach: int
    where: BoxPixels
    parts: Tensor
    owner: Tensor

    def given(self, boxes: Shoeboxes) -> tuple[Tensor, Tensor]:
        """Basis (b, 3, pixels) of its boxes, and what basis and nodes are to explain (b, 1, pixels): the data without
        the light of other lattices."""
        own = boxes.data[self.part, None, : self.pixels] - boxes.others[self.part, None, : self.pixels]
        return boxes.basis[self.part, : self.pixels].transpose(1, 2), own

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
    """The parts of distinct nodes, in the order of their components: which node, the reflection's place, its panel,
    and the component, all (k,)."""

    node: Tensor
    reflection: Tensor
    panel: Tensor
    component: Tensor


@dataclass(frozen=True)
class Grouping:
    """All groups of boxes with these nodes (n, k), the parts of the distinct nodes, and for each reflection the first
    of its nodes."""

    node: Tensor
    groups: tuple[Group, ...]
    parts: Parts
    first: Tensor


@dataclass(frozen=True)
class Distinct:
    """The distinct nodes of boxes: place of the reflection and panel (m,), and where each box's nodes stand (n, k);
    places of a box without a node repeat its own."""

    reflection: Ints
    panel: Ints
    place: Ints


def distinct_nodes(boxes: Shoeboxes) -> Distinct:
    """Each reflection once for every panel that its light reaches."""
    node = boxes.node.numpy()
    real = np.where(node < 0, node[:, :1], node)
    panel = np.broadcast_to(boxes.pixels.panel.numpy()[:, None], node.shape)
    pairs, place = np.unique(np.stack([panel.ravel(), real.ravel()]), axis=1, return_inverse=True)
    return Distinct(pairs[1], pairs[0], place.reshape(node.shape))


def grouped(boxes: Shoeboxes, distinct: Distinct, seen: Bools) -> Grouping:
    """The boxes in groups, for a model whose distinct nodes (m,) have these of its components (m, c), or more."""
    component, of = np.nonzero(seen.T)
    number = np.full(seen.shape, -1)
    number[of, component] = np.arange(len(of))
    node = boxes.node.numpy()
    reach = (node >= 0).sum(1)
    rows = [number[distinct.place[i, : reach[i]]] for i in range(len(node))]
    count = np.array([(row >= 0).sum() for row in rows])
    most = boxes.inside.sum(1).clamp_min(1).numpy()
    groups, first = [], 0
    while first < len(node):
        last = first + 1
        pixels, parts, real = most[first], count[first], most[first] * count[first]
        while last < len(node) and reach[last] == reach[first]:
            wider, more = max(pixels, most[last]), max(parts, count[last])
            real += most[last] * count[last]
            size = (last + 1 - first) * wider * more
            if size > NODE_PIXELS or real < PADDING * size:
                break
            last, pixels, parts = last + 1, wider, more
        part, p = slice(first, last), int(pixels)
        cut = boxes.pixels.cut(part, p)
        where = BoxPixels(cut.panel, *(a.to(boxes.data.dtype).contiguous() for a in (cut.slow, cut.fast)))
        place, owner = _filled(rows[part], int(parts))
        groups.append(Group(part, p, int(reach[first]), where, place, owner))
        first = last
    parts_of = Parts(*map(torch.as_tensor, (of, distinct.reflection[of], distinct.panel[of], component)))
    _, first_node = np.unique(distinct.reflection, return_index=True)
    return Grouping(boxes.node, tuple(groups), parts_of, torch.as_tensor(first_node))


def _filled(rows: list[Ints], most: int) -> tuple[Tensor, Tensor]:
    """Places of parts (b, most) from rows (reach, c) with -1 where there is none, and their owners, -1 for padding,
    which repeats a box's first."""
    place, owner = np.empty((len(rows), most), np.int64), np.full((len(rows), most), -1)
    for i, row in enumerate(rows):
        whose, which = np.nonzero(row >= 0)
        owner[i, : len(whose)] = whose
        place[i] = row[whose[0], which[0]]
        place[i, : len(whose)] = row[whose, which]
    return torch.as_tensor(place), torch.as_tensor(owner)
