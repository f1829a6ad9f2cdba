"""Shoeboxes in groups that are worked on together: alike in pixels and nodes, small enough for a processor's cache."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.shoeboxes import Shoeboxes
from nanobrag_torch.fused import BoxPixels

#: Pixels of a group, counted once for each node: ten sums of each are 1.3 MB, for a core's second-level cache. Measured
#: on 1.3 million: within a tenth from 8,000 to 65,000.
NODE_PIXELS = 16_384
#: Rows of a group's linear columns before those of the nodes: the plane's basis and the data.
DATA, FIRST_NODE = 3, 4


@dataclass(frozen=True)
class Group:
    """Boxes `part`, of which the fullest has `pixels`, each with `reach` nodes; where the pixels are; and
    `nodes` (b, reach), places in the list of distinct nodes."""

    part: slice
    pixels: int
    reach: int
    where: BoxPixels
    nodes: Tensor

    def given(self, boxes: Shoeboxes) -> tuple[Tensor, Tensor]:
        """Basis (b, 3, pixels) and data (b, 1, pixels) of its boxes."""
        return boxes.basis[self.part, : self.pixels].transpose(1, 2), boxes.data[self.part, None, : self.pixels]


@dataclass(frozen=True)
class Grouping:
    """All groups of boxes with these nodes (n, k); the distinct nodes: place of the reflection (m,), panel (m,); and
    for each reflection the first of its nodes."""

    node: Tensor
    groups: tuple[Group, ...]
    reflection: Tensor
    panel: Tensor
    first: Tensor


def grouped(boxes: Shoeboxes, components: int) -> Grouping:
    """The boxes in groups, for a model whose nodes have so many components."""
    node = boxes.node.numpy()
    # places without a node repeat the box's own: their intensity is zero
    real = np.where(node < 0, node[:, :1], node)
    panel = np.broadcast_to(boxes.pixels.panel.numpy()[:, None], node.shape)
    pairs, place = np.unique(np.stack([panel.ravel(), real.ravel()]), axis=1, return_inverse=True)
    place = torch.as_tensor(place.reshape(node.shape))
    most = boxes.inside.sum(1).clamp_min(1).numpy()
    reach = (node >= 0).sum(1)
    groups, first = [], 0
    while first < len(node):
        last = first + 1
        pixels = most[first]
        while last < len(node) and reach[last] == reach[first]:
            wider = max(pixels, most[last])
            if (last + 1 - first) * wider * reach[first] * components > NODE_PIXELS:
                break
            last, pixels = last + 1, wider
        part, p = slice(first, last), int(pixels)
        cut = boxes.pixels.cut(part, p)
        where = BoxPixels(cut.panel, *(a.to(boxes.data.dtype).contiguous() for a in (cut.slow, cut.fast)))
        groups.append(Group(part, p, int(reach[first]), where, place[part, : reach[first]]))
        first = last
    _, first_node = np.unique(pairs[1], return_index=True)
    reflection, of_panel, first_place = (torch.as_tensor(a) for a in (pairs[1], pairs[0], first_node))
    return Grouping(boxes.node, tuple(groups), reflection, of_panel, first_place)
