"""Shoeboxes in closed form: the profile of every node in its box, and the derivatives, in one pass over the pixels.

A pixel depends on its node through ten numbers only (q_h, six of S, ln amplitude), and on the detector and the beam
through the ray (q, Ω P C). With Δ = q - q_h, g = S⁻¹ Δ and I the intensity of a sample:

    dI = I [ g.(dq_h - dq) + ½ gᵀ dS g - ½ tr(S⁻¹ dS) + d ln amplitude + d ln(Ω P C) ]

so that the sums of I, I g and I g gᵀ over a pixel's samples are all that the parameters of the crystal need. The
derivatives of q_h, S, the amplitude and the rays are those of the functions in profile.py by forward-mode autodiff:
there is no second copy of the physics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacfwd

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Nodes, Quadrature, Rays, rays, sensor_layers, sub_pixel_offsets, whitening


@dataclass(frozen=True)
class BoxPixels:
    """The pixels of shoeboxes: panel (boxes,), slow and fast (boxes, pixels), counted from the panel's first."""

    panel: Tensor
    slow: Tensor
    fast: Tensor

    def __getitem__(self, part: slice) -> "BoxPixels":
        return BoxPixels(self.panel[part], self.slow[part], self.fast[part])

    def __len__(self) -> int:
        return len(self.panel)


@dataclass(frozen=True)
class Columns:
    """Derivatives with respect to parameters x (last axis n) of what pixels depend on: of nodes q (m, 3, n), of the
    covariances (layers, m, 3, 3, n) and of the ln amplitudes (m, n)."""

    q: Tensor
    covariance: Tensor
    ln_amplitude: Tensor


def box_rays(panels: Panels, beam: BeamConfig, boxes: BoxPixels, rule: Quadrature) -> list[Rays]:
    """For each layer, the rays of all samples: q (boxes, pixels, samples, 3) and factor (boxes, pixels, samples)."""
    offsets = sub_pixel_offsets(rule.oversample, panels.origin)
    up, along = (grid.flatten() for grid in torch.meshgrid(offsets, offsets, indexing="ij"))
    slow, fast = boxes.slow[..., None] + up, boxes.fast[..., None] + along
    panel = boxes.panel[:, None, None].expand_as(slow)
    result = []
    for layer in sensor_layers(panels, rule.layers):
        found = rays(panels, beam, panel.flatten(), slow.flatten(), fast.flatten(), layer, rule.layers)
        factor = found.factor.view(slow.shape) / rule.oversample**2
        result.append(Rays(found.q.view(*slow.shape, 3), factor))
    return result


def box_profiles(at: Nodes, panels: Panels, beam: BeamConfig, boxes: BoxPixels, rule: Quadrature) -> Tensor:
    """Intensity (boxes, pixels, k) of each box's k nodes; `at` holds boxes * k nodes, those of a box together."""
    count = len(at.q) // len(boxes)
    total = torch.zeros(*boxes.slow.shape, count, dtype=at.q.dtype, device=at.q.device)
    for number, ray in enumerate(box_rays(panels, beam, boxes, rule)):
        W, ln_norm = whitening(at.covariance[number])
        for k in range(count):
            white = _offset(ray, at.q[k::count]) @ W[k::count, None].transpose(-1, -2)
            ln_peak = (ln_norm + at.ln_amplitude)[k::count]
            total[..., k] += (ray.factor * torch.exp(ln_peak[:, None, None] - 0.5 * (white**2).sum(-1))).sum(-1)
    return total


def _offset(ray: Rays, q: Tensor) -> Tensor:
    """q of the samples (boxes, pixels, samples, 3) minus that of a node a box (boxes, 3)."""
    return ray.q - q[:, None, None, :]


def ray_columns(
    models: Callable[[Tensor], tuple[Panels, BeamConfig]], x: Tensor, boxes: BoxPixels, rule: Quadrature
) -> list[tuple[Tensor, Tensor]]:
    """For each layer, the derivatives of q (…, 3, n) and of ln(Ω P C) (…, n) with respect to x (n,)."""

    def stacked(x: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return tuple((ray.q, torch.log(ray.factor)) for ray in box_rays(*models(x), boxes, rule))

    return list(jacfwd(stacked)(x))


def box_derivatives(
    at: Nodes,
    weights: Tensor,
    columns: Columns,
    geometry: list[tuple[Tensor, Tensor]] | None,
    geometric: Tensor,
    panels: Panels,
    beam: BeamConfig,
    boxes: BoxPixels,
    rule: Quadrature,
) -> Tensor:
    """Derivatives (boxes, pixels, n) of the sum over a box's nodes of weight times profile.

    `weights` (boxes, k) are the nodes' intensities, `columns` the nodes' derivatives, `geometry` those of the rays for
    the parameters whose places in x are `geometric` (long), or None.
    """
    count = weights.shape[1]
    n = columns.ln_amplitude.shape[-1]
    result = torch.zeros(*boxes.slow.shape, n, dtype=at.q.dtype, device=at.q.device)
    for number, ray in enumerate(box_rays(panels, beam, boxes, rule)):
        W, ln_norm = whitening(at.covariance[number])
        for k in range(count):
            part = slice(k, None, count)
            inverse = W[part].transpose(-1, -2) @ W[part]
            offset = _offset(ray, at.q[part])
            g = offset @ inverse[:, None]
            ln_peak = (ln_norm + at.ln_amplitude)[part] + torch.log(torch.abs(weights[:, k]).clamp_min(1e-300))
            intensity = ray.factor * torch.exp(ln_peak[:, None, None] - 0.5 * (offset * g).sum(-1))
            intensity = intensity * torch.sign(weights[:, k])[:, None, None]
            moments = _moments(intensity, g)
            result += moments @ _node_maps(columns, number, part, inverse)
            if geometry is not None:
                dq, dln = geometry[number]
                slope = dln - (g[..., None] * dq).sum(-2)
                result[..., geometric] += (intensity[..., None] * slope).sum(-2)
    return result


def _moments(intensity: Tensor, g: Tensor) -> Tensor:
    """Sums over samples (boxes, pixels, 13) of I, I g and I g gᵀ."""
    first = intensity[..., None] * g
    second = first.transpose(-1, -2) @ g
    return torch.cat([intensity.sum(-1, keepdim=True), first.sum(-2), second.flatten(-2)], -1)


def _node_maps(columns: Columns, layer: int, part: slice, inverse: Tensor) -> Tensor:
    """The maps (boxes, 13, n) from those sums to the derivatives."""
    dS = columns.covariance[layer, part]
    trace = (inverse[..., None] * dS).sum((-3, -2))
    amplitude = columns.ln_amplitude[part] - 0.5 * trace
    return torch.cat([amplitude[:, None, :], columns.q[part], 0.5 * dS.flatten(1, 2)], 1)
