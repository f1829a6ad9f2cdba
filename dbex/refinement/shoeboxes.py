"""Which reflections are looked at, and which pixels belong to each.

Every reflection that the model predicts within a few widths of the Ewald sphere has a box, strong or not: the absent
ones say where the crystal does not diffract. A pixel belongs to the nearest prediction, so that it counts once; the
tails that neighbours send into a box are part of its model.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from dbex.refinement.parameters import Models
from dbex.refinement.predictions import Predictions, spot_covariance_px
from dbex.still import Bools, Floats, Ints, Still
from nanobrag_torch.profile import Quadrature, centroids, nodes

#: A box reaches this many widths of its spot, and this many pixels of background, to each side.
WIDTHS, MARGIN_PX = 3.0, 3
#: Half-sizes of boxes in pixels: planes need pixels, neighbours need room.
HALF_MIN, HALF_MAX = 5, 15
#: Neighbours whose tails are modelled in a box: where more reach it, as where wrong indices make a model wide, the work
#: would grow with their square and tell nothing.
MOST_TAILS = 30
#: The tail of a neighbour is modelled where its spot, this many widths out, crosses the border half-way between.
TAIL_WIDTHS = 3.5
#: A pixel that is taken whole has a Gaussian of its edges' variance for each pair of them: over the rms size to the
#: fourth, in pixels, of the spot's section along the edge this part of the peak is wrong (the fourth cumulant of a box
#: over 8). It may be so much of the noise. Mixtures of more components than a few have narrow ones.
EDGE_ERROR, UNSEEN, FEW = 1 / 960, 0.1, 2
WHOLE = Quadrature(oversample=1)
#: A box needs this fraction of the pixels that are its own, at least so many, and all of its centre.
USABLE_FRACTION, FEWEST_PIXELS = 0.5, 25


@dataclass(frozen=True)
class Shoeboxes:
    """The pixels of n boxes, and which reflections reach each.

    Of each pixel (N,): whether it is `real` or stands in for none to fill an array up, the `box` that it is of, `slow`
    and `fast` counted from the panel's first, whether it is `used`, `data`, the light of `others` (other lattices on
    the image) and `sigma_squared` (photons, photons²), and how many of the box's nodes `reach` it, the first ones;
    `basis` (N, 3) spans the planes. Of each box (n,): its `panel`, `bbox` (n, 4), and `node` (n, k), which indexes
    `reflections`, the box's own first, -1 where there are fewer; `reflections` (m,) index the amplitudes.
    """

    panel: Tensor
    real: Tensor
    box: Tensor
    slow: Tensor
    fast: Tensor
    used: Tensor
    data: Tensor
    others: Tensor
    sigma_squared: Tensor
    reach: Tensor
    basis: Tensor
    bbox: Ints
    reflections: Ints
    node: Tensor
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.node)

    @property
    def counts(self) -> Ints:
        """The number of pixels of each box (n,)."""
        return np.bincount(self.box.numpy(), self.real.numpy(), len(self)).astype(np.int64)

    def sums(self, values: Tensor) -> Tensor:
        """The sums over each box's pixels (n, ...) of values (N, ...)."""
        return torch.zeros(len(self), *values.shape[1:], dtype=values.dtype).index_add_(0, self.box, values)

    def largest(self, values: Tensor) -> Tensor:
        """The largest of each box's values (n, ...), of those of all pixels (N, ...)."""
        least = torch.full((len(self), *values.shape[1:]), -torch.inf, dtype=values.dtype)
        box = self.box.view(-1, *[1] * (values.dim() - 1)).expand_as(values)
        return least.scatter_reduce_(0, box, values, "amax")

    def laid_out(self, pixel: Ints, real: Bools) -> "Shoeboxes":
        """The same boxes with these of their pixels (N,) in this order; where one is not `real` it is not used, and all
        that is summed over pixels is 0."""
        index, exists = torch.as_tensor(pixel), torch.as_tensor(real)
        where = {name: getattr(self, name)[index] for name in ("box", "slow", "fast", "sigma_squared", "reach")}
        light = {name: getattr(self, name)[index] * exists for name in ("used", "data", "others")}
        return replace(self, real=exists, basis=self.basis[index] * exists[:, None], **where, **light)

    def reached_by(self, seen: Tensor, lit: Tensor) -> "Shoeboxes":
        """The same boxes with those of their nodes that are `seen` (n, k), the own ones among them; the model of a
        pixel holds them up to the last by which it is `lit` (N, k)."""
        kept = seen.cumsum(1) * seen
        reach = (kept[self.box] * lit).amax(1)
        seen_first = torch.argsort((~seen).to(torch.int8), dim=1, stable=True)
        node = torch.where(seen, self.node, -1).gather(1, seen_first)[:, : int(seen.sum(1).max())].numpy()
        names, place = np.unique(np.where(node < 0, node[:, :1], node), return_inverse=True)
        node = np.where(node < 0, -1, place.reshape(node.shape))
        return replace(self, node=torch.as_tensor(node), reflections=self.reflections[names], reach=reach)


def whole_pixels(models: Models, hkl: Tensor, boxes: Shoeboxes) -> Bools:
    """In which boxes (n,), of reflections hkl (n, 3), pixels need not be split: the Gaussian that stands for a pixel's
    edges is off by less than `UNSEEN` of the noise of the brightest pixel."""
    if len(models.components) > FEW:
        return np.zeros(len(boxes), dtype=bool)
    hkl, error = hkl.double(), torch.zeros(len(boxes), dtype=torch.float64)
    for part in models.components:
        # pixel and depth are part of the Gaussian
        at = nodes(part.crystal, models.panels, models.beam, hkl, boxes.panel, models.ln_scale, WHOLE)
        found = centroids(at.q, at.covariance[0], models.beam)
        # an oblique spot is as narrow along an edge as its section there, not as its shadow
        inverse = torch.linalg.inv(spot_covariance_px(models, at.covariance[0], found.s1, boxes.panel))
        error = torch.maximum(error, EDGE_ERROR * inverse.diagonal(dim1=-2, dim2=-1).square().sum(1))
    photons = boxes.largest(boxes.data * boxes.used).clamp_min(0)
    return (error * torch.sqrt(photons) < UNSEEN).numpy()


def to_next_px(predictions: Predictions, rivals: Predictions) -> Floats:
    """The distance (n,) of each prediction to the nearest rival on its panel, itself aside; inf without one."""
    found = np.full(len(predictions), np.inf)
    for i in np.unique(predictions.panel):
        rows, others = predictions.panel == i, rivals.panel == i
        if others.sum() > 1:
            # the nearest prediction is the box's own
            distance, _ = cKDTree(rivals.xy_px[others]).query(predictions.xy_px[rows], k=2)
            found[rows] = distance[:, 1]
    return found


def half_sizes(predictions: Predictions, next_px: Floats, margin_px: int = MARGIN_PX) -> Ints:
    """Half-sizes (n, 2) of boxes in pixels: the spot and some background, not beyond half-way to the next spot."""
    wanted = np.clip(np.ceil(WIDTHS * predictions.sigma_px).astype(np.int64) + margin_px, HALF_MIN, HALF_MAX)
    half_way = np.clip(np.ceil(next_px / 2), HALF_MIN, HALF_MAX).astype(np.int64)
    return np.minimum(wanted, half_way[:, None])


def shoeboxes(still: Still, chosen: Predictions, everything: Predictions, margin_px: int = MARGIN_PX) -> Shoeboxes:
    """The boxes of the chosen predictions. `everything` are all predictions that compete for pixels, the chosen ones
    included; it may hold more, which then have no box of their own but whose tails are modelled."""
    next_px = to_next_px(chosen, everything)
    half = half_sizes(chosen, next_px, margin_px)
    # small boxes first, so that boxes which are worked on together are alike
    order = np.argsort(half.prod(1), kind="stable")
    chosen, next_px, half = chosen.select(order), next_px[order], half[order]
    centre = np.floor(chosen.xy_px).astype(np.int64)
    corner, width = centre - half, 2 * half + 1
    row, place = counted(width.prod(1))
    fast, slow = corner[row, 0] + place % width[row, 0], corner[row, 1] + place // width[row, 0]
    data, others, sigma_squared, on_panel, trusted = _gather(still, chosen.panel[row], slow, fast)
    own = _nearest(chosen, everything, next_px, row, slow, fast)
    used = own & trusted
    left_out = {
        "pixels nearer to another prediction": int((~own).sum()),
        "untrusted pixels": int((own & ~trusted).sum()),
    }
    x, y = fast - centre[row, 0], slow - centre[row, 1]
    near_centre = (np.abs(x) <= 1) & (np.abs(y) <= 1)
    usable, mine, spoilt = (np.bincount(row[of], minlength=len(chosen)) for of in (used, own, near_centre & ~used))
    mostly = (usable > USABLE_FRACTION * mine) & (usable >= FEWEST_PIXELS)
    keep = mostly & (spoilt == 0)
    left_out["boxes with too few usable pixels"] = int((~mostly).sum())
    left_out["boxes with an unusable pixel at the centre"] = int((mostly & (spoilt > 0)).sum())
    reflections, node, dropped = _contributions(chosen.select(keep), everything)
    left_out[f"tails beyond those of the nearest {MOST_TAILS} neighbours"] = dropped
    alike = np.argsort((node >= 0).sum(1), kind="stable")
    keep, node = np.nonzero(keep)[0][alike], node[alike]
    # the pixels of the boxes that are kept, in their order
    rank = np.full(len(chosen), -1)
    rank[keep] = np.arange(len(keep))
    pixel = np.flatnonzero(own & on_panel & (rank[row] >= 0))
    pixel = pixel[np.argsort(rank[row[pixel]], kind="stable")]
    row, x, y = row[pixel], x[pixel], y[pixel]
    spans = (np.ones(len(row)), x / half[row, 0], y / half[row, 1])
    box = rank[row]
    return Shoeboxes(
        torch.as_tensor(chosen.panel[keep]),
        torch.ones(len(box), dtype=torch.bool),
        torch.as_tensor(box),
        torch.as_tensor(slow[pixel]),
        torch.as_tensor(fast[pixel]),
        torch.as_tensor(used[pixel]),
        torch.as_tensor(data[pixel]),
        torch.as_tensor(others[pixel]),
        torch.as_tensor(sigma_squared[pixel]),
        torch.as_tensor((node >= 0).sum(1)[box]),
        torch.as_tensor(np.stack(spans, -1)),
        np.stack([corner[:, 0], corner[:, 0] + width[:, 0], corner[:, 1], corner[:, 1] + width[:, 1]], -1)[keep],
        reflections,
        torch.as_tensor(node),
        left_out,
    )


def counted(counts: Ints) -> tuple[Ints, Ints]:
    """Of as many things as `counts` (n,) has in each row, the row and the number within it."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)


def _gather(still: Still, panel: Ints, slow: Ints, fast: Ints) -> tuple[Floats, Floats, Floats, Bools, Bools]:
    """Data, light of other lattices, σ², being on the panel and trust of pixels (k,); what lies outside a panel is
    not trusted and reads 0."""
    data, others, sigma_squared = np.zeros(slow.shape), np.zeros(slow.shape), np.zeros(slow.shape)
    on_panel, trusted = np.zeros(slow.shape, bool), np.zeros(slow.shape, bool)
    for i in np.unique(panel):
        rows = np.nonzero(panel == i)[0]
        shape = still.images_photons[i].shape
        s, f = slow[rows], fast[rows]
        inside = (s >= 0) & (s < shape[0]) & (f >= 0) & (f < shape[1])
        s, f = np.where(inside, s, 0), np.where(inside, f, 0)
        good = inside & still.trusted[i][s, f]
        sigma = still.noise.sigma_readout_photons[i]
        data[rows] = np.where(good, still.images_photons[i][s, f], 0.0)
        if still.others is not None:
            others[rows] = np.where(inside, still.others.photons[i][s, f], 0.0)
        sigma_squared[rows] = np.where(inside, sigma[s, f] if isinstance(sigma, np.ndarray) else sigma, 0.0) ** 2
        on_panel[rows], trusted[rows] = inside, good
    return data, others, sigma_squared, on_panel, trusted


def _nearest(chosen: Predictions, everything: Predictions, next_px: Floats, row: Ints, slow: Ints, fast: Ints) -> Bools:
    """Whether each pixel (k,), of the box `row`, is at least as near to its centroid as to any other."""
    points = np.stack([fast + 0.5, slow + 0.5], -1)
    away = points - chosen.xy_px[row]
    to_own = np.sqrt((away**2).sum(1))
    own = to_own <= next_px[row] / 2
    unsure = np.flatnonzero(~own)
    panel = chosen.panel[row[unsure]]
    for i in np.unique(panel):
        here = unsure[panel == i]
        distance, _ = cKDTree(everything.xy_px[everything.panel == i]).query(points[here])
        own[here] = to_own[here] <= distance + 1e-9
    return own


def _contributions(chosen: Predictions, everything: Predictions) -> tuple[Ints, Ints, int]:
    """The reflections that matter and, for each box, those that reach it: its own first, then the nearest neighbours
    whose spots are wide enough to cross the border half-way between; and how many more would."""
    reach = 2 * TAIL_WIDTHS * everything.sigma_px.max(1, initial=0) + 2
    boxes, rivals, apart = ([np.zeros(0, kind)] for kind in (np.int64, np.int64, np.float64))
    for i in np.unique(chosen.panel):
        rows, others = np.flatnonzero(chosen.panel == i), np.flatnonzero(everything.panel == i)
        trees = cKDTree(chosen.xy_px[rows]), cKDTree(everything.xy_px[others])
        pairs = trees[0].sparse_distance_matrix(trees[1], float(reach[others].max()), output_type="ndarray")
        near = pairs[pairs["v"] < reach[others[pairs["j"]]]]
        boxes.append(rows[near["i"]])
        rivals.append(others[near["j"]])
        apart.append(near["v"])
    if not boxes:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 1), dtype=np.int64), 0
    box, index = np.concatenate(boxes), everything.index[np.concatenate(rivals)]
    order = np.lexsort((index, np.concatenate(apart), box))
    box, index = box[order], index[order]
    others_only = index != chosen.index[box]
    box, index = box[others_only], index[others_only]
    counts = np.bincount(box, minlength=len(chosen))
    _, rank = counted(counts)
    dropped = int((rank >= MOST_TAILS).sum())
    box, index, rank = (values[rank < MOST_TAILS] for values in (box, index, rank))
    names = np.unique(np.concatenate([chosen.index, index]))
    node = np.full((len(chosen), 1 + int(rank.max(initial=-1)) + 1), -1, dtype=np.int64)
    node[:, 0], node[box, 1 + rank] = np.searchsorted(names, chosen.index), np.searchsorted(names, index)
    return names, node, dropped
