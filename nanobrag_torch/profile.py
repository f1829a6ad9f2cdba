"""The closed form: a node's centroid and partiality, and the intensity of a pixel without sampling.

Near a node h the intensity is a normalised 3-D Gaussian in q - A h whose covariance S is the sum of every cause of
spread (docs/physics.md, section 3):

    I(pixel) = G |F|² Ω P C N3(q - A h; S)

S is taken once per node. A pixel is split in sub-pixels and its sensor in layers; what is left of either is part of S.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import EllipsisType

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, ScanConfig, Vector, override
from nanobrag_torch.lattice import orientation, reciprocal_basis
from nanobrag_torch.panel import Panels, captured, obliquity, pixel_positions, solid_angle, stack_panels
from nanobrag_torch.polarization import polarization_factor
from nanobrag_torch.rotation import rotation_from_vector
from nanobrag_torch.spindle import line_integral
from nanobrag_torch.spread import Spread, footprint_covariance, outer, spread_of
from nanobrag_torch.tensors import as_tensor, dot, unit
from nanobrag_torch.units import R_E_SQUARED_M2, RADIANS_PER_DEGREE

#: ∫F_latt² over a cell of h, over NaNbNc, for Gaussian blocks: (0.63 π/2)^1.5.
GAUSS_INTEGRAL = (0.63 * torch.pi / 2) ** 1.5


@dataclass(frozen=True)
class Quadrature:
    """How a pixel is sampled: `oversample` sub-pixels along each edge, `layers` of the sensor.

    What is left of either is part of the covariance, so that one layer with the variance of the depth of absorption
    is exact to second order; more follow the skewness of that depth too.
    """

    oversample: int = 2
    layers: int = 1

    @property
    def samples(self) -> int:
        """Samples of a pixel."""
        return self.oversample**2 * self.layers


@dataclass(frozen=True)
class Quadratures:
    """How the pixels are sampled on which nodes (m,) are recorded: sub-pixels along each edge (m,), layers of the
    sensor."""

    oversample: Tensor
    layers: int = 1


@dataclass(frozen=True)
class Rays:
    """The way of light to samples of pixels: position (n, 3), mm, where it is absorbed; unit direction s1 (n, 3);
    scattering vector q (n, 3), 1/Å; and (n,) solid angle, fraction that the sensor absorbs and polarisation factor."""

    position: Tensor
    s1: Tensor
    q: Tensor
    solid_angle: Tensor
    absorbed: Tensor
    polarization: Tensor

    @property
    def factor(self) -> Tensor:
        """Ω C P (n,)."""
        return self.solid_angle * self.absorbed * self.polarization


@dataclass(frozen=True)
class Nodes:
    """Reciprocal nodes: q (n, 3), 1/Å; covariance (layers, n, 3, 3), 1/Å²; ln_amplitude (n,) of G |F|²; and the path
    (n, 3), 1/Å, along which each moves during the exposure, centred on q, None for a still crystal."""

    q: Tensor
    covariance: Tensor
    ln_amplitude: Tensor
    path: Tensor | None = None


#: Coefficients of x, x³, x⁵ … in ½ - (1/x - 1/(e^x - 1)): B(2n)/(2n)!, B the Bernoulli numbers.
_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)
#: Below this the closed forms lose more digits than the series lacks.
_THIN = 0.3


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Σ c_n x^n by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = c + x * total
    return total


def mean_depth_ratio(x: Tensor) -> Tensor:
    """Mean depth of absorption in a layer over its thickness, x thickness over absorption length: 1/x - 1/(e^x - 1)."""
    thin = torch.abs(x) < _THIN
    safe, small = torch.where(thin, torch.ones_like(x), x), torch.where(thin, x, torch.zeros_like(x))
    series = small * polynomial(_BERNOULLI, small**2)
    return torch.where(thin, 0.5 - series, 1 / safe - 1 / torch.expm1(safe))


def depth_variance_ratio(x: Tensor) -> Tensor:
    """Variance of that depth over the thickness squared: 1/x² - e^x/(e^x - 1)²."""
    thin = torch.abs(x) < _THIN
    safe, small = torch.where(thin, torch.ones_like(x), x), torch.where(thin, x, torch.zeros_like(x))
    series = polynomial([(2 * n + 1) * c for n, c in enumerate(_BERNOULLI)], small**2)
    return torch.where(thin, series, 1 / safe**2 - 0.25 / torch.sinh(safe / 2) ** 2)


def depth_variance_slope(x: Tensor) -> Tensor:
    """Its derivative: -2/x³ + cosh(x/2)/(4 sinh³(x/2))."""
    thin = torch.abs(x) < _THIN
    safe, small = torch.where(thin, torch.ones_like(x), x), torch.where(thin, x, torch.zeros_like(x))
    series = small * polynomial([2 * n * (2 * n + 1) * c for n, c in enumerate(_BERNOULLI)][1:], small**2)
    return torch.where(thin, series, 0.25 * torch.cosh(safe / 2) / torch.sinh(safe / 2) ** 3 - 2 / safe**3)


@dataclass(frozen=True)
class Layer:
    """One layer of the panels' sensors: depths (n panels,), mm, and whether the sensor absorbs at its surface only."""

    near: Tensor
    far: Tensor


def sensor_layers(panels: Panels, layers: int) -> list[Layer]:
    """Layers that absorb equally at normal incidence; one of no thickness where the sensor is not known."""
    absorbing = (panels.thickness > 0) & (panels.mu > 0)
    mu = torch.where(absorbing, panels.mu, torch.ones_like(panels.mu))
    total = -torch.expm1(-mu * panels.thickness)
    edges = [-torch.log1p(-total * i / layers) / mu for i in range(layers)] + [panels.thickness]
    return [Layer(edges[i], edges[i + 1]) for i in range(layers)]


@dataclass(frozen=True)
class Crossing:
    """A layer as light crosses it, all (n,): the depth of its near side and its thickness, mm; `x`, the way in it over
    the absorption length; and whether light is recorded as deep as it is absorbed."""

    near: Tensor
    thickness: Tensor
    x: Tensor
    deep: Tensor

    def mean(self) -> Tensor:
        """Mean depth of absorption, mm."""
        depth = self.near + self.thickness * mean_depth_ratio(self.x)
        return torch.where(self.deep, depth, torch.zeros_like(depth))

    def variance(self) -> Tensor:
        """Variance of that depth, mm²."""
        variance = self.thickness**2 * depth_variance_ratio(self.x)
        return torch.where(self.deep, variance, torch.zeros_like(variance))

    def variance_slope(self) -> Tensor:
        """Derivative of the variance, mm², by ln of the obliquity's cosine."""
        slope = -self.x * self.thickness**2 * depth_variance_slope(self.x)
        return torch.where(self.deep, slope, torch.zeros_like(slope))


def crossing(panels: Panels, layer: Layer, panel: Tensor | EllipsisType, cosine: Tensor) -> Crossing:
    """How light of that obliquity crosses a layer of panels.

    `panel` says which panel each cosine is of; `...` where the panels' numbers are arranged as the cosines are.
    """
    near, thickness = layer.near[panel], (layer.far - layer.near)[panel]
    mu = panels.mu[panel]
    absorbing = (panels.thickness[panel] > 0) & (mu > 0)
    x = torch.where(absorbing, mu * thickness / cosine, torch.ones_like(mu))
    # without parallax every depth is recorded as if it were the surface
    return Crossing(near, thickness, x, absorbing & panels.parallax[panel])


def layer_depth(
    panels: Panels, layer: Layer, panel: Tensor | EllipsisType, cosine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the depth of absorption in a layer, and the fraction absorbed, at that obliquity.

    A sensor of no known absorption takes everything at its surface: its first layer has weight 1 over the number of
    layers like every other.
    """
    found = crossing(panels, layer, panel, cosine)
    far = found.near + found.thickness
    return found.mean(), found.variance(), captured(panels.mu[panel], found.near, far, cosine)


def rays(
    panels: Panels,
    beam: BeamConfig,
    panel: Tensor,
    slow_px: Tensor,
    fast_px: Tensor,
    layer: Layer,
    layers: int,
    centre_px: tuple[Tensor, Tensor] | None = None,
) -> Rays:
    """Rays to points (n,) of panels, given in pixels from the outer corner, absorbed in one layer of the sensor.

    What the sensor absorbs hardly changes within a pixel: it is that of `centre_px`, slow and fast (n,), where given.
    """
    like = panels.origin
    surface = pixel_positions(panels, panel, *(centre_px or (slow_px, fast_px)))
    cosine = obliquity(panels, panel, unit(surface))
    depth, _, fraction = layer_depth(panels, layer, panel, cosine)
    absorbing = (panels.thickness[panel] > 0) & (panels.mu[panel] > 0)
    position = pixel_positions(panels, panel, slow_px, fast_px, depth)
    s0 = unit(as_tensor(beam.direction, like))
    s1 = unit(position)
    polarization = torch.ones_like(fraction)
    if beam.polarization_fraction is not None:
        normal = as_tensor(beam.polarization_normal, like)
        polarization = polarization_factor(s1, s0, normal, as_tensor(beam.polarization_fraction, like))
    return Rays(
        position,
        s1,
        (s1 - s0) / as_tensor(beam.wavelength_A, like)[..., None],
        solid_angle(panels, panel, position, depth),
        torch.where(absorbing, fraction, torch.full_like(fraction, 1.0 / layers)),
        polarization,
    )


def ln_integral(crystal: CrystalConfig, like: Tensor) -> Tensor:
    """ln of ∫F_latt² d³q, 1/Å³, of Gaussian blocks: what a node's normalised Gaussian is multiplied by."""
    cells = as_tensor(crystal.N_cells, like).prod()
    fudge = as_tensor(crystal.fudge, like)
    if crystal.shape == "gauss_isotropic" or crystal.domain_size_A is not None:
        size = cells if crystal.domain_size_A is None else as_tensor(crystal.domain_size_A, like)
        return 2 * torch.log(cells) + torch.log(GAUSS_INTEGRAL / size**3) - 1.5 * torch.log(fudge)
    volume = torch.linalg.det(reciprocal_basis(crystal, like))
    return torch.log(GAUSS_INTEGRAL * cells * torch.abs(volume)) - 1.5 * torch.log(fudge)


def ln_absolute_scale(crystal: CrystalConfig, beam: BeamConfig, like: Tensor) -> Tensor:
    """ln G of docs/physics.md, section 3: r_e² Φ ∫F_latt² d³q."""
    return ln_integral(crystal, like) + torch.log(R_E_SQUARED_M2 * as_tensor(beam.fluence, like))


def scan_path(scan: ScanConfig, q: Tensor) -> Tensor:
    """How far (n, 3), 1/Å, nodes q (n, 3) move during a rotation about the middle of its range, to first order."""
    velocity = torch.linalg.cross(unit(as_tensor(scan.axis, q)).expand_as(q), q)
    return as_tensor(scan.width_deg, q) * RADIANS_PER_DEGREE * velocity


def scan_covariance(scan: ScanConfig, q: Tensor) -> Tensor:
    """Second moment (n, 3, 3) of that path: the size of a spot wants no more."""
    return outer(scan_path(scan, q)) / 12


def mid_scan(crystal: CrystalConfig, scan: ScanConfig | None, like: Tensor) -> CrystalConfig:
    """The crystal as it stands in the middle of the rotation."""
    if scan is None:
        return crystal
    middle = (as_tensor(scan.start_deg, like) + 0.5 * as_tensor(scan.width_deg, like)) * RADIANS_PER_DEGREE
    turn = rotation_from_vector(middle * unit(as_tensor(scan.axis, like)))
    return override(crystal, {"U": turn @ orientation(crystal, like), "misset_deg": (0.0, 0.0, 0.0)})


@dataclass(frozen=True)
class Causes:
    """What nodes follow from beside their hkl and panel: A (..., 3, 3), what broadens them, s0 and the `offset` in h
    from whole numbers (..., 3), wavelength, B and ln of the scale (...); leading axes are those of the nodes, or none.
    """

    A: Tensor
    spread: Spread
    s0: Tensor
    offset: Tensor
    wavelength: Tensor
    b_factor: Tensor
    ln_scale: Tensor


def causes(crystal: CrystalConfig, beam: BeamConfig, ln_scale: Tensor, offset: Vector = (0.0, 0.0, 0.0)) -> Causes:
    """Those of a crystal and a beam, for what lies at an `offset` in h from every node."""
    return Causes(
        reciprocal_basis(crystal, ln_scale),
        spread_of(crystal, beam, ln_scale),
        unit(as_tensor(beam.direction, ln_scale)),
        as_tensor(offset, ln_scale),
        as_tensor(beam.wavelength_A, ln_scale),
        as_tensor(crystal.b_factor_A2, ln_scale),
        ln_scale,
    )


def nodes(
    crystal: CrystalConfig,
    panels: Panels,
    beam: BeamConfig,
    hkl: Tensor,
    panel: Tensor,
    ln_scale: Tensor,
    quadrature: Quadrature,
    scan: ScanConfig | None = None,
) -> Nodes:
    """The nodes hkl (n, 3), each as the panel (n,) on which it is recorded sees it.

    `ln_scale` (n,) or () is added to the isotropic displacement's -B|q|²/2 to give the amplitude.
    """
    crystal = mid_scan(crystal, scan, panels.origin)
    found = nodes_from(causes(crystal, beam, ln_scale), panels, hkl, panel, quadrature)
    return found if scan is None else replace(found, path=scan_path(scan, found.q))


def nodes_from(
    of: Causes, panels: Panels, hkl: Tensor, panel: Tensor | EllipsisType, quadrature: Quadrature | Quadratures
) -> Nodes:
    """The same from their causes; `panel` is `...` where the panels' numbers are arranged as the nodes are."""
    q = (of.A * (hkl + of.offset)[..., None, :]).sum(-1)
    s1 = unit(q + of.s0 / of.wavelength[..., None])
    normal = panels.normal[panel]
    cosine = torch.abs(dot(s1, normal))
    range_mm = torch.abs(panels.distance[panel]) / cosine
    spread = of.spread.at(q)
    edge = pixel_variance(panels, panel, quadrature)
    covariance = torch.stack(
        [
            spread
            + footprint_covariance(
                s1,
                panels.fast[panel],
                panels.slow[panel],
                normal,
                1 / (of.wavelength * range_mm),
                edge,
                crossing(panels, layer, panel, cosine).variance(),
            )
            for layer in sensor_layers(panels, quadrature.layers)
        ]
    )
    return Nodes(q, covariance, of.ln_scale - of.b_factor * (q**2).sum(-1) / 2)


def pixel_variance(panels: Panels, panel: Tensor | EllipsisType, quadrature: Quadrature | Quadratures) -> Tensor:
    """Variance (n,), mm², along each edge of a pixel that its sub-pixels leave, and of the point spread."""
    return panels.pixel_size[panel] ** 2 / (12 * quadrature.oversample**2) + panels.point_spread[panel] ** 2


@dataclass(frozen=True)
class Centroids:
    """Where nodes are seen: excitation error epsilon (n,), 1/Å; its rms width (n,), 1/Å; the diffracted direction
    s1 (n, 3) of the centroid."""

    epsilon: Tensor
    width: Tensor
    s1: Tensor

    @property
    def k(self) -> Tensor:
        """Excitation error over its width."""
        return self.epsilon / self.width


def centroids(q: Tensor, covariance: Tensor, beam: BeamConfig) -> Centroids:
    """Centroids of nodes q (n, 3) with covariance (n, 3, 3) on the Ewald sphere, taken flat over a node's width."""
    k0 = unit(as_tensor(beam.direction, q)) / as_tensor(beam.wavelength_A, q)
    to_node = q + k0
    length = torch.linalg.vector_norm(to_node, dim=-1)
    normal = to_node / length[..., None]
    epsilon = length - 1 / as_tensor(beam.wavelength_A, q)
    along = (covariance @ normal[..., None]).squeeze(-1)
    variance = dot(normal, along)
    centre = q - along * (epsilon / variance)[..., None]
    return Centroids(epsilon, torch.sqrt(variance), unit(centre + k0))


def intersection_px(panels: Panels, panel: Tensor, s1: Tensor) -> Tensor:
    """Where rays s1 (n, 3) are recorded, in pixels (fast, slow) (n, 2), at the mean depth of absorption."""
    normal = panels.normal[panel]
    cosine = dot(s1, normal)
    # the whole sensor as one layer: the mean over layers is the mean of all
    whole = Layer(torch.zeros_like(panels.thickness), panels.thickness)
    depth = crossing(panels, whole, panel, torch.abs(cosine)).mean()
    reach = (panels.distance[panel] + torch.sign(panels.distance)[panel] * depth) / cosine
    offset = s1 * reach[..., None] - panels.origin[panel]
    size = panels.pixel_size[panel]
    return torch.stack([dot(offset, panels.fast[panel]) / size, dot(offset, panels.slow[panel]) / size], -1)


def whitening(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """W (..., 3, 3) with WᵀW = S⁻¹, lower triangular, and ln of the normalisation of N3, for covariances S.

    Written out (a Cholesky factor and its inverse, nine numbers) so that it is cheap in bulk and smooth under autograd.
    """
    s = covariance
    l00 = torch.sqrt(s[..., 0, 0])
    l10, l20 = s[..., 1, 0] / l00, s[..., 2, 0] / l00
    l11 = torch.sqrt(s[..., 1, 1] - l10**2)
    l21 = (s[..., 2, 1] - l20 * l10) / l11
    l22 = torch.sqrt(s[..., 2, 2] - l20**2 - l21**2)
    zero = torch.zeros_like(l00)
    w10 = -l10 / (l00 * l11)
    w20 = (l10 * l21 / l11 - l20) / (l00 * l22)
    rows = [1 / l00, zero, zero, w10, 1 / l11, zero, w20, -l21 / (l11 * l22), 1 / l22]
    ln_norm = -1.5 * torch.log(torch.full_like(l00, 2 * torch.pi)) - torch.log(l00 * l11 * l22)
    return torch.stack(rows, -1).unflatten(-1, (3, 3)), ln_norm


def sub_pixel_offsets(oversample: int, like: Tensor) -> Tensor:
    """Centres (oversample,) of the parts of a pixel's edge, in pixels from its lower edge."""
    return (torch.arange(oversample, dtype=like.dtype, device=like.device) + 0.5) / oversample


@dataclass(frozen=True)
class Pairs:
    """Which node contributes to which pixel: indices (m,) into a list of pixels and one of nodes."""

    pixel: Tensor
    node: Tensor

    def __len__(self) -> int:
        return len(self.pixel)


@dataclass(frozen=True)
class Sample:
    """One sub-pixel and layer of pairs (m,): its rays, the offsets Δ = q - A h (m, 3), 1/Å, whitened too (in widths of
    the node), the height of G |F|² N3 on the node for |F|² = 1 and the fraction of it at Δ."""

    rays: Rays
    offset: Tensor
    white: Tensor
    height: Tensor
    profile: Tensor

    @property
    def intensity(self) -> Tensor:
        """Photons (m,) for |F|² = 1, were all of the pixel like this."""
        return self.rays.factor * self.height * self.profile


def pair_samples(
    at: Nodes, panels: Panels, beam: BeamConfig, pixels: tuple[Tensor, Tensor, Tensor], pairs: Pairs, rule: Quadrature
) -> Iterator[Sample]:
    """The samples of pairs (m,), sub-pixel by sub-pixel and layer by layer: `pixels` are panel, slow and fast (n,)."""
    panel, slow, fast = (column[pairs.pixel] for column in pixels)
    centre = (slow + 0.5, fast + 0.5)
    offsets = sub_pixel_offsets(rule.oversample, panels.origin)
    for number, layer in enumerate(sensor_layers(panels, rule.layers)):
        W, ln_norm = whitening(at.covariance[number])
        for up in offsets:
            for along in offsets:
                ray = rays(panels, beam, panel, slow + up, fast + along, layer, rule.layers, centre)
                offset = ray.q - at.q[pairs.node]
                white = (W[pairs.node] @ offset[..., None]).squeeze(-1)
                height = torch.exp((at.ln_amplitude + ln_norm)[pairs.node])
                path = None if at.path is None else (W @ at.path[..., None]).squeeze(-1)[pairs.node]
                yield Sample(ray, offset, white, height, exposure(white, path))


def pair_intensities(
    at: Nodes, panels: Panels, beam: BeamConfig, pixels: tuple[Tensor, Tensor, Tensor], pairs: Pairs, rule: Quadrature
) -> Tensor:
    """Intensity (m,) of each pair for |F|² = 1."""
    return summed(pair_samples(at, panels, beam, pixels, pairs, rule), rule)


def summed(samples: Iterable[Sample], rule: Quadrature) -> Tensor:
    """The mean over a pixel's sub-pixels of the sum over its sensor's layers, of all samples of the rule."""
    total = sum(sample.intensity for sample in samples)
    return torch.as_tensor(total) / rule.oversample**2


def exposure(white: Tensor, path: Tensor | None) -> Tensor:
    """exp(-½ |Δ|²) (m,) for whitened offsets (m, 3), averaged along the whitened path (m, 3) that a node draws."""
    squared = (white**2).sum(-1)
    if path is None:
        return torch.exp(-0.5 * squared)
    return line_integral((path**2).sum(-1), dot(path, white), squared, torch.ones_like(squared))


def profile(
    crystal: CrystalConfig,
    detector: Sequence[DetectorConfig],
    beam: BeamConfig,
    hkl: Tensor,
    F: Tensor,
    pixels: tuple[Tensor, Tensor, Tensor],
    pairs: Pairs,
    node_panel: Tensor,
    rule: Quadrature = Quadrature(),
    scan: ScanConfig | None = None,
    max_pairs: int = 2_000_000,
) -> Tensor:
    """Bragg intensities (n pixels,), photons, of the nodes hkl (m, 3) with amplitudes F (m,), in closed form.

    `pixels` are panel, slow and fast (n,); `pairs` says which node reaches which pixel, `node_panel` (m,) which panel
    records it. A rotation is integrated exactly along the line that each node draws (docs/physics.md, section 3). The
    result has F's dtype and device; at most `max_pairs` pairs are in memory at once. Raises ValueError for samples of
    domains or rays, which only `simulate` sums.
    """
    _refuse_samples(crystal, beam)
    if any(panel.curved for panel in detector):
        raise ValueError("a panel is curved, but the closed form knows flat ones only: use simulate()")
    panels = stack_panels(detector, F)
    scale = ln_absolute_scale(crystal, beam, F)
    at = nodes(crystal, panels, beam, hkl, node_panel, scale, rule, scan)
    image = torch.zeros(len(pixels[0]), dtype=F.dtype, device=F.device)
    for first in range(0, len(pairs), max_pairs):
        part = Pairs(pairs.pixel[first : first + max_pairs], pairs.node[first : first + max_pairs])
        intensity = pair_intensities(at, panels, beam, pixels, part, rule) * F[part.node] ** 2
        image = image.index_add(0, part.pixel, intensity)
    return image


def _refuse_samples(crystal: CrystalConfig, beam: BeamConfig) -> None:
    names = ("source_directions", "source_wavelengths_A", "source_weights")
    given = [name for name in names if getattr(beam, name) is not None]
    given += ["mosaic_rotations"] if crystal.mosaic_rotations is not None else []
    if given:
        raise ValueError(f"{given[0]} is set, but the closed form knows widths only: give those, or use simulate()")
