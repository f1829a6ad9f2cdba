"""The passes over pixels: profiles, and the sums from which every derivative follows, each written once.

The physics is that of profile.py, written out in components so that each line is one pass over the pixels of some
boxes and a compiler makes one loop of all of them (compiling.py). fused.py says what the sums are for; tests compare
values and every derivative.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nanobrag_torch.compiling import compiled
from nanobrag_torch.node_slopes import SIX
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Layer, Quadrature, layer_depth

Vec = tuple[Tensor, Tensor, Tensor]
#: Numbers of a ray (q and Ω P C), and those of all nodes on it that its sums follow from (I and I g).
RAY, PULL = 4, 4


def _dot(a: Vec, b: Vec) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: Vec, b: Vec) -> Vec:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _plus(a: Vec, scale: Tensor | float, b: Vec) -> Vec:
    return a[0] + scale * b[0], a[1] + scale * b[1], a[2] + scale * b[2]


def _times(scale: Tensor, a: Vec) -> Vec:
    return scale * a[0], scale * a[1], scale * a[2]


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
    """One sub-pixel in one layer of all pixels (boxes, pixels): q, Ω P C over the number of sub-pixels, the ray s1,
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
    lamp, numbers = light(beam), list(panel[:, :, None].unbind(1))
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


def _at_node(rays: Tensor, number: int, nodes: Tensor, rule: Quadrature) -> tuple[Tensor, Vec]:
    """Intensity (boxes, k, pixels) of a sample for each node, and g."""
    numbers = list(nodes[number // rule.oversample**2, ..., None].unbind(2))
    x, y, z, factor = rays[:, number, :, None].unbind(1)
    white = _whitened(numbers[3:9], _plus((x, y, z), -1.0, _vec(numbers, 0)))
    return factor * torch.exp(numbers[9] - 0.5 * _dot(white, white)), _unwhitened(numbers[3:9], white)


def _ln_polarization_slope(sample: Sample, axis: Vec, share: Tensor) -> Tensor:
    """The derivative of ln P by s1 along an axis of the polarisation; by the axis it is the same along s1."""
    return -2 * share * _dot(sample.s1, axis) / sample.polarization


#: Sizes in the passes' arguments, by which they are compiled: boxes, pixels, nodes of a box.
_SCENE = (("b", "p"), ("b", "p"), ("b", 18), (12,))
_NODES, _WEIGHTS, _ROOT = (1, "b", "k", 10), ("b", "k"), ("b", "p")
_FINE, _COARSE = Quadrature(), Quadrature(oversample=1)


def _rays(rule: Quadrature) -> tuple[int | str, ...]:
    return "b", rule.samples, RAY, "p"


def _pulls(rule: Quadrature) -> tuple[int | str, ...]:
    return "b", rule.samples * PULL, "p"


@compiled({_FINE: _SCENE, _COARSE: _SCENE})
def ray_pass(slow: Tensor, fast: Tensor, panel: Tensor, beam: Tensor, *, rule: Quadrature) -> Tensor:
    """q and the factor Ω P C of every sample (boxes, samples, 4, pixels)."""
    found = samples(slow, fast, panel, beam, rule)
    return torch.stack([torch.stack([*sample.q, sample.factor], 1) for sample in found], 1)


@compiled({rule: (_rays(rule), _NODES) for rule in (_FINE, _COARSE)})
def profile_pass(rays: Tensor, nodes: Tensor, *, rule: Quadrature) -> Tensor:
    """Intensities (boxes, k, pixels)."""
    total = _at_node(rays, 0, nodes, rule)[0]
    for number in range(1, rule.samples):
        total = total + _at_node(rays, number, nodes, rule)[0]
    return total


@compiled({rule: (_rays(rule), _NODES, _ROOT) for rule in (_FINE, _COARSE)})
def moment_pass(rays: Tensor, nodes: Tensor, root: Tensor, *, rule: Quadrature) -> Tensor:
    """Sums of I, I g and I g gᵀ, times root: (boxes, layers, k, 10, pixels)."""
    layers, each = [], rule.oversample**2
    for layer in range(rule.layers):
        sums: list[Tensor] = []
        for number in range(layer * each, (layer + 1) * each):
            intensity, g = _at_node(rays, number, nodes, rule)
            first = _times(intensity, g)
            terms = [intensity, *first, *(first[i] * g[j] for i, j in SIX)]
            sums = [total + term for total, term in zip(sums, terms, strict=True)] if sums else terms
        layers.append(torch.stack([root[:, None] * total for total in sums], 2))
    return torch.stack(layers, 1)


@compiled({_FINE: (_rays(_FINE), _NODES, _WEIGHTS, _ROOT)})
def pull_pass(rays: Tensor, nodes: Tensor, weights: Tensor, root: Tensor, *, rule: Quadrature) -> Tensor:
    """I and I g of every sample, over the nodes of each box, times weights and root: (boxes, 4 samples, pixels)."""
    total: list[Tensor] = []
    for number in range(rule.samples):
        profile, g = _at_node(rays, number, nodes, rule)
        each = weights[..., None] * profile
        total += [root * term.sum(1) for term in (each, *_times(each, g))]
    return torch.stack(total, 1)


def _pulled(pulls: Tensor, number: int) -> tuple[Tensor, Vec]:
    """I and I g (boxes, pixels) of a sample."""
    intensity, x, y, z = pulls[:, PULL * number : PULL * (number + 1)].unbind(1)
    return intensity, (x, y, z)


@compiled({rule: (*_SCENE, _pulls(rule)) for rule in (_FINE, _COARSE)})
def panel_pass(slow: Tensor, fast: Tensor, panel: Tensor, beam: Tensor, pulls: Tensor, *, rule: Quadrature) -> Tensor:
    """The panel's sums (boxes, 6, pixels), shift and rotation, from the pulls of the nodes."""
    lamp = light(beam)
    total: list[Tensor] = []
    for number, sample in enumerate(samples(slow, fast, panel, beam, rule)):
        intensity, pull = _pulled(pulls, number)
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
    return torch.stack(total, 1)


@compiled({rule: (*_SCENE, _pulls(rule)) for rule in (_FINE, _COARSE)})
def beam_pass(slow: Tensor, fast: Tensor, panel: Tensor, beam: Tensor, pulls: Tensor, *, rule: Quadrature) -> Tensor:
    """The beam's sums (boxes, 10, pixels), ln λ, s0 and the two axes of the polarisation, from the pulls of the
    nodes."""
    lamp = light(beam)
    total: list[Tensor] = []
    for number, sample in enumerate(samples(slow, fast, panel, beam, rule)):
        intensity, pull = _pulled(pulls, number)
        terms = [_dot(pull, sample.q), *_times(1 / lamp.wavelength, pull)]
        for axis, share in lamp.axes:
            terms += _times(intensity * _ln_polarization_slope(sample, axis, share), sample.s1)
        total = [a + b for a, b in zip(total, terms, strict=True)] if total else terms
    return torch.stack(total, 1)
