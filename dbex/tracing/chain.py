"""One pixel's whole chain, from the source to the weighted residual, in the order in which light travels.

Every quantity is what the model's own functions return for this pixel (nanobrag_torch.profile, dbex.physics): nothing
is computed a second time in another way. docs/physics.md has the formulas.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dbex.physics.forward import ForwardScene
from dbex.physics.loss import pixel_variance
from nanobrag_torch.config import override
from nanobrag_torch.lattice import fractional_hkl
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.profile import (
    Causes,
    Centroids,
    Nodes,
    Pairs,
    Quadrature,
    Sample,
    causes,
    centroids,
    ln_absolute_scale,
    nodes_from,
    pair_samples,
    summed,
)
from nanobrag_torch.tensors import as_tensor

#: The numbers of the records by which the pixel's photons are differentiated, with their units.
PARAMETERS = {
    "beam": {
        "wavelength_A": "Å",
        "direction": "",
        "polarization_fraction": "",
        "fluence": "1/m²",
        "bandwidth": "",
        "divergence_h_mrad": "mrad",
        "divergence_v_mrad": "mrad",
    },
    "crystal": {
        **dict.fromkeys(("cell_a", "cell_b", "cell_c"), "Å"),
        **dict.fromkeys(("cell_alpha", "cell_beta", "cell_gamma"), "°"),
        "misset_deg": "°",
        "N_cells": "",
        "domain_size_A": "Å",
        "mosaicity_deg": "°",
        "strain": "",
        "b_factor_A2": "Å²",
    },
    "panel": {
        **dict.fromkeys(("distance_mm", "origin_fast_mm", "origin_slow_mm", "pixel_size_mm"), "mm"),
        "sensor_thickness_mm": "mm",
        "sensor_mu_per_mm": "1/mm",
        "point_spread_mm": "mm",
    },
}

#: How the forward model samples a pixel.
RULE = Quadrature()


@dataclass(frozen=True)
class Quantity:
    """One quantity of the chain: the section that it belongs to, name, symbol, unit, value (nested lists) and the
    derivative of the pixel's Bragg photons by it, what follows from it included; None where nothing follows from it."""

    section: str
    name: str
    symbol: str
    unit: str
    value: Any
    derivative: Any = None


@dataclass(frozen=True)
class Counts:
    """What the image says of the pixel, in photons: data, background, rms of the read-out noise, whether the pixel is
    trusted, and in words where background and scale came from."""

    data: float
    background: float
    sigma_readout: float
    trusted: bool
    background_from: str
    scale_from: str


@dataclass(frozen=True)
class Trace:
    """A traced pixel: (panel, slow, fast), the chain, and the derivatives of its Bragg photons by the records' numbers;
    `bragg` is the model's Bragg photons, the value that the chain ends with."""

    pixel: tuple[int, int, int]
    chain: tuple[Quantity, ...]
    parameters: tuple[Quantity, ...]
    bragg: float
    counts: Counts

    def value(self, name: str) -> Any:
        """A quantity of the chain by its name."""
        return next(quantity.value for quantity in self.chain if quantity.name == name)


@dataclass(frozen=True)
class _Link:
    """A quantity before it is told: its tensor, or one a sample of the pixel; `of_ray` where its rows, one a node, are
    the same ray; `on_path` where the photons follow from this very tensor."""

    section: str
    name: str
    symbol: str
    unit: str
    parts: Tensor | list[Tensor]
    of_ray: bool = False
    on_path: bool = True

    @property
    def tensors(self) -> list[Tensor]:
        return self.parts if isinstance(self.parts, list) else [self.parts]

    def told(self, gradients: Mapping[int, Tensor | None]) -> Quantity:
        """The quantity with what it holds, and its derivative of those by the identity of tensors."""
        values = [(part[0] if self.of_ray else part).tolist() for part in self.tensors]
        found = [gradients.get(id(part)) for part in self.tensors]
        slopes: list[Any] | None = None
        if any(gradient is not None for gradient in found):
            slopes = [None if g is None else (g.sum(0) if self.of_ray else g).tolist() for g in found]
        several = isinstance(self.parts, list)
        derivative = slopes if several or slopes is None else slopes[0]
        return Quantity(self.section, self.name, self.symbol, self.unit, values if several else values[0], derivative)


@dataclass(frozen=True)
class _Light:
    """The model's own tensors on the way to one pixel, on one graph from the `leaves` to `photons` of each node."""

    leaves: Mapping[tuple[str, str], Tensor]
    of: Causes
    hkl: Tensor
    F: Tensor
    at: Nodes
    seen: Centroids
    samples: list[Sample]
    photons: Tensor
    scale: Tensor


def trace_pixel(scene: ForwardScene, pixel: tuple[int, int, int], counts: Counts, rule: Quadrature = RULE) -> Trace:
    """The chain of a pixel (panel, slow, fast) that lies in one of the scene's boxes.

    Raises ValueError for a pixel that does not.
    """
    light = _light(scene, pixel, rule)
    bragg = light.photons.sum()
    numbers = [
        _Link(record, name, name, PARAMETERS[record][name], leaf) for (record, name), leaf in light.leaves.items()
    ]
    links = [*_source(light), *_rays(light), *_nodes(light), *_offsets(light), *_sums(light)]
    on_path = [tensor for link in [*numbers, *links] if link.on_path for tensor in link.tensors]
    found = torch.autograd.grad(bragg, on_path, allow_unused=True)
    gradients = {id(tensor): gradient for tensor, gradient in zip(on_path, found, strict=True)}
    photons = bragg.detach()
    return Trace(
        pixel,
        (*(link.told(gradients) for link in links), *_counted(photons, counts)),
        tuple(number.told(gradients) for number in numbers),
        float(photons),
        counts,
    )


def _light(scene: ForwardScene, pixel: tuple[int, int, int], rule: Quadrature) -> _Light:
    """The closed form of one pixel, as nanobrag_torch.profile has it for many."""
    columns = torch.stack(scene.at.pixels)
    here = torch.nonzero((columns == torch.as_tensor(pixel)[:, None]).all(0))[:, 0]
    if len(here) == 0:
        raise ValueError(f"pixel {pixel} is in none of the scene's boxes: expected one that is")
    node = scene.near.pairs.node[scene.near.pairs.pixel == here[0]]
    like, leaves = scene.F, dict[tuple[str, str], Tensor]()
    crystal = override(scene.crystal, _leaves("crystal", scene.crystal, like, leaves))
    beam = override(scene.beam, _leaves("beam", scene.beam, like, leaves))
    panel = override(scene.panels[pixel[0]], _leaves("panel", scene.panels[pixel[0]], like, leaves))
    panels = stack_panels([*scene.panels[: pixel[0]], panel, *scene.panels[pixel[0] + 1 :]], like)
    F, scale = _leaf(scene.F[node], like), _leaf(scene.scale, like)
    of = causes(crystal, beam, ln_absolute_scale(crystal, beam, F))
    at = nodes_from(of, panels, scene.hkl[node], scene.near.panel[node], rule)
    one = (columns[0, here], columns[1, here], columns[2, here])
    samples = list(pair_samples(at, panels, beam, one, Pairs(torch.zeros_like(node), torch.arange(len(node))), rule))
    photons = summed(samples, rule) * F**2 * scale
    seen = centroids(at.q, at.covariance[0], beam)
    return _Light(leaves, of, scene.hkl[node], F, at, seen, samples, photons, scale)


def _leaf(value: Any, like: Tensor) -> Tensor:
    return as_tensor(value, like).detach().clone().requires_grad_()


def _leaves(record: str, config: Any, like: Tensor, leaves: dict[tuple[str, str], Tensor]) -> dict[str, Tensor]:
    """A record's numbers as leaves of the graph, which are put into `leaves` too."""
    there = {name: getattr(config, name) for name in PARAMETERS[record]}
    found = {name: _leaf(value, like) for name, value in there.items() if value is not None}
    leaves.update({(record, name): leaf for name, leaf in found.items()})
    return found


def _source(light: _Light) -> list[_Link]:
    """Told as they are used again and again; their derivatives are those of the records' numbers."""
    return [
        _Link("source", "direction of travel", "ŝ0", "", light.of.s0, on_path=False),
        _Link("source", "wavelength", "λ", "Å", light.of.wavelength, on_path=False),
        _Link("crystal", "reciprocal basis (columns a* b* c*)", "A", "1/Å", light.of.A, on_path=False),
    ]


def _rays(light: _Light) -> list[_Link]:
    rays = [sample.rays for sample in light.samples]
    h = [fractional_hkl(ray.q, light.of.A) for ray in rays]

    def link(name: str, symbol: str, unit: str, parts: list[Tensor], on_path: bool = True) -> _Link:
        return _Link("sub-pixels", name, symbol, unit, parts, of_ray=True, on_path=on_path)

    return [
        link("position", "d", "mm", [ray.position for ray in rays]),
        link("distance", "R", "mm", [torch.linalg.vector_norm(ray.position, dim=-1) for ray in rays], False),
        link("diffracted direction", "ŝ1", "", [ray.s1 for ray in rays]),
        link("scattering vector", "q", "1/Å", [ray.q for ray in rays]),
        link("fractional indices", "h", "", h, False),
        link("nearest node", "[h]", "", [torch.round(x) for x in h], False),
    ]


def _nodes(light: _Light) -> list[_Link]:
    def link(name: str, symbol: str, unit: str, part: Tensor, on_path: bool = True) -> _Link:
        return _Link("nodes", name, symbol, unit, part, on_path=on_path)

    return [
        link("indices", "hkl", "", light.hkl, False),
        link("amplitude", "F", "e", light.F),
        link("node", "q_h", "1/Å", light.at.q),
        link("excitation error", "ε", "1/Å", light.seen.epsilon, False),
        link("its rms width", "σ_ε", "1/Å", light.seen.width, False),
        link("covariance (by layer)", "S", "1/Å²", light.at.covariance),
        link("ln amplitude for |F|² = 1", "ln G", "", light.at.ln_amplitude),
    ]


def _offsets(light: _Light) -> list[_Link]:
    samples, rays = light.samples, [sample.rays for sample in light.samples]

    def each(name: str, symbol: str, unit: str, parts: list[Tensor]) -> _Link:
        return _Link("sub-pixels × nodes", name, symbol, unit, parts)

    def ray(name: str, symbol: str, unit: str, parts: list[Tensor]) -> _Link:
        return _Link("sub-pixels", name, symbol, unit, parts, of_ray=True)

    return [
        each("offset from the node", "Δ", "1/Å", [sample.offset for sample in samples]),
        each("offset in widths", "WΔ", "", [sample.white for sample in samples]),
        each("height on the node", "G N3(0)", "", [sample.height for sample in samples]),
        each("profile", "exp(−½ΔᵀS⁻¹Δ)", "", [sample.profile for sample in samples]),
        ray("solid angle", "Ω", "sr", [r.solid_angle for r in rays]),
        ray("polarisation", "P", "", [r.polarization for r in rays]),
        ray("absorbed by the sensor", "C", "", [r.absorbed for r in rays]),
    ]


def _sums(light: _Light) -> list[_Link]:
    return [
        _Link("pixel", "scale", "", "", light.scale),
        _Link("pixel", "Bragg photons of each node", "I_hkl", "photons", light.photons),
        _Link("pixel", "Bragg photons", "I", "photons", light.photons.sum(), on_path=False),
    ]


def _counted(bragg: Tensor, counts: Counts) -> list[Quantity]:
    """What becomes of the photons in the loss, by the functions of the refinement."""
    background, sigma, data = (
        as_tensor(value, bragg) for value in (counts.background, counts.sigma_readout, counts.data)
    )
    variance = pixel_variance(background, bragg, sigma**2)
    residual = data - background - bragg
    weighted = residual / torch.sqrt(variance)
    rows = (
        ("background", "b", "photons", background),
        ("model", "M = b + I", "photons", background + bragg),
        ("data", "D", "photons", data),
        ("read-out noise", "σ", "photons", sigma),
        ("variance", "V", "photons²", variance),
        ("residual", "D − M", "photons", residual),
        ("weighted residual", "Z = (D − M)/√V", "", weighted),
        ("term of χ²", "Z²", "", weighted**2),
    )
    return [Quantity("pixel", name, symbol, unit, value.tolist()) for name, symbol, unit, value in rows]
