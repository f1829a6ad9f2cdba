"""Shoeboxes in closed form: the profile of every node in its box, and the derivatives, in one pass over the pixels.

A pixel depends on its node through ten numbers only (q_h, six of S, ln amplitude), and on the detector and the beam
through its ray (q, Ω P C), which in turn depends on the seventeen numbers of its panel and the beam. With
Δ = q - q_h, g = S⁻¹ Δ and I the intensity of a sample:

    dI = I [ g.(dq_h - dq) + ½ gᵀ dS g - ½ tr(S⁻¹ dS) + d ln amplitude + d ln(Ω P C) ]

so that sums over a pixel's samples are all that any number of parameters needs. The derivatives of the rays are
those of profile.rays by reverse-mode autodiff: there is no second copy of the physics.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.func import jacfwd, vjp

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Layer, Nodes, Quadrature, Rays, rays, sensor_layers, sub_pixel_offsets, whitening
from nanobrag_torch.tensors import as_tensor

#: The numbers of a panel that its rays depend on, in the order of the columns below.
_MOVING = ("fast", "slow", "normal", "origin", "distance")


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
class NodeColumns:
    """Derivatives of nodes with respect to parameters x (last axis n): of q (m, 3, n), of the covariances
    (layers, m, 3, 3, n) and of the ln amplitudes (m, n)."""

    q: Tensor
    covariance: Tensor
    ln_amplitude: Tensor

    def rows(self, part: slice) -> "NodeColumns":
        """Those of some nodes."""
        return NodeColumns(self.q[part], self.covariance[:, part], self.ln_amplitude[part])


def _samples(boxes: BoxPixels, rule: Quadrature, like: Tensor) -> tuple[Tensor, Tensor]:
    """Slow and fast coordinates (boxes, pixels, samples) in pixels."""
    offsets = sub_pixel_offsets(rule.oversample, like)
    up, along = (grid.flatten() for grid in torch.meshgrid(offsets, offsets, indexing="ij"))
    return boxes.slow[..., None] + up, boxes.fast[..., None] + along


def box_rays(panels: Panels, beam: BeamConfig, boxes: BoxPixels, rule: Quadrature) -> list[Rays]:
    """For each layer, the rays of all samples: q (boxes, pixels, samples, 3) and factor (boxes, pixels, samples)."""
    slow, fast = _samples(boxes, rule, panels.origin)
    panel = boxes.panel[:, None, None].expand_as(slow).flatten()
    return [
        _in_shape(rays(panels, beam, panel, slow.flatten(), fast.flatten(), layer, rule.layers), slow, rule)
        for layer in sensor_layers(panels, rule.layers)
    ]


def _in_shape(found: Rays, samples: Tensor, rule: Quadrature) -> Rays:
    return Rays(found.q.view(*samples.shape, 3), found.factor.view(samples.shape) / rule.oversample**2)


def box_profiles(at: Nodes, ray_layers: list[Rays], count: int) -> Tensor:
    """Intensity (boxes, pixels, count) of each box's nodes; `at` holds boxes * count nodes, those of a box together."""
    shape = ray_layers[0].factor.shape[:2]
    total = torch.zeros(*shape, count, dtype=at.q.dtype, device=at.q.device)
    for number, ray in enumerate(ray_layers):
        W, ln_norm = whitening(at.covariance[number])
        for k in range(count):
            white = (ray.q - at.q[k::count, None, None]) @ W[k::count, None].transpose(-1, -2)
            ln_peak = (ln_norm + at.ln_amplitude)[k::count]
            total[..., k] += (ray.factor * torch.exp(ln_peak[:, None, None] - 0.5 * (white**2).sum(-1))).sum(-1)
    return total


@dataclass(frozen=True)
class RayMap:
    """How rays follow x: derivatives (n panels, 13, n) of the panels' fast, slow, normal, origin and distance, and
    (4, n) of the wavelength and the direction of travel."""

    panel: Tensor
    beam: Tensor


def ray_map(models: Callable[[Tensor], tuple[Panels, BeamConfig]], x: Tensor) -> RayMap:
    """The map of rays for parameters x (n,)."""

    def numbers(x: Tensor) -> tuple[Tensor, Tensor]:
        panels, beam = models(x)
        of_panels = torch.cat([getattr(panels, name).view(len(panels.distance), -1) for name in _MOVING], 1)
        return of_panels, _beam_numbers(beam, x)

    return RayMap(*jacfwd(numbers)(x))


def _beam_numbers(beam: BeamConfig, like: Tensor) -> Tensor:
    """Wavelength and direction (4,)."""
    return torch.cat([as_tensor(beam.wavelength_A, like)[None], as_tensor(beam.direction, like)])


def ray_derivatives(
    panels: Panels, beam: BeamConfig, boxes: BoxPixels, rule: Quadrature, layer: int, along_q: Tensor, along_ln: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums over the samples of a pixel of along_q.dq + along_ln d ln(Ω P C), for one layer, as derivatives (boxes,
    pixels, 13) by the numbers of the pixel's panel and (boxes, pixels, 4) by those of the beam.

    `along_q` (boxes, pixels, samples, 3) and `along_ln` (boxes, pixels, samples) weigh them.
    """
    slow, fast = _samples(boxes, rule, panels.origin)
    shape, samples = boxes.slow.shape, slow.shape[-1]
    of_pixel = boxes.panel[:, None].expand(shape).flatten()
    place = torch.arange(len(of_pixel), device=slow.device).repeat_interleave(samples)
    edges = sensor_layers(panels, rule.layers)[layer]
    own = Layer(edges.near[of_pixel], edges.far[of_pixel])
    # every pixel gets a panel and a beam of its own, so that one backward pass keeps pixels apart
    fixed = {f.name: getattr(panels, f.name)[of_pixel] for f in fields(panels)}
    numbers = _beam_numbers(beam, slow).expand(len(of_pixel), 4)

    def traced(moving: tuple[Tensor, ...], numbers: Tensor) -> tuple[Tensor, Tensor]:
        mine = Panels(**{**fixed, **dict(zip(_MOVING, moving, strict=True))})
        light = replace(beam, wavelength_A=numbers[place, 0], direction=numbers[place, 1:])
        found = rays(mine, light, place, slow.flatten(), fast.flatten(), own, rule.layers)
        return found.q, torch.log(found.factor)

    _, back = vjp(traced, tuple(fixed[name] for name in _MOVING), numbers)
    of_panel, of_beam = back((along_q.reshape(-1, 3), along_ln.reshape(-1)))
    columns = torch.cat([part.view(len(of_pixel), -1) for part in of_panel], 1)
    return columns.view(*shape, -1), of_beam.view(*shape, -1)


def box_derivatives(
    at: Nodes,
    weights: Tensor,
    columns: NodeColumns,
    ray_layers: list[Rays],
    follow: Callable[[int, Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """Derivatives (boxes, pixels, n) of the sum over a box's nodes of weight times profile.

    `weights` (boxes, k) are the nodes' intensities, `columns` the nodes' derivatives. `follow(layer, along_q,
    along_ln)` turns the samples' slopes along q and ln(Ω P C) into the columns (boxes, pixels, n) of the parameters
    that move rays; None where none does.
    """
    count = weights.shape[1]
    n = columns.ln_amplitude.shape[-1]
    result = torch.zeros(*ray_layers[0].factor.shape[:2], n, dtype=at.q.dtype, device=at.q.device)
    for number, ray in enumerate(ray_layers):
        W, ln_norm = whitening(at.covariance[number])
        along_q, along_ln = torch.zeros_like(ray.q), torch.zeros_like(ray.factor)
        for k in range(count):
            part = slice(k, None, count)
            inverse = W[part].transpose(-1, -2) @ W[part]
            offset = ray.q - at.q[part, None, None]
            g = offset @ inverse[:, None]
            peak = weights[:, k] * torch.exp((ln_norm + at.ln_amplitude)[part])
            intensity = peak[:, None, None] * ray.factor * torch.exp(-0.5 * (offset * g).sum(-1))
            first = intensity[..., None] * g
            moments = torch.cat(
                [intensity.sum(-1, keepdim=True), first.sum(-2), (first.transpose(-1, -2) @ g).flatten(-2)], -1
            )
            result += moments @ _node_map(columns, number, part, inverse)
            along_q -= first
            along_ln += intensity
        if follow is not None:
            result += follow(number, along_q, along_ln)
    return result


def _node_map(columns: NodeColumns, layer: int, part: slice, inverse: Tensor) -> Tensor:
    """The maps (boxes, 13, n) from the sums of I, I g and I g gᵀ to the derivatives."""
    dS = columns.covariance[layer, part]
    trace = (inverse[..., None] * dS).sum((-3, -2))
    amplitude = columns.ln_amplitude[part] - 0.5 * trace
    return torch.cat([amplitude[:, None, :], columns.q[part], 0.5 * dS.flatten(1, 2)], 1)
