"""Shoeboxes in closed form: profiles, and the sums from which every derivative follows, pixel by pixel.

The physics is that of profile.py, written out in components so that each line is one pass over the pixels of some
boxes and a compiler can make one loop of all of them; tests compare values and every derivative. A sample of a pixel
depends on its node through ten numbers (q_h, six of S, ln amplitude), on its panel through the panel's place as a
rigid body, and on the beam. With Δ = q - q_h, g = S⁻¹ Δ, s1 the ray and I the intensity of a sample,

    dI = I [ g.dq_h + ½ gᵀ dS g - ½ tr(S⁻¹ dS) + d ln amplitude                      (node)
             + c.t + (s1 x u).ω                                                      (panel: shift t, rotation ω)
             + (g.q) dλ/λ + g.ds0/λ + d ln P ]                                       (beam)

where u = -g/λ + ∂ln P/∂s1 and c is the gradient by the position of the pixel. A rotation of a panel about the crystal
changes neither R, nor Ω, nor what the sensor absorbs. The sums over samples of I times these factors are all that any
number of parameters needs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.jacobian import jacobian
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Layer, Nodes, Quadrature, layer_depth, sensor_layers, sub_pixel_offsets, whitening
from nanobrag_torch.tensors import as_tensor, unit

Vec = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class BoxPixels:
    """The pixels of shoeboxes: panel (boxes,), slow and fast (boxes, pixels), counted from the panel's first."""

    panel: Tensor
    slow: Tensor
    fast: Tensor

    def cut(self, part: slice, pixels: int) -> "BoxPixels":
        """Some boxes, and of each the first pixels."""
        return BoxPixels(self.panel[part], self.slow[part, :pixels], self.fast[part, :pixels])

    def __len__(self) -> int:
        return len(self.panel)


@dataclass(frozen=True)
class Sample:
    """One sub-pixel in one layer of all pixels (boxes, pixels): q, Ω P C over the number of sub-pixels, and for the
    derivatives the ray s1, 1/R, P and what the depth of absorption adds (None where they are not asked for)."""

    layer: int
    q: Vec
    factor: Tensor
    s1: Vec
    per_range: Tensor
    polarization: Tensor
    depth: "Depth"


@dataclass(frozen=True)
class Depth:
    """Absorption in a layer at a pixel's centre: mean depth (mm) and its derivative by the obliquity's cosine, the
    derivative of ln C, and the gradient of that cosine by the position (boxes, pixels)."""

    mean: Tensor
    slope: Tensor
    ln_capture_slope: Tensor
    capture: Tensor
    cosine_gradient: Vec


@dataclass(frozen=True)
class Light:
    """The beam in components: wavelength, s0, and the two axes of the polarisation with their weights."""

    wavelength: Tensor
    s0: Vec
    axes: tuple[tuple[Vec, Tensor], ...]


def light(beam: BeamConfig, like: Tensor) -> Light:
    """The beam of a record; no axes where polarisation is switched off."""
    s0 = unit(as_tensor(beam.direction, like))
    wavelength = as_tensor(beam.wavelength_A, like)
    if beam.polarization_fraction is None:
        return Light(wavelength, _vec(s0), ())
    e, p = polarization_axes(s0, as_tensor(beam.polarization_normal, like))
    fraction = as_tensor(beam.polarization_fraction, like)
    return Light(wavelength, _vec(s0), ((_vec(e), fraction), (_vec(p), 1 - fraction)))


def polarization_axes(s0: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """E-vector n x s0 and the direction across, s0 x E: unit vectors (3,)."""
    e = unit(torch.linalg.cross(normal, s0))
    return e, torch.linalg.cross(s0, e)


def _vec(v: Tensor) -> Vec:
    x, y, z = v.unbind(-1)
    return x, y, z


def _column(v: Tensor) -> Vec:
    """Components (boxes, 1) of vectors (boxes, 3)."""
    x, y, z = v[:, None].unbind(-1)
    return x, y, z


def _dot(a: Vec, b: Vec) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vec, b: Vec) -> Vec:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _plus(a: Vec, scale: Tensor | float, b: Vec) -> Vec:
    return a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2]


def _times(scale: Tensor, a: Vec) -> Vec:
    return scale * a[0], scale * a[1], scale * a[2]


def samples(panels: Panels, beam: BeamConfig, boxes: BoxPixels, rule: Quadrature) -> list[Sample]:
    """All samples of the pixels of some boxes, those of one layer together."""
    of, lamp = boxes.panel, light(beam, panels.origin)
    size, distance = panels.pixel_size[of, None], torch.abs(panels.distance)[of, None]
    outward = panels.normal[of] * torch.sign(panels.distance)[of, None]
    fast, slow, normal = _column(panels.fast[of]), _column(panels.slow[of]), _column(outward)
    corner = _column(panels.origin[of])
    edge_fast, edge_slow = _times(size, fast), _times(size, slow)
    first = _plus(_plus(corner, boxes.fast, edge_fast), boxes.slow, edge_slow)
    centre = _plus(_plus(first, 0.5, edge_fast), 0.5, edge_slow)
    result = []
    for number, layer in enumerate(sensor_layers(panels, rule.layers)):
        depth = _absorbed(panels, layer, of, centre, normal, rule.layers)
        sunk = _plus(first, depth.mean, normal)
        for up in sub_pixel_offsets(rule.oversample, size).tolist():
            row = _plus(sunk, up, edge_slow)
            for along in sub_pixel_offsets(rule.oversample, size).tolist():
                place = _plus(row, along, edge_fast)
                per_range = torch.rsqrt(_dot(place, place))
                s1 = _times(per_range, place)
                polarization = _polarization(s1, lamp)
                solid_angle = (size**2 * (distance + depth.mean)) * per_range**3
                factor = solid_angle * polarization * depth.capture / rule.oversample**2
                q = _times(1 / lamp.wavelength, _plus(s1, -1.0, lamp.s0))
                result.append(Sample(number, q, factor, s1, per_range, polarization, depth))
    return result


def _absorbed(panels: Panels, layer: Layer, of: Tensor, centre: Vec, normal: Vec, layers: int) -> Depth:
    """The layer's absorption at the pixels' centres, with its slopes by the cosine of the obliquity.

    Depths in a layer are a truncated exponential of rate μ/cosine, an exponential family: the derivative of the mean
    by the rate is minus the variance, that of ln captured is cosine/μ minus the mean.
    """
    per_range = torch.rsqrt(_dot(centre, centre))
    s1 = _times(per_range, centre)
    cosine = _dot(s1, normal)
    panel = of[:, None].expand_as(cosine)
    absorbing = (panels.thickness[panel] > 0) & (panels.mu[panel] > 0)
    parallax = panels.parallax[panel]
    mean, variance, captured = layer_depth(
        replace(panels, parallax=torch.ones_like(panels.parallax)), layer, panel, cosine
    )
    by_cosine = panels.mu[panel] / cosine**2  # of -μ/cosine
    deep = absorbing & parallax
    zero = torch.zeros_like(mean)
    return Depth(
        torch.where(parallax, mean, zero),
        torch.where(deep, variance * by_cosine, zero),
        torch.where(absorbing, mean * by_cosine - 1 / cosine, zero),
        torch.where(absorbing, captured, torch.full_like(captured, 1.0 / layers)),
        _times(per_range, _plus(normal, -cosine, s1)),
    )


def _polarization(s1: Vec, lamp: Light) -> Tensor:
    if not lamp.axes:
        return torch.ones_like(s1[0])
    (e, f_e), (p, f_p) = lamp.axes
    return f_e * (1 - _dot(s1, e) ** 2) + f_p * (1 - _dot(s1, p) ** 2)


def box_profiles(at: Nodes, found: list[Sample], count: int) -> Tensor:
    """Intensity (boxes, pixels, count) of each box's nodes; `at` holds boxes * count nodes, those of a box together."""
    whiten = [whitening(covariance) for covariance in at.covariance]
    total = []
    for k in range(count):
        q_h, amplitude = _column(at.q[k::count]), at.ln_amplitude[k::count, None]
        image = torch.zeros_like(found[0].factor)
        for sample in found:
            W, ln_norm = whiten[sample.layer]
            y = _whitened(W[k::count, None], _plus(sample.q, -1.0, q_h))
            image = image + sample.factor * torch.exp((amplitude + ln_norm[k::count, None]) - 0.5 * _dot(y, y))
        total.append(image)
    return torch.stack(total, -1)


def _whitened(W: Tensor, v: Vec) -> Vec:
    """W v for lower triangular W (boxes, 1, 3, 3)."""
    return (
        W[..., 0, 0] * v[0],
        W[..., 1, 0] * v[0] + W[..., 1, 1] * v[1],
        W[..., 2, 0] * v[0] + W[..., 2, 1] * v[1] + W[..., 2, 2] * v[2],
    )


def _unwhitened(W: Tensor, y: Vec) -> Vec:
    """Wᵀ y."""
    return (
        W[..., 0, 0] * y[0] + W[..., 1, 0] * y[1] + W[..., 2, 0] * y[2],
        W[..., 1, 1] * y[1] + W[..., 2, 1] * y[2],
        W[..., 2, 2] * y[2],
    )


@dataclass(frozen=True)
class NodeColumns:
    """Derivatives of nodes with respect to parameters x (last axis n): of q (m, 3, n), of the covariances
    (layers, m, 3, 3, n) and of the ln amplitudes (m, n)."""

    q: Tensor
    covariance: Tensor
    ln_amplitude: Tensor

    def rows(self, part: slice | Tensor) -> "NodeColumns":
        """Those of some nodes."""
        return NodeColumns(self.q[part], self.covariance[:, part], self.ln_amplitude[part])


@dataclass(frozen=True)
class RayColumns:
    """How rays follow x: shift and rotation about the crystal of each panel (n panels, 6, n), and of the beam (10, n):
    ln wavelength, s0, and the axes of the polarisation."""

    panel: Tensor
    beam: Tensor


def ray_columns(models: Callable[[Tensor], tuple[Panels, BeamConfig]], x: Tensor) -> RayColumns:
    """The derivatives of panels, as rigid bodies, and beam with respect to parameters x (n,)."""

    def numbers(x: Tensor) -> tuple[Tensor, ...]:
        panels, beam = models(x)
        s0 = unit(as_tensor(beam.direction, x))
        axes = torch.cat(polarization_axes(s0, as_tensor(beam.polarization_normal, x)))
        of_beam = torch.cat([torch.log(as_tensor(beam.wavelength_A, x))[None], s0, axes])
        return panels.fast, panels.slow, panels.normal, panels.origin, of_beam

    d_fast, d_slow, d_normal, d_origin, of_beam = jacobian(numbers, x)
    panels, _ = models(x)
    pairs = ((panels.fast, d_fast), (panels.slow, d_slow), (panels.normal, d_normal))
    rotation = 0.5 * sum(torch.linalg.cross(axis[..., None].expand_as(change), change, dim=1) for axis, change in pairs)
    shift = d_origin - torch.linalg.cross(rotation, panels.origin[..., None].expand_as(rotation), dim=1)
    return RayColumns(torch.cat([shift, rotation], 1), of_beam)


def box_derivatives(
    at: Nodes,
    weights: Tensor,
    nodes_by_x: NodeColumns,
    found: list[Sample],
    boxes: BoxPixels,
    panels: Panels,
    beam: BeamConfig,
    rays_by_x: RayColumns | None,
) -> Tensor:
    """Derivatives (boxes, pixels, n) of the sum over a box's nodes of weight times profile.

    `weights` (boxes, k) are the nodes' intensities; `rays_by_x` is None where no parameter moves detector or beam.
    """
    count = weights.shape[1]
    shape = found[0].factor.shape
    result = torch.zeros(*shape, nodes_by_x.ln_amplitude.shape[-1], dtype=at.q.dtype, device=at.q.device)
    layers = len(at.covariance)
    whiten = [whitening(covariance) for covariance in at.covariance]
    for number in range(layers):
        W, ln_norm = whiten[number]
        mine = [sample for sample in found if sample.layer == number]
        rays_sum = RaySums.zeros(found[0].factor) if rays_by_x is not None else None
        for k in range(count):
            part = slice(k, None, count)
            peak = weights[:, k, None] * torch.exp(ln_norm + at.ln_amplitude)[part, None]
            moments = _node_sums(W[part, None], _column(at.q[part]), peak, mine, rays_sum, panels, boxes, beam)
            inverse = W[part].transpose(-1, -2) @ W[part]
            result += torch.stack(moments, -1) @ _node_map(nodes_by_x, number, part, inverse)
        if rays_sum is not None and rays_by_x is not None:
            of_panel, of_beam = rays_sum.columns()
            result += of_panel @ rays_by_x.panel[boxes.panel] + of_beam @ rays_by_x.beam
    return result


class RaySums:
    """Running sums over samples for panel (shift, rotation) and beam (ln wavelength, s0, axes) of one layer."""

    def __init__(self, panel: list[Tensor], beam: list[Tensor]) -> None:
        self.panel, self.beam = panel, beam

    @classmethod
    def zeros(cls, like: Tensor) -> "RaySums":
        """Nothing summed yet."""
        return cls([torch.zeros_like(like) for _ in range(6)], [torch.zeros_like(like) for _ in range(10)])

    def add(self, intensity: Tensor, g: Vec, sample: Sample, lamp: Light, normal: Vec, front: Tensor) -> None:
        """Add one sample; `front` is the normal distance of the sensor's surface."""
        s1, per_range, depth = sample.s1, sample.per_range, sample.depth
        u = _times(-1 / lamp.wavelength, g)
        axial = [(-2 * weight * _dot(s1, axis) / sample.polarization, axis) for axis, weight in lamp.axes]
        for slope, axis in axial:
            u = _plus(u, slope, axis)
        across = _times(per_range, _plus(u, -_dot(u, s1), s1))
        by_place = _plus(across, -3 * per_range, s1)
        sunk = front + depth.mean
        by_cosine = depth.ln_capture_slope + depth.slope * (_dot(by_place, normal) + 1 / sunk)
        force = _plus(_plus(by_place, 1 / sunk, normal), by_cosine, depth.cosine_gradient)
        torque = _cross(s1, u)
        for i in range(3):
            self.panel[i] = self.panel[i] + intensity * force[i]
            self.panel[3 + i] = self.panel[3 + i] + intensity * torque[i]
            self.beam[1 + i] = self.beam[1 + i] + intensity * g[i] / lamp.wavelength
            for j, (slope, _) in enumerate(axial):
                self.beam[4 + 3 * j + i] = self.beam[4 + 3 * j + i] + intensity * slope * s1[i]
        self.beam[0] = self.beam[0] + intensity * _dot(g, sample.q)

    def columns(self) -> tuple[Tensor, Tensor]:
        """The sums (boxes, pixels, 6) and (boxes, pixels, 10)."""
        return torch.stack(self.panel, -1), torch.stack(self.beam, -1)


def _node_sums(
    W: Tensor,
    q_h: Vec,
    peak: Tensor,
    found: list[Sample],
    rays_sum: RaySums | None,
    panels: Panels,
    boxes: BoxPixels,
    beam: BeamConfig,
) -> list[Tensor]:
    """Sums over samples (boxes, pixels) of I, I g and the upper triangle of I g gᵀ; adds to those of the rays."""
    lamp = light(beam, panels.origin)
    normal = _column(panels.normal[boxes.panel] * torch.sign(panels.distance)[boxes.panel, None])
    front = torch.abs(panels.distance)[boxes.panel, None]
    zero = torch.zeros_like(found[0].factor)
    sums = [zero] * 10
    for sample in found:
        y = _whitened(W, _plus(sample.q, -1.0, q_h))
        intensity = peak * sample.factor * torch.exp(-0.5 * _dot(y, y))
        g = _unwhitened(W, y)
        first = _times(intensity, g)
        terms = [intensity, *first]
        terms += [first[0] * g[0], first[0] * g[1], first[0] * g[2], first[1] * g[1], first[1] * g[2], first[2] * g[2]]
        sums = [total + term for total, term in zip(sums, terms, strict=True)]
        if rays_sum is not None:
            rays_sum.add(intensity, g, sample, lamp, normal, front)
    return sums


def _node_map(columns: NodeColumns, layer: int, part: slice, inverse: Tensor) -> Tensor:
    """The maps (boxes, 10, n) from those sums to the derivatives."""
    dS = columns.covariance[layer, part]
    trace = (inverse[..., None] * dS).sum((-3, -2))
    amplitude = columns.ln_amplitude[part] - 0.5 * trace
    second = [dS[:, i, j] * (0.5 if i == j else 1.0) for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
    return torch.cat([amplitude[:, None], columns.q[part], torch.stack(second, 1)], 1)
