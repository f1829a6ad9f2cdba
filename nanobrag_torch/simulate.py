"""The sampled sum: photons in each pixel as nanoBragg counts them (docs/physics.md, section 2).

    I = r_e² Φ / Σw · Σ w Ω P C |F(hkl)|² F_latt²(h)   over rays, steps of the spindle, domains, sub-pixels and layers

Solid angle Ω, polarisation P and capture C belong to each term. The weights w count everything but the layers of the
sensor, which share a photon among them. Positions and h are computed in float64 whatever the type of the result: the
difference s1 - s0 and the phases πNh lose too many digits in float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, Number, ScanConfig
from nanobrag_torch.lattice import cell_tensor, reciprocal_basis
from nanobrag_torch.mosaic import domain_rotations
from nanobrag_torch.panel import (
    Panels,
    Pixels,
    all_pixels,
    captured,
    curved_positions,
    obliquity,
    pixel_positions,
    solid_angle,
    stack_panels,
)
from nanobrag_torch.polarization import polarization_factor
from nanobrag_torch.recompute import computed_anew, tensors_on_graph
from nanobrag_torch.shape_factor import lattice_factor
from nanobrag_torch.source import Sources, beam_sources, polarization_normals
from nanobrag_torch.spindle import scan_rotations
from nanobrag_torch.structure_factors import StructureFactors, nearest, tricubic
from nanobrag_torch.tensors import as_tensor
from nanobrag_torch.units import R_E_SQUARED_M2

#: Memory, bytes, that one term of the sum takes at its peak with float64 results, by (interpolating, differentiated):
#: measured on the golden cases realistic_b, oversample_3 and kitchen_3, rounded up.
BYTES_PER_TERM = {(False, False): 300, (True, False): 450, (False, True): 700, (True, True): 2500}


@dataclass(frozen=True)
class _Samples:
    """The m places and rays of which a pixel is the sum: offsets in pixels, layers in fractions of the sensor."""

    slow: Tensor
    fast: Tensor
    near: Tensor
    far: Tensor
    s0: Tensor
    wavelength: Tensor
    weight: Tensor
    normal: Tensor

    def __getitem__(self, part: slice) -> "_Samples":
        return _Samples(*(getattr(self, name)[part] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class _Terms:
    """All that a sum over pixels of one panel depends on: m samples, and A⁻¹ (t, 3, 3) of t steps and domains."""

    crystal: CrystalConfig
    factors: StructureFactors
    A: Tensor
    inverse: Tensor
    panel: DetectorConfig
    geometry: Panels
    beam: BeamConfig
    samples: _Samples
    scale: Tensor
    interpolate: bool
    dmin_A: Number | None


def simulate(
    crystal: CrystalConfig,
    detector: DetectorConfig | Sequence[DetectorConfig],
    beam: BeamConfig,
    structure_factors: StructureFactors,
    *,
    scan: ScanConfig | None = None,
    pixels: Pixels | None = None,
    interpolate: bool = False,
    dmin_A: Number | None = None,
    dtype: torch.dtype = torch.float64,
    max_bytes: int = 2**26,
) -> Tensor:
    """Expected photons (n_pixels,) of Bragg scattering, on the device of the structure factors.

    `pixels` defaults to all of them, in the order panel, slow, fast. `interpolate` takes |F| between nodes from the
    tricubic polynomial; `dmin_A` leaves out what scatters beyond that resolution. The function is pure, and
    differentiable in every number of the records and in |F|, except across the sharp edges of top hats, `dmin_A` and
    the nearest node. `max_bytes` bounds the memory: the sum is done in blocks, which are computed anew, one at a
    time, when derivatives are asked for (second derivatives need a sum of one block). Raises ValueError for a spread
    that only the closed form describes.
    """
    return simulate_counting(
        crystal,
        detector,
        beam,
        structure_factors,
        scan=scan,
        pixels=pixels,
        interpolate=interpolate,
        dmin_A=dmin_A,
        dtype=dtype,
        max_bytes=max_bytes,
    )[0]


def simulate_counting(
    crystal: CrystalConfig,
    detector: DetectorConfig | Sequence[DetectorConfig],
    beam: BeamConfig,
    structure_factors: StructureFactors,
    *,
    scan: ScanConfig | None = None,
    pixels: Pixels | None = None,
    interpolate: bool = False,
    dmin_A: Number | None = None,
    dtype: torch.dtype = torch.float64,
    max_bytes: int = 2**26,
) -> tuple[Tensor, Tensor]:
    """As `simulate`, and the number of terms () that fell back from interpolation to the nearest node or default_F."""
    panels = [detector] if isinstance(detector, DetectorConfig) else list(detector)
    _refuse_what_only_the_closed_form_has(crystal, panels)
    like = torch.empty((), dtype=torch.float64, device=structure_factors.grid.device)
    pixels = all_pixels(panels, like.device) if pixels is None else pixels
    A = reciprocal_basis(crystal, like)
    inverse = _inverses(crystal, A, scan)
    sources = beam_sources(beam, like)
    intensity = torch.zeros(len(pixels), dtype=dtype, device=like.device)
    fell_back = torch.zeros((), dtype=torch.int64, device=like.device)
    for index, panel in enumerate(panels):
        where = torch.nonzero(pixels.panel == index)[:, 0]
        if len(where) == 0:
            continue
        samples = _samples(crystal, panel, beam, sources)
        steps = len(inverse) * samples.weight.sum() / _layers(panel)
        terms = _Terms(
            crystal=crystal,
            factors=structure_factors,
            A=A,
            inverse=inverse,
            panel=panel,
            geometry=stack_panels([panel], like),
            beam=beam,
            samples=samples,
            scale=as_tensor(beam.fluence, like) * R_E_SQUARED_M2 / steps,
            interpolate=interpolate,
            dmin_A=dmin_A,
        )
        part, missed = _sum_in_blocks(terms, pixels[where], dtype, max_bytes)
        intensity = intensity.index_put((where,), part)
        fell_back = fell_back + missed
    return intensity, fell_back


def automatic_oversample(crystal: CrystalConfig, panel: DetectorConfig, beam: BeamConfig) -> int:
    """Sub-pixels along an edge, nanoBragg's rule: ceil(3 size/(λ distance/pixel)), size the block's largest edge."""
    like = torch.empty((), dtype=torch.float64)
    edges = cell_tensor(crystal, like)[:3] * as_tensor(crystal.N_cells, like)
    size = edges.max() if crystal.domain_size_A is None else as_tensor(crystal.domain_size_A, like)
    per_pixel = as_tensor(beam.wavelength_A, like) * torch.abs(as_tensor(panel.distance_mm, like))
    return max(1, int(torch.ceil(3 * size * as_tensor(panel.pixel_size_mm, like) / per_pixel).detach()))


def _sum_in_blocks(terms: _Terms, pixels: Pixels, dtype: torch.dtype, max_bytes: int) -> tuple[Tensor, Tensor]:
    """The sum (n,), block by block: steps and samples stay together as far as memory allows."""
    differentiated = torch.is_grad_enabled() and len(tensors_on_graph(terms)) > 0
    room = max(1, max_bytes // BYTES_PER_TERM[terms.interpolate, differentiated])
    t = min(len(terms.inverse), room)
    m = min(len(terms.samples.weight), max(1, room // t))
    n = max(1, room // (t * m))
    pieces = [
        replace(terms, samples=terms.samples[j : j + m], inverse=terms.inverse[k : k + t])
        for j in range(0, len(terms.samples.weight), m)
        for k in range(0, len(terms.inverse), t)
    ]
    one_block = len(pieces) == 1 and n >= len(pixels)
    rows, fell_back = [], torch.zeros((), dtype=torch.int64, device=terms.A.device)
    for i in range(0, len(pixels), n):
        some = pixels[i : i + n]
        row = torch.zeros(len(some), dtype=dtype, device=terms.A.device)
        for piece in pieces:
            block = partial(_block_sum, pixels=some, dtype=dtype)
            part, missed = block(piece) if one_block else computed_anew(block, piece)
            row, fell_back = row + part, fell_back + missed
        rows.append(row)
    return torch.cat(rows), fell_back


def _block_sum(terms: _Terms, pixels: Pixels, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The sum (n,) of some pixels over the samples (m,) and steps (t,), and its number of failed interpolations.

    Rays are held as one list of m x n, sample by sample; vectors are laid out component by component.
    """
    geometry, samples = terms.geometry, terms.samples
    n, m = len(pixels), len(samples.weight)
    first = torch.zeros(m * n, dtype=torch.int64, device=terms.A.device)

    def of_ray(value: Tensor) -> Tensor:
        return value[:, None].expand(m, n, *value.shape[1:]).reshape(m * n, *value.shape[1:])

    slow = (pixels.slow + samples.slow[:, None]).reshape(-1)
    fast = (pixels.fast + samples.fast[:, None]).reshape(-1)
    near, far = (of_ray(edge) * geometry.thickness[0] for edge in (samples.near, samples.far))
    depth = near if terms.panel.parallax else torch.zeros_like(near)
    if terms.panel.curved:
        position = curved_positions(geometry, first, slow, fast)
    else:
        position = pixel_positions(geometry, first, slow, fast, depth)
    s1 = position / torch.linalg.vector_norm(position, dim=-1, keepdim=True)
    s0 = of_ray(samples.s0)
    factor = terms.scale * of_ray(samples.weight)
    factor = factor * solid_angle(geometry, first, position, depth, terms.panel.point_pixel)
    if terms.beam.polarization_fraction is not None:
        fraction = as_tensor(terms.beam.polarization_fraction, factor)
        factor = factor * polarization_factor(s1, s0, of_ray(samples.normal), fraction)
    if _is_thick(terms.panel):
        factor = factor * captured(geometry.mu[0], near, far, obliquity(geometry, first, s1))
    q = (s1 - s0) / of_ray(samples.wavelength)[:, None]
    q_squared = (q**2).sum(-1)
    if terms.dmin_A is not None:
        # Terms exactly at the limit count, as in the C program.
        factor = factor * (q_squared * as_tensor(terms.dmin_A, q) ** 2 <= 1)
    factor = factor * torch.exp(-0.5 * as_tensor(terms.crystal.b_factor_A2, q) * q_squared)
    strength, missed = _diffracting_strength(terms, q, dtype)
    return (factor.to(dtype) * strength).reshape(m, n).sum(0), missed


def _diffracting_strength(terms: _Terms, q: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Σ |F|² F_latt² (r,) over steps for scattering vectors `q` (r, 3), 1/Å, and the failed interpolations."""
    x, y, z = q.unbind(-1)
    rows = [terms.inverse[:, i, :, None].unbind(1) for i in range(3)]
    h = torch.stack([row[0] * x + row[1] * y + row[2] * z for row in rows]).movedim(0, -1)
    node = torch.ceil(h.detach() - 0.5)
    missed = torch.zeros((), dtype=torch.int64, device=q.device)
    if terms.interpolate:
        F, fell_back = tricubic(terms.factors, h)
        missed = fell_back.sum()
    else:
        F = nearest(terms.factors, node)
    F_latt = lattice_factor(terms.crystal, (h - node).to(dtype), terms.A)
    return ((F.to(dtype) * F_latt) ** 2).sum(0), missed


def _inverses(crystal: CrystalConfig, A: Tensor, scan: ScanConfig | None) -> Tensor:
    """A⁻¹ (t, 3, 3) after every step of the spindle, and in every domain of the turned crystal."""
    turned = domain_rotations(crystal, A)[:, None] @ scan_rotations(scan, A)
    return torch.linalg.inv(A) @ turned.reshape(-1, 3, 3).transpose(-1, -2)


def _samples(crystal: CrystalConfig, panel: DetectorConfig, beam: BeamConfig, sources: Sources) -> _Samples:
    """Every combination of sub-pixel, layer and ray."""
    like = sources.weights
    count = automatic_oversample(crystal, panel, beam) if panel.oversample < 1 else panel.oversample
    layers = _layers(panel)

    def steps(number: int) -> Tensor:
        return torch.arange(number, device=like.device)

    i, j, layer, ray = (
        index.reshape(-1)
        for index in torch.meshgrid(steps(count), steps(count), steps(layers), steps(len(like)), indexing="ij")
    )
    return _Samples(
        slow=(i + 0.5).to(like.dtype) / count,
        fast=(j + 0.5).to(like.dtype) / count,
        near=layer.to(like.dtype) / layers,
        far=(layer + 1).to(like.dtype) / layers,
        s0=sources.directions[ray],
        wavelength=sources.wavelengths[ray],
        weight=sources.weights[ray],
        normal=polarization_normals(beam, sources)[ray],
    )


def _is_thick(panel: DetectorConfig) -> bool:
    """Whether the sensor can miss photons: a plain 0 of thickness or of attenuation means that it absorbs them all."""
    values = (panel.sensor_thickness_mm, panel.sensor_mu_per_mm)
    return all(isinstance(value, Tensor) or value != 0 for value in values)


def _layers(panel: DetectorConfig) -> int:
    return panel.depth_layers if _is_thick(panel) else 1


def _refuse_what_only_the_closed_form_has(crystal: CrystalConfig, panels: Sequence[DetectorConfig]) -> None:
    if any(panel.curved and _is_thick(panel) for panel in panels):
        raise ValueError("a curved panel has a sensor of some thickness: leave its thickness or attenuation at 0")
    spreads: dict[str, object] = {
        name: getattr(crystal, name) for name in ("strain", "size_covariance", "mosaic_covariance_deg2")
    }
    spreads["point_spread_mm"] = next((p.point_spread_mm for p in panels if torch.as_tensor(p.point_spread_mm) != 0), 0)
    for name, value in spreads.items():
        if value is not None and bool((as_tensor(value, torch.empty((), dtype=torch.float64)) != 0).any()):
            raise ValueError(f"{name} is set, which the sampled sum does not know: leave it out or use the closed form")
