"""Shoeboxes in closed form: profiles, and the sums from which every derivative follows, in one pass over the pixels.

The physics is that of profile.py, written out in components so that each line is one pass over the pixels of some
boxes and a compiler makes one loop of all of them (compiling.py); tests compare values and every derivative. A sample
of a pixel depends on its node through ten numbers (q_h, six of S, ln amplitude), on its panel through the panel's place
as a rigid body, and on the beam. With Δ = q - q_h, g = S⁻¹ Δ, s1 the ray and I the intensity of a sample,

    dI = I [ g.dq_h + ½ gᵀ dS g - ½ tr(S⁻¹ dS) + d ln amplitude                      (node)
             + c.t + (s1 x u).ω                                                      (panel: shift t, rotation ω)
             + (g.q) dλ/λ + g.ds0/λ + d ln P ]                                       (beam)

where u = -g/λ + ∂ln P/∂s1 and c is the gradient by the position of the pixel. A rotation of a panel about the crystal
changes neither R, nor Ω, nor what the sensor absorbs. The sums over samples of I times these factors are all that any
number of parameters needs: the cost of a pixel does not depend on how many are free.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nanobrag_torch.compiling import compiled
from nanobrag_torch.config import BeamConfig
from nanobrag_torch.node_slopes import SIX, TWICE, six
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Layer, Nodes, Quadrature, layer_depth, sensor_layers, whitening
from nanobrag_torch.tensors import as_tensor, unit

Vec = tuple[Tensor, Tensor, Tensor]
#: Sums of a panel: along and about three axes.
PANEL_SUMS = 6


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
class Scene:
    """What a pass sees beside the nodes: `slow` and `fast` (boxes, pixels) as numbers of the nodes' dtype, the panel of
    each box as a row of numbers (boxes, 17 + layers), the beam (12,), and how a pixel is sampled."""

    slow: Tensor
    fast: Tensor
    panel: Tensor
    beam: Tensor
    rule: Quadrature

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All but the rule."""
        return self.slow, self.fast, self.panel, self.beam


def scene(panels: Panels, beam: BeamConfig, boxes: BoxPixels, rule: Quadrature) -> Scene:
    """The scene of some boxes."""
    like = panels.origin
    slow, fast = (a.to(like.dtype).contiguous() for a in (boxes.slow, boxes.fast))
    return Scene(slow, fast, panel_rows(panels, rule.layers)[boxes.panel], beam_row(beam, like), rule)


def panel_rows(panels: Panels, layers: int) -> Tensor:
    """Panels as rows of numbers (n panels, 17 + layers): fast, slow, the normal that points away from the crystal, the
    origin, pixel size, distance along that normal, μ, 1 where there is parallax, and the edges of the layers."""
    sign = torch.sign(panels.distance)
    numbers = [panels.pixel_size, torch.abs(panels.distance), panels.mu, panels.parallax.to(sign.dtype)]
    found = sensor_layers(panels, layers)
    numbers += [found[0].near, *(layer.far for layer in found)]
    outward = panels.normal * sign[:, None]
    return torch.cat([panels.fast, panels.slow, outward, panels.origin, torch.stack(numbers, -1)], -1)


def beam_row(beam: BeamConfig, like: Tensor) -> Tensor:
    """The beam as a row of numbers (12,): wavelength, s0, and the two axes of the polarisation, each followed by its
    weight w in P = 1 - Σ w (s1.axis)², which is 0 where polarisation is switched off."""
    s0 = unit(as_tensor(beam.direction, like))
    e, p = polarization_axes(s0, as_tensor(beam.polarization_normal, like))
    fraction = beam.polarization_fraction
    weights = (0.0, 0.0) if fraction is None else (fraction, 1 - fraction)
    w_e, w_p = (as_tensor(w, like)[None] for w in weights)
    return torch.cat([as_tensor(beam.wavelength_A, like)[None], s0, e, w_e, p, w_p])


def polarization_axes(s0: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
    """E-vector n x s0 and the direction across, s0 x E: unit vectors (3,)."""
    e = unit(torch.linalg.cross(normal, s0))
    return e, torch.linalg.cross(s0, e)


def node_rows(at: Nodes) -> Tensor:
    """Nodes as rows of numbers (layers, n, 10): q, the whitening matrix, and ln of the peak."""
    rows = []
    for covariance in at.covariance:
        W, ln_norm = whitening(covariance)
        lower = torch.stack([W[:, i, j] for i in range(3) for j in range(i + 1)], -1)
        rows.append(torch.cat([at.q, lower, (ln_norm + at.ln_amplitude)[:, None]], -1))
    return torch.stack(rows)


def box_profiles(nodes: Tensor, of: Scene) -> Tensor:
    """Intensity (boxes, k, pixels) of each box's nodes, rows of node_rows (layers, boxes, k, 10)."""
    return profile_pass(*of.tensors, nodes, rule=of.rule)


def ray_sums(nodes: Tensor, weights: Tensor, of: Scene, root: Tensor, beam: bool) -> Tensor:
    """The sums of the panel (6), shift and rotation, and with `beam` of the beam (10): ln λ, s0 and the two axes of the
    polarisation; of all nodes with `weights` (boxes, k), times `root`: (boxes, 6 or 16, pixels)."""
    tensors = (*of.tensors, nodes, weights, root)
    passes = (panel_pass, beam_pass)[: 2 if beam else 1]
    return torch.cat([run(*tensors, rule=of.rule) for run in passes], 1)


@dataclass(frozen=True)
class NodeColumns:
    """Derivatives of nodes with respect to parameters x (last axis n): of q (m, 3, n), of the six numbers of the
    covariances (layers, m, 6, n) and of the ln amplitudes (m, n)."""

    q: Tensor
    covariance: Tensor
    ln_amplitude: Tensor


def node_maps(at: Nodes, by_x: NodeColumns) -> Tensor:
    """The maps (layers, n nodes, 10, n) from the sums of I, I g and I g gᵀ to the derivatives of the profile."""
    half = 0.5 * as_tensor(TWICE, at.q)
    parts = []
    for covariance, dS in zip(at.covariance, by_x.covariance, strict=True):
        W, _ = whitening(covariance)
        second = half[:, None] * dS
        trace = six(W.transpose(-1, -2) @ W)[:, None] @ second
        parts.append(torch.cat([by_x.ln_amplitude[:, None] - trace, by_x.q, second], 1))
    return torch.stack(parts)


@dataclass(frozen=True)
class RayColumns:
    """How rays follow x: shift and rotation about the crystal of each panel (n panels, 6, n), and of the beam (10, n):
    ln wavelength, s0, and the axes of the polarisation; None where it stays."""

    panel: Tensor
    beam: Tensor | None

    def of(self, panel: Tensor) -> Tensor:
        """The map (boxes, 6 or 16, n) from the sums of the rays to the derivatives, for boxes on these panels."""
        mine = self.panel[panel]
        return mine if self.beam is None else torch.cat([mine, self.beam.expand(len(mine), -1, -1)], 1)


def ray_numbers(panels: Panels, beam: BeamConfig) -> tuple[Tensor, ...]:
    """What rays depend on, for ray_columns: axes, normals and origins of the panels, and the beam (10,)."""
    like = panels.origin
    s0 = unit(as_tensor(beam.direction, like))
    axes = torch.cat(polarization_axes(s0, as_tensor(beam.polarization_normal, like)))
    of_beam = torch.cat([torch.log(as_tensor(beam.wavelength_A, like))[None], s0, axes])
    return panels.fast, panels.slow, panels.normal, panels.origin, of_beam


def ray_columns(panels: Panels, by_x: tuple[Tensor, ...]) -> RayColumns:
    """The derivatives of panels, as rigid bodies, and of the beam, from those of ray_numbers (..., n)."""
    d_fast, d_slow, d_normal, d_origin, of_beam = by_x
    pairs = ((panels.fast, d_fast), (panels.slow, d_slow), (panels.normal, d_normal))
    rotation = 0.5 * sum(torch.linalg.cross(axis[..., None].expand_as(change), change, dim=1) for axis, change in pairs)
    shift = d_origin - torch.linalg.cross(rotation, panels.origin[..., None].expand_as(rotation), dim=1)
    return RayColumns(torch.cat([shift, rotation], 1), of_beam if bool((of_beam != 0).any()) else None)


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of boxes in two factors: `sums` (boxes, f, pixels) and `map` (boxes, f, n), with f the smaller of
    what a pixel's model depends on and of the number of parameters."""

    sums: Tensor
    map: Tensor


def box_derivatives(
    nodes: Tensor, maps: Tensor, weights: Tensor, of: Scene, root: Tensor, rays: Tensor | None
) -> Derivatives:
    """Derivatives of the sum over a box's nodes of weight times profile, times `root` (boxes, pixels).

    `nodes` are rows of node_rows (layers, boxes, k, 10), `maps` those of node_maps (layers, boxes, k, 10, n),
    `weights` (boxes, k) their intensities, `rays` the map of the rays (boxes, 6 or 16, n), None where they stay.
    """
    sums = moment_pass(*of.tensors, nodes, root, rule=of.rule).flatten(1, 3)
    map = (maps * weights[..., None, None]).transpose(0, 1).flatten(1, 3)
    if rays is not None:
        sums = torch.cat([sums, ray_sums(nodes, weights, of, root, rays.shape[1] > PANEL_SUMS)], 1)
        map = torch.cat([map, rays], 1)
    n = map.shape[-1]
    if map.shape[1] <= n:
        return Derivatives(sums, map)
    identity = torch.eye(n, dtype=map.dtype, device=map.device)
    return Derivatives(map.transpose(1, 2) @ sums, identity.expand(len(map), n, n))


def _dot(a: Vec, b: Vec) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vec, b: Vec) -> Vec:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _plus(a: Vec, scale: Tensor | float, b: Vec) -> Vec:
    return a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2]


def _times(scale: Tensor, a: Vec) -> Vec:
    return scale * a[0], scale * a[1], scale * a[2]


def _summed(v: Vec) -> Vec:
    """Over nodes."""
    return v[0].sum(1, keepdim=True), v[1].sum(1, keepdim=True), v[2].sum(1, keepdim=True)


def _vec(numbers: list[Tensor], first: int) -> Vec:
    x, y, z = numbers[first : first + 3]
    return x, y, z


@dataclass(frozen=True)
class Light:
    """The beam in components: wavelength, s0, and the two axes of the polarisation with their weights."""

    wavelength: Tensor
    s0: Vec
    axes: tuple[tuple[Vec, Tensor], ...]


def light(beam: Tensor) -> Light:
    """The beam of a row of numbers."""
    numbers = list(beam.unbind())
    return Light(numbers[0], _vec(numbers, 1), ((_vec(numbers, 4), numbers[7]), (_vec(numbers, 8), numbers[11])))


@dataclass(frozen=True)
class Depth:
    """Absorption in a layer at a pixel's centre: mean depth (mm) and its derivative by the obliquity's cosine, the
    fraction captured and the derivative of its logarithm, and the gradient of that cosine by the position."""

    mean: Tensor
    slope: Tensor
    capture: Tensor
    ln_capture_slope: Tensor
    cosine_gradient: Vec


@dataclass(frozen=True)
class Sample:
    """One sub-pixel in one layer of all pixels (boxes, 1, pixels): q, Ω P C over the number of sub-pixels, the ray s1,
    1/R, P, the normal distance at which it is absorbed, the normal, and the absorption."""

    layer: int
    q: Vec
    factor: Tensor
    s1: Vec
    per_range: Tensor
    polarization: Tensor
    distance: Tensor
    normal: Vec
    depth: Depth


def samples(slow: Tensor, fast: Tensor, panel: Tensor, beam: Tensor, rule: Quadrature) -> list[Sample]:
    """All samples of the pixels of some boxes, those of one layer together; arguments as in Scene."""
    lamp, numbers = light(beam), list(panel[:, :, None, None].unbind(1))
    slow, fast = slow[:, None], fast[:, None]
    normal, corner = _vec(numbers, 6), _vec(numbers, 9)
    size, distance = numbers[12], numbers[13]
    edge_fast, edge_slow = _times(size, _vec(numbers, 0)), _times(size, _vec(numbers, 3))
    first = _plus(_plus(corner, fast, edge_fast), slow, edge_slow)
    centre = _plus(_plus(first, 0.5, edge_fast), 0.5, edge_slow)
    offsets = [(i + 0.5) / rule.oversample for i in range(rule.oversample)]
    result = []
    for number, depth in enumerate(_absorbed(numbers, centre, normal)):
        sunk = _plus(first, depth.mean, normal)
        for up in offsets:
            row = _plus(sunk, up, edge_slow)
            for along in offsets:
                place = _plus(row, along, edge_fast)
                per_range = torch.rsqrt(_dot(place, place))
                s1 = _times(per_range, place)
                polarization = _polarization(s1, lamp)
                reach = distance + depth.mean
                solid_angle = (size**2 * reach) * (per_range * per_range * per_range)
                factor = solid_angle * polarization * depth.capture / rule.oversample**2
                q = _times(1 / lamp.wavelength, _plus(s1, -1.0, lamp.s0))
                result.append(Sample(number, q, factor, s1, per_range, polarization, reach, normal, depth))
    return result


def _polarization(s1: Vec, lamp: Light) -> Tensor:
    (e, w_e), (p, w_p) = lamp.axes
    return 1 - w_e * _dot(s1, e) ** 2 - w_p * _dot(s1, p) ** 2


def _absorbed(numbers: list[Tensor], centre: Vec, normal: Vec) -> list[Depth]:
    """Each layer's absorption at the pixels' centres, with its slopes by the cosine of the obliquity.

    Depths in a layer are a truncated exponential of rate μ/cosine, an exponential family: the derivative of the mean
    by the rate is minus the variance, that of ln captured is cosine/μ minus the mean.
    """
    size, distance, mu, parallax = numbers[12:16]
    layers = [Layer(near, far) for near, far in pairwise(numbers[16:])]
    thickness = layers[-1].far
    per_range = torch.rsqrt(_dot(centre, centre))
    s1 = _times(per_range, centre)
    cosine = _dot(s1, normal)
    everywhere = torch.ones_like(parallax, dtype=torch.bool)
    nothing = torch.zeros_like(size)
    physical = Panels(nothing, nothing, nothing, distance, nothing, size, thickness, mu, nothing, everywhere)
    absorbing, shifts = (thickness > 0) & (mu > 0), parallax > 0
    zero = torch.zeros_like(cosine)
    result = []
    for layer in layers:
        mean, variance, captured = layer_depth(physical, layer, ..., cosine)
        by_cosine = mu / cosine**2  # of -μ/cosine
        result.append(
            Depth(
                torch.where(shifts, mean, zero),
                torch.where(absorbing & shifts, variance * by_cosine, zero),
                torch.where(absorbing, captured, zero + 1.0 / len(layers)),
                torch.where(absorbing, mean * by_cosine - 1 / cosine, zero),
                _times(per_range, _plus(normal, -cosine, s1)),
            )
        )
    return result


def _whitened(W: list[Tensor], v: Vec) -> Vec:
    """W v for lower triangular W, six numbers row by row."""
    return W[0] * v[0], W[1] * v[0] + W[2] * v[1], W[3] * v[0] + W[4] * v[1] + W[5] * v[2]


def _unwhitened(W: list[Tensor], y: Vec) -> Vec:
    """Wᵀ y."""
    return W[0] * y[0] + W[1] * y[1] + W[3] * y[2], W[2] * y[1] + W[4] * y[2], W[5] * y[2]


def _at_node(sample: Sample, nodes: Tensor) -> tuple[Tensor, Vec]:
    """Intensity (boxes, k, pixels) of a sample for each node, and g."""
    numbers = list(nodes[sample.layer, ..., None].unbind(2))
    y = _whitened(numbers[3:9], _plus(sample.q, -1.0, _vec(numbers, 0)))
    return sample.factor * torch.exp(numbers[9] - 0.5 * _dot(y, y)), _unwhitened(numbers[3:9], y)


def _ln_polarization_slope(sample: Sample, axis: Vec, share: Tensor) -> Tensor:
    """The derivative of ln P by s1 along an axis of the polarisation; by the axis it is the same along s1."""
    return -2 * share * _dot(sample.s1, axis) / sample.polarization


#: Sizes in the passes' arguments, by which they are compiled: boxes, pixels, nodes of a box.
_SCENE = (("b", "p"), ("b", "p"), ("b", 18), (12,))
_NODES, _WEIGHTS = (1, "b", "k", 10), ("b", "k")


@compiled(*_SCENE, _NODES, rule=Quadrature())
def profile_pass(slow: Tensor, fast: Tensor, panel: Tensor, beam: Tensor, nodes: Tensor, *, rule: Quadrature) -> Tensor:
    """Intensities (boxes, k, pixels)."""
    found = samples(slow, fast, panel, beam, rule)
    total = _at_node(found[0], nodes)[0]
    for sample in found[1:]:
        total = total + _at_node(sample, nodes)[0]
    return total


@compiled(*_SCENE, _NODES, ("b", "p"), rule=Quadrature())
def moment_pass(
    slow: Tensor,
    fast: Tensor,
    panel: Tensor,
    beam: Tensor,
    nodes: Tensor,
    root: Tensor,
    *,
    rule: Quadrature,
) -> Tensor:
    """Sums of I, I g and I g gᵀ, times root: (boxes, layers, k, 10, pixels)."""
    found = samples(slow, fast, panel, beam, rule)
    layers = []
    for number in range(rule.layers):
        sums: list[Tensor] = []
        for sample in found:
            if sample.layer == number:
                intensity, g = _at_node(sample, nodes)
                first = _times(intensity, g)
                terms = [intensity, *first, *(first[i] * g[j] for i, j in SIX)]
                sums = [total + term for total, term in zip(sums, terms, strict=True)] if sums else terms
        layers.append(torch.stack([root[:, None] * total for total in sums], 2))
    return torch.stack(layers, 1)


@compiled(*_SCENE, _NODES, _WEIGHTS, ("b", "p"), rule=Quadrature())
def panel_pass(
    slow: Tensor,
    fast: Tensor,
    panel: Tensor,
    beam: Tensor,
    nodes: Tensor,
    weights: Tensor,
    root: Tensor,
    *,
    rule: Quadrature,
) -> Tensor:
    """The panel's sums (boxes, 6, pixels) over the nodes of each box, times weights and root."""
    lamp = light(beam)
    total: list[Tensor] = []
    for sample in samples(slow, fast, panel, beam, rule):
        profile, g = _at_node(sample, nodes)
        each = weights[..., None] * profile
        intensity = each.sum(1, keepdim=True)
        pull = _summed(_times(each, g))
        s1, per_range, depth = sample.s1, sample.per_range, sample.depth
        u = _times(-1 / lamp.wavelength, pull)
        for axis, share in lamp.axes:
            u = _plus(u, intensity * _ln_polarization_slope(sample, axis, share), axis)
        by_place = _plus(_times(per_range, _plus(u, -_dot(u, s1), s1)), -3 * per_range * intensity, s1)
        along = intensity / sample.distance
        by_cosine = intensity * depth.ln_capture_slope + depth.slope * (_dot(by_place, sample.normal) + along)
        force = _plus(_plus(by_place, along, sample.normal), by_cosine, depth.cosine_gradient)
        terms = [*force, *_cross(s1, u)]
        total = [a + b for a, b in zip(total, terms, strict=True)] if total else terms
    return torch.cat([root[:, None] * term for term in total], 1)


@compiled(*_SCENE, _NODES, _WEIGHTS, ("b", "p"), rule=Quadrature())
def beam_pass(
    slow: Tensor,
    fast: Tensor,
    panel: Tensor,
    beam: Tensor,
    nodes: Tensor,
    weights: Tensor,
    root: Tensor,
    *,
    rule: Quadrature,
) -> Tensor:
    """The beam's sums (boxes, 10, pixels) over the nodes of each box, times weights and root."""
    lamp = light(beam)
    total: list[Tensor] = []
    for sample in samples(slow, fast, panel, beam, rule):
        profile, g = _at_node(sample, nodes)
        each = weights[..., None] * profile
        intensity = each.sum(1, keepdim=True)
        pull = _summed(_times(each, g))
        terms = [_dot(pull, sample.q), *_times(1 / lamp.wavelength, pull)]
        for axis, share in lamp.axes:
            terms += _times(intensity * _ln_polarization_slope(sample, axis, share), sample.s1)
        total = [a + b for a, b in zip(total, terms, strict=True)] if total else terms
    return torch.cat([root[:, None] * term for term in total], 1)
