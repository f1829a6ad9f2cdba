"""Where reflections are predicted: those that the model brings to the Ewald sphere, and where and how large their
spots are on the detector."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.parameters import Models
from dbex.still import Amplitudes, Bools, Floats, Ints, Still
from nanobrag_torch.config import CrystalConfig
from nanobrag_torch.lattice import reciprocal_basis
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Centroids, centroids, intersection_px
from nanobrag_torch.spread import node_covariance, spread_of
from nanobrag_torch.tensors import as_tensor, dot, unit

#: No index is as large as this.
HKL_MAX = 1 << 20
#: So many reflections are looked at in one go: few enough for a core's cache.
AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Predictions:
    """Predicted reflections: `index` (n,) into the amplitudes, panel (n,), centroid (fast, slow) (n, 2) in pixels,
    excitation k (n,), rms size of the spot (n, 2) in pixels."""

    index: Ints
    panel: Ints
    xy_px: Floats
    k: Floats
    sigma_px: Floats

    def __len__(self) -> int:
        return len(self.index)

    def select(self, chosen: Bools | Ints) -> "Predictions":
        """Some of them."""
        return Predictions(*(getattr(self, name)[chosen] for name in ("index", "panel", "xy_px", "k", "sigma_px")))


def predict(
    models: Models, amplitudes: Amplitudes, d_min: float, k_max: float, shapes: list[tuple[int, int]]
) -> Predictions:
    """The reflections of the list of which a component lies within `k_max` widths of the Ewald sphere, on a panel.

    The centroid is that of all components, each with its share and its partiality.
    """
    may = np.flatnonzero(may_be_seen(models, amplitudes.hkl, k_max))
    index, hkl = torch.as_tensor(may), torch.as_tensor(amplitudes.hkl[may], dtype=models.panels.origin.dtype)
    length = torch.linalg.vector_norm(hkl @ reciprocal_basis(models.crystal, hkl).T, dim=-1)
    inside = (length > 0) & (length <= 1 / d_min)
    index, hkl = index[inside], hkl[inside]
    seen = components_seen(models, hkl)
    near = torch.abs(seen.k) < k_max
    index, hkl, seen = index[near], hkl[near], seen.select(near)
    panel = panels_hit(models.panels, shapes, seen.s1)
    hit = panel >= 0
    return placed(models, index[hit], hkl[hit], panel[hit], seen.select(hit))


def may_be_seen(models: Models, hkl: Ints, k_max: float) -> Bools:
    """Whether reflections hkl (n, 3) can lie within `k_max` widths of the Ewald sphere: a node is nowhere wider than
    the root of its covariance's trace. What lies farther off in every component does so in all together."""
    like = models.panels.origin
    wave = 1 / as_tensor(models.beam.wavelength_A, like)
    k0 = unit(as_tensor(models.beam.direction, like)) * wave
    near = np.zeros(len(hkl), dtype=bool)
    for part in models.outline:
        A, spread = reciprocal_basis(part.crystal, like), spread_of(part.crystal, models.beam, like)
        fixed, grows = spread.size.trace() + spread.divergence.trace(), spread.rotations.trace() + spread.radial
        for first in range(0, len(hkl), AT_ONCE):
            here = slice(first, first + AT_ONCE)
            # a row for each axis: four times as fast
            q = A @ torch.as_tensor(np.ascontiguousarray(hkl[here].T), dtype=like.dtype)
            q_squared = (q * q).sum(0)
            epsilon = torch.sqrt(q_squared + 2 * (k0 @ q) + wave**2) - wave
            near[here] |= (epsilon**2 < k_max**2 * (fixed + grows * q_squared)).numpy()
    return near


def panels_hit(panels: Panels, shapes: list[tuple[int, int]], s1: Tensor) -> Tensor:
    """The first of the panels, of these shapes (slow, fast) in pixels, that records each ray s1 (n, 3); -1 for none."""
    n = len(s1)
    panel = torch.full((n,), -1, dtype=torch.long)
    if not n:
        return panel
    size = torch.tensor([(fast, slow) for slow, fast in shapes], dtype=s1.dtype)
    several = max(1, AT_ONCE // n)
    for first in range(0, len(shapes), several):
        which = torch.arange(first, min(first + several, len(shapes))).repeat_interleave(n)
        rays = s1.repeat(len(which) // n, 1)
        toward = dot(rays, panels.normal[which]) * panels.distance[which] > 0
        here = intersection_px(panels, which, rays)
        inside = (toward & ((here >= 0) & (here < size[which])).all(-1)).view(-1, n)
        found = inside.any(0) & (panel < 0)
        panel = torch.where(found, first + inside.to(torch.uint8).argmax(0), panel)
    return panel


@dataclass(frozen=True)
class Seen:
    """Reflections as all components together show them: excitation k (n,), the one that a single Gaussian of that
    partiality would have; mean direction s1 (n, 3); share (c, n) of each component in the intensity; and what the
    components alone are."""

    k: Tensor
    s1: Tensor
    share: Tensor
    each: list[Centroids]

    def select(self, chosen: Tensor) -> "Seen":
        """Some of them."""
        each = [Centroids(found.epsilon[chosen], found.width[chosen], found.s1[chosen]) for found in self.each]
        return Seen(self.k[chosen], self.s1[chosen], self.share[:, chosen], each)


def components_seen(models: Models, hkl: Tensor) -> Seen:
    """The reflections hkl (n, 3) on the Ewald sphere."""
    each, densities, peaks = [], [], []
    for part in models.outline:
        q = hkl @ reciprocal_basis(part.crystal, hkl).T
        found = centroids(q, node_covariance(part.crystal, models.beam, q), models.beam)
        each.append(found)
        densities.append(part.ln_weight - torch.log(found.width) - 0.5 * found.k**2)
        peaks.append(part.ln_weight - torch.log(found.width))
    ln_density = torch.logsumexp(torch.stack(densities), 0)
    share = torch.exp(torch.stack(densities) - ln_density)
    if len(each) == 1:
        return Seen(each[0].k, each[0].s1, share, each)
    ln_partiality = ln_density - torch.logsumexp(torch.stack(peaks), 0)
    side = torch.sign(sum_of(share, [found.epsilon for found in each]))
    k = side * torch.sqrt((-2 * ln_partiality).clamp_min(1e-12))
    return Seen(k, unit(sum_of(share[..., None], [found.s1 for found in each])), share, each)


def sum_of(share: Tensor, values: list[Tensor]) -> Tensor:
    """The mean of components' values with their shares."""
    return (share * torch.stack(values)).sum(0)


def placed(models: Models, index: Tensor, hkl: Tensor, panel: Tensor, seen: Seen) -> Predictions:
    """Predictions of reflections whose panels are known, and where components show them."""
    positions = [intersection_px(models.panels, panel, found.s1) for found in seen.each]
    xy = sum_of(seen.share[..., None], positions)
    # the mean of the sizes, not of their squares: the far tails of a few percent need no room
    sizes = [
        spot_size_px(models, part.crystal, hkl @ reciprocal_basis(part.crystal, hkl).T, found.s1, panel)
        + torch.abs(position - xy)
        for part, found, position in zip(models.outline, seen.each, positions, strict=True)
    ]
    sigma = sum_of(seen.share[..., None], sizes)
    return Predictions(index.numpy(), panel.numpy(), xy.numpy(), seen.k.numpy(), sigma.numpy())


def spot_size_px(models: Models, crystal: CrystalConfig, q: Tensor, s1: Tensor, panel: Tensor) -> Tensor:
    """Rms sizes (n, 2) of spots along fast and slow, in pixels, with those of a pixel and of the sensor's depth."""
    panels = models.panels
    cosine = torch.abs(dot(s1, panels.normal[panel]))
    thickness = panels.thickness[panel] * torch.sqrt(1 - cosine**2) / cosine / panels.pixel_size[panel]
    covariance = spot_covariance_px(models, node_covariance(crystal, models.beam, q), s1, panel)
    squared = covariance.diagonal(dim1=-2, dim2=-1)
    return torch.sqrt(squared + 1 / 12 + (0.2 * thickness[:, None]) ** 2)


def spot_covariance_px(models: Models, covariance: Tensor, s1: Tensor, panel: Tensor) -> Tensor:
    """Covariances (n, 2, 2) of spots along fast and slow, in pixels²: nodes of these covariances (n, 3, 3) cut by the
    Ewald sphere."""
    panels = models.panels
    normal = panels.normal[panel]
    wavelength = as_tensor(models.beam.wavelength_A, s1)
    range_mm = torch.abs(panels.distance[panel] / dot(s1, normal))
    along = (covariance @ s1[..., None]).squeeze(-1)
    cut = covariance - along[..., :, None] * along[..., None, :] / dot(s1, along)[:, None, None]
    # the shift along an axis of the panel that takes a ray across by dq: its projection along s1 onto the panel
    levers = [
        axis - normal * (dot(s1, axis) / dot(s1, normal))[:, None] for axis in (panels.fast[panel], panels.slow[panel])
    ]
    lever = torch.stack(levers, 1) * (wavelength * range_mm / panels.pixel_size[panel])[:, None, None]
    return lever @ cut @ lever.transpose(1, 2)


def observed_predictions(still: Still, models: Models) -> Predictions:
    """The indexed spots as predictions whose centroids are those observed; spots that the amplitudes lack are left."""
    known, sought = keys(still.amplitudes.hkl), keys(still.observed.hkl)
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known, sought, sorter=order), len(known) - 1)]
    rows = np.nonzero(known[place] == sought)[0]
    hkl, index = still.observed.hkl[rows], place[rows]
    found = placed(
        models,
        torch.as_tensor(index),
        torch.as_tensor(hkl, dtype=models.panels.origin.dtype),
        torch.as_tensor(still.observed.panel[rows]),
        components_seen(models, torch.as_tensor(hkl, dtype=models.panels.origin.dtype)),
    )
    return replace(found, xy_px=still.observed.xy_px[rows])


def keys(hkl: Ints) -> Ints:
    """One number (n,) for each reflection (n, 3)."""
    h, k, l = np.asarray(hkl, dtype=np.int64).T + HKL_MAX
    return (h * 2 * HKL_MAX + k) * 2 * HKL_MAX + l
