"""From the solution to the tables that are written: one row a box, one row a pixel, and the figures of merit."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.intensities import solved_without_prior
from dbex.refinement.objective import Local, Objective
from dbex.refinement.predictions import components_seen, sum_of
from dbex.refinement.prior import ModelError, estimate_model_error, known_of
from dbex.refinement.shoeboxes import Shoeboxes
from dbex.refinement.summation import summed
from dbex.still import Amplitudes, BoxTable, Floats, Ints, PixelTable, Still
from nanobrag_torch.jacobian import jacobian
from nanobrag_torch.lattice import reciprocal_basis
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.profile import Layer, centroids, intersection_px, rays
from nanobrag_torch.spread import node_covariance
from nanobrag_torch.tensors import as_tensor, dot, unit

#: Core pixels are those where the spot exceeds this fraction of its box's maximum.
CORE = 0.1
#: Boxes whose signal exceeds this many sigma count for the median correlation.
STRONG = 10.0


@dataclass(frozen=True)
class Solved:
    """An objective at its solution: x, its covariance, variances and the linear optimum."""

    objective: Objective
    x: Tensor
    covariance: Floats
    variance: Tensor
    local: Local

    @cached_property
    def free(self) -> tuple[Floats, Floats]:
        """`free_intensities`, found once."""
        return solved_without_prior(self.objective, self.variance, self.local)


def free_intensities(solved: Solved) -> tuple[Floats, Floats]:
    """The intensity of each box (n,) without prior and its variance, NaN where no pixel determines it; reflections that
    overlap are solved together."""
    return solved.free


def likely_model_error(solved: Solved, amplitudes: Amplitudes) -> ModelError:
    """The relative error of F² that the free intensities make most likely."""
    boxes = solved.objective.boxes
    return estimate_model_error(*solved.free, amplitudes, boxes.reflections[boxes.node[:, 0].numpy()])


@dataclass(frozen=True)
class Excitation:
    """For each box: k, ln partiality density's derivative folded with the covariance (its esd), centroid, s1, the
    angle to the sphere (radians) and the factor Ω P C at the centroid."""

    k: Floats
    ln_partiality_esd: Floats
    xy_px: Floats
    s1: Floats
    delpsi_rad: Floats
    lp: Floats


def excitation(solved: Solved) -> Excitation:
    """Where the model puts the boxes' reflections, and how sure it is of their partiality."""
    objective, boxes = solved.objective, solved.objective.boxes
    hkl = objective.hkl[boxes.node[:, 0]].double()
    panel = boxes.panel

    def ln_partiality(x: Tensor) -> tuple[Tensor]:
        seen = components_seen(objective.map.models(x), hkl)
        widths = torch.stack([torch.log(found.width) for found in seen.each])
        return (-0.5 * seen.k**2 - (seen.share.detach() * widths).sum(0),)

    slope = jacobian(ln_partiality, solved.x)[0].numpy()
    variance = np.einsum("ni,ij,nj->n", slope, solved.covariance, slope)
    models = objective.map.models(solved.x)
    seen = components_seen(models, hkl)
    q = hkl @ reciprocal_basis(models.crystal, solved.x).T
    positions = [intersection_px(models.panels, panel, found.s1) for found in seen.each]
    xy = sum_of(seen.share[..., None], positions)
    epsilon = sum_of(seen.share, [found.epsilon for found in seen.each])
    whole = Layer(torch.zeros_like(models.panels.thickness), models.panels.thickness)
    factor = rays(models.panels, models.beam, panel, xy[:, 1], xy[:, 0], whole, 1).factor
    s0 = unit(as_tensor(models.beam.direction, q))
    to_node = unit(q + s0 / as_tensor(models.beam.wavelength_A, q))
    turn = torch.linalg.cross(unit(torch.linalg.cross(q, s0.expand_as(q))), q)
    delpsi = -epsilon / dot(to_node, turn)
    return Excitation(
        seen.k.numpy(), np.sqrt(np.maximum(variance, 0)), xy.numpy(), seen.s1.numpy(), delpsi.numpy(), factor.numpy()
    )


def box_table(solved: Solved, still: Still, weight: Tensor, covariance: Floats | None = None) -> BoxTable:
    """One row a box; `weight` (n,) are the robust weights, `covariance` (n, n) that of x where it is not the formal
    one."""
    objective, boxes, local = solved.objective, solved.objective.boxes, solved.local
    value, variance = free_intensities(solved)
    of_sum, variance_of_sum = summed(objective, solved.variance, local)
    at = excitation(solved if covariance is None else replace(solved, covariance=covariance))
    own = boxes.node[:, 0]
    prior_mean, prior_sd = objective.prior.mean[own].numpy(), objective.prior.sd[own].numpy()
    with_partiality = variance + (value * at.ln_partiality_esd) ** 2
    used = boxes.used.double()

    def total(values: Tensor) -> Floats:
        return boxes.sums(values * used).numpy()

    count = total(used)
    size = np.array([p.pixel_size_mm for p in still.detector], dtype=float)[boxes.panel.numpy()]
    wavelength = float(as_tensor(objective.map.models(solved.x).beam.wavelength_A, solved.x))
    partiality = np.exp(-0.5 * at.k**2)
    hkl, panel = objective.hkl[own].numpy(), boxes.panel.numpy()
    row = matching_rows(still, hkl, panel)
    return BoxTable(
        hkl=hkl,
        panel=panel,
        bbox=boxes.bbox,
        xy_px=at.xy_px,
        xy_before_px=centroids_as_read(still, hkl, panel),
        xy_observed_px=observed_centroids(still, row),
        xy_mm=at.xy_px * size[:, None],
        s1=at.s1 / wavelength,
        delpsi_rad=at.delpsi_rad,
        excitation=at.k,
        partiality=partiality,
        partiality_esd=partiality * at.ln_partiality_esd,
        lp=at.lp,
        intensity=value,
        variance=with_partiality,
        summed_intensity=of_sum,
        summed_variance=variance_of_sum,
        posterior_intensity=local.intensity[own].numpy(),
        posterior_variance=1 / (1 / variance + 1 / prior_sd**2),
        prior_intensity=prior_mean,
        background_mean=total(local.background) / count,
        cc=correlation(boxes, boxes.data, local.bragg + local.background),
        chi2_per_pixel=total(squared_residuals(solved)) / count,
        signal_to_noise=total(local.bragg) / np.sqrt(total(solved.variance)),
        pixels=count.astype(np.int64),
        weight=weight.numpy(),
        row=row,
    )


def squared_residuals(solved: Solved) -> Tensor:
    """Z² (N,) of every pixel, used or not."""
    boxes, local = solved.objective.boxes, solved.local
    return (boxes.data - local.background - local.bragg) ** 2 / solved.variance


def correlation(boxes: Shoeboxes, x: Tensor, y: Tensor) -> Floats:
    """Pearson's correlation (n,) of two values of every pixel (N,) over the used pixels of each box."""
    used = boxes.used.double()
    count = boxes.sums(used).clamp_min(1)
    dx, dy = ((a - (boxes.sums(a * used) / count)[boxes.box]) * used for a in (x, y))
    norm = torch.sqrt(boxes.sums(dx**2) * boxes.sums(dy**2))
    return (boxes.sums(dx * dy) / norm.clamp_min(1e-300)).numpy()


def rank_correlation(x: Floats, y: Floats) -> float:
    """Spearman's correlation of two lists without ties; NaN for fewer than three."""
    if len(x) < 3:
        return float("nan")
    first, second = (np.argsort(np.argsort(values)) for values in (x, y))
    return float(np.corrcoef(first, second)[0, 1])


def matching_rows(still: Still, hkl: Ints, panel: Ints) -> Ints:
    """The row of the table that was read for each reflection, -1 where there is none."""
    known = {
        (*map(int, h), int(p)): int(row)
        for h, p, row in zip(still.observed.hkl, still.observed.panel, still.observed.row, strict=True)
    }
    return np.array([known.get((*map(int, h), int(p)), -1) for h, p in zip(hkl, panel, strict=True)], dtype=np.int64)


def observed_centroids(still: Still, row: Ints) -> Floats:
    """The centroids (n, 2) that were read, in pixels, of rows of that table; NaN where a row is -1."""
    order = np.argsort(still.observed.row)
    place = order[np.searchsorted(still.observed.row, np.maximum(row, 0), sorter=order).clip(max=len(order) - 1)]
    return np.where(row[:, None] >= 0, still.observed.xy_px[place], np.nan)


def centroids_as_read(still: Still, hkl: Ints, panel: Ints) -> Floats:
    """Where the models that were read put reflections (n, 3), in pixels (n, 2); on their panels, however far off."""
    nodes = torch.as_tensor(hkl, dtype=torch.float64)
    q = nodes @ reciprocal_basis(still.crystal, nodes).T
    found = centroids(q, node_covariance(still.crystal, still.beam, q), still.beam)
    return intersection_px(stack_panels(still.detector, nodes), torch.as_tensor(panel), found.s1).numpy()


def pixel_table(solved: Solved) -> PixelTable:
    """One row a pixel of the boxes and their panel, box after box."""
    boxes, local = solved.objective.boxes, solved.local
    rows = torch.nonzero(boxes.real)[:, 0]
    rows = rows[torch.argsort(boxes.box[rows], stable=True)]
    return PixelTable(
        box=boxes.box[rows].numpy(),
        panel=boxes.panel[boxes.box[rows]].numpy(),
        slow=boxes.slow[rows].numpy(),
        fast=boxes.fast[rows].numpy(),
        data=boxes.data[rows].numpy(),
        background=local.background[rows].numpy(),
        other_lattices=boxes.others[rows].numpy(),
        bragg=local.bragg[rows].numpy(),
        variance=solved.variance[rows].numpy(),
        used=boxes.used[rows].numpy(),
    )


def figures_of_merit(solved: Solved, table: BoxTable, amplitudes: Amplitudes) -> dict[str, float]:
    """χ² over all and over core pixels, the median correlation of strong boxes, that of their intensities with F², and
    what they are made of.

    Intensities and F² are compared in units of the mean F² of their resolution: both fall with it, whosever they are.
    """
    boxes, local = solved.objective.boxes, solved.local
    z2, used = squared_residuals(solved), boxes.used
    core = used & (local.bragg > CORE * boxes.largest(local.bragg)[boxes.box])
    strong = table.signal_to_noise > STRONG
    known = strong & np.isfinite(table.intensity)
    own = boxes.reflections[boxes.node[:, 0].numpy()]
    mean = known_of(amplitudes, own[known]).mean_square
    return {
        "chi2_per_pixel": float(z2[used].mean()),
        "chi2_core": float(z2[core].mean()) if core.any() else float("nan"),
        "median_cc": float(np.median(table.cc[strong])) if strong.any() else float("nan"),
        "intensity_cc": rank_correlation(table.intensity[known] / mean, table.prior_intensity[known] / mean),
        "boxes": float(len(boxes)),
        "boxes_cc": float(strong.sum()),
        "pixels": float(used.sum()),
        "core_pixels": float(core.sum()),
        "variance_floor_pixels": float((used & (solved.variance <= 1e-2)).sum()),
    }
