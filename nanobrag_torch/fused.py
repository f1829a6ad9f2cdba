"""Shoeboxes in closed form: profiles, and the sums from which every derivative follows, in passes over the pixels.

A sample of a pixel depends on its node through ten numbers (q_h, six of S, ln amplitude), on its panel through the
panel's place as a rigid body, and on the beam. With Δ = q - q_h, g = S⁻¹ Δ, s1 the ray and I the intensity of a sample,

    dI = I [ g.dq_h + ½ gᵀ dS g - ½ tr(S⁻¹ dS) + d ln amplitude                      (node)
             + c.t + (s1 x u).ω                                                      (panel: shift t, rotation ω)
             + (g.q) dλ/λ + g.ds0/λ + d ln P ]                                       (beam)

where u = -g/λ + ∂ln P/∂s1 and c is the gradient by the position of the pixel. A rotation of a panel about the crystal
changes neither R, nor Ω, nor what the sensor absorbs. The sums over samples of I times these factors are all that any
number of parameters needs: the cost of a pixel does not depend on how many are free.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.node_slopes import TWICE, six
from nanobrag_torch.panel import Panels
from nanobrag_torch.passes import PULL, beam_pass, moment_pass, panel_pass, profile_pass, pull_pass, ray_pass
from nanobrag_torch.profile import Nodes, Quadrature, sensor_layers, whitening
from nanobrag_torch.tensors import as_tensor, unit


@dataclass(frozen=True)
class BoxPixels:
    """The pixels of shoeboxes: panel (boxes,), slow and fast (boxes, pixels), counted from the panel's first."""

    panel: Tensor
    slow: Tensor
    fast: Tensor

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

    @cached_property
    def rays(self) -> Tensor:
        """q and Ω P C of every sample of every pixel (boxes, samples, 4, pixels), found once."""
        return ray_pass(*self.tensors, rule=self.rule)

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
    return profile_pass(of.rays, nodes, rule=of.rule)


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
class RayMap:
    """How the derivatives of boxes follow the sums of their rays: `panel` (boxes, f, n) and `beam` (f, n), and which of
    the sums these are: those that anything follows, none where panels or beam stay."""

    panel: Tensor
    of_panel: Tensor
    beam: Tensor
    of_beam: Tensor

    @property
    def map(self) -> Tensor:
        """Both (boxes, f, n)."""
        return torch.cat([self.panel, self.beam.expand(len(self.panel), -1, -1)], 1)


@dataclass(frozen=True)
class RayColumns:
    """How rays follow x: shift and rotation about the crystal of each panel (n panels, 6, n), and of the beam (10, n):
    ln wavelength, s0, and the axes of the polarisation."""

    panel: Tensor
    beam: Tensor

    @cached_property
    def moved(self) -> tuple[Tensor, Tensor]:
        """Which of the six sums of a panel and of the ten of the beam anything follows."""
        return torch.nonzero((self.panel != 0).any(2).any(0))[:, 0], torch.nonzero((self.beam != 0).any(1))[:, 0]

    def of(self, panel: Tensor) -> RayMap:
        """For boxes on these panels."""
        of_panel, of_beam = self.moved
        return RayMap(self.panel[:, of_panel][panel], of_panel, self.beam[of_beam], of_beam)


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
    return RayColumns(torch.cat([shift, rotation], 1), of_beam)


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of boxes in two factors: `sums` (boxes, f, pixels) of what a pixel's model depends on and `map`
    (boxes, f, n); None where f would exceed n, and the sums are the derivatives themselves."""

    sums: Tensor
    map: Tensor | None

    def times(self, of_sums: Tensor) -> Tensor:
        """From products (boxes, m, f) of anything with the sums those with the derivatives (boxes, m, n)."""
        return of_sums if self.map is None else of_sums @ self.map

    def squared(self, of_sums: Tensor) -> Tensor:
        """From products (boxes, f, f) of the sums those of the derivatives over all boxes (n, n)."""
        if self.map is None:
            return of_sums.sum(0)
        return self.map.flatten(0, 1).T @ (of_sums @ self.map).flatten(0, 1)


def box_derivatives(
    nodes: Tensor, maps: Tensor, weights: Tensor, of: Scene, root: Tensor, rays: RayMap | None
) -> Derivatives:
    """Derivatives of the sum over a box's nodes of weight times profile, times `root` (boxes, pixels).

    `nodes` are rows of node_rows (layers, boxes, k, 10), `maps` those of node_maps (layers, boxes, k, 10, n),
    `weights` (boxes, k) their intensities, `rays` the map of the rays, None where they stay.
    """
    moments = moment_pass(of.rays, nodes, root, rule=of.rule)
    sums = moments.flatten(1, 3)
    map = (maps * weights[..., None, None]).transpose(0, 1).flatten(1, 3)
    if rays is not None:
        if of.rule.samples == 1:
            firsts = moments[:, 0, :, :PULL].flatten(2)
            pulls = (weights[:, None] @ firsts)[:, 0].unflatten(1, (PULL, -1))
        else:
            pulls = pull_pass(of.rays, nodes, weights, root, rule=of.rule)
        wanted = ((panel_pass, rays.of_panel), (beam_pass, rays.of_beam))
        found = [run(*of.tensors, pulls, rule=of.rule)[:, which] for run, which in wanted if len(which)]
        sums = torch.cat([sums, *found], 1)
        map = torch.cat([map, rays.map], 1)
    n = map.shape[-1]
    if map.shape[1] <= n:
        return Derivatives(sums, map)
    return Derivatives(map.transpose(1, 2) @ sums, None)
