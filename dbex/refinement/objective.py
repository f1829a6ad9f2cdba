"""χ² of a still's boxes with everything linear eliminated: the function that a solver minimises.

A pixel's model is the plane of its box plus the sum over reflections of intensity times profile. For fixed
parameters x, planes and intensities have closed-form optima: planes box by box, intensities from a sparse system that
couples only reflections that share pixels, each with its prior. What is left is a function of x alone, whose
Gauss-Newton matrix is the Schur complement (docs/physics.md, sections 5 and 6).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import SuperLU, splu
from torch import Tensor

from dbex.physics.loss import pixel_variance
from dbex.refinement.captured import captured_slopes, ln_captured, wave_numbers
from dbex.refinement.groups import DATA, FIRST_NODE, Group, Grouping, Parts, distinct_nodes, grouped
from dbex.refinement.parameters import Models, Parametrisation
from dbex.refinement.prior import IntensityPrior
from dbex.refinement.shoeboxes import FEW, Shoeboxes
from dbex.refinement.square_blocks import Component
from dbex.still import Bools, Floats
from nanobrag_torch.config import BeamConfig, CrystalConfig, override
from nanobrag_torch.fused import (
    Derivatives,
    NodeColumns,
    RayColumns,
    Scene,
    beam_row,
    box_derivatives,
    box_profiles,
    node_maps,
    node_rows,
    panel_rows,
    ray_columns,
    ray_numbers,
)
from nanobrag_torch.jacobian import jacobian
from nanobrag_torch.node_columns import cause_rows, node_columns, part_nodes, place_numbers
from nanobrag_torch.profile import Nodes, Quadrature, Quadratures, causes, centroids, whitening
from nanobrag_torch.tensors import as_tensor, dot

#: The prior's sd follows the amplitude no further than this, in ln.
LN_FROZEN_MOST = 10.0
#: Of a mixture of more components than a few, those that send so many photons to a pixel are part of a node.
VISIBLE = 0.15


@dataclass(frozen=True)
class At:
    """What follows from `x`: the models and their components' causes, the parts of the distinct nodes, and the scene of
    each group that nodes reach; `map` and `parts` say for which parametrisation and nodes."""

    x: Tensor
    map: Parametrisation
    parts: Parts
    models: Models
    components: Tensor
    nodes: Nodes
    scenes: tuple[Scene, ...]

    def is_that_of(self, objective: "Objective", x: Tensor) -> bool:
        """Whether an objective has the same at this x."""
        return self.map is objective.map and self.parts is objective.groups.parts and torch.equal(self.x, x)


@dataclass(frozen=True)
class ByX:
    """Derivatives by x of the nodes, of the rays (None where they stay), and of the numbers of the beam that decide
    where nodes meet the Ewald sphere."""

    nodes: NodeColumns
    rays: RayColumns | None
    waves: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Diagonal:
    """The factor of a system whose unknowns do not meet: its diagonal (m,)."""

    numbers: Floats

    def solve(self, right: Floats) -> Floats:
        """The solution (m, ...) for right-hand sides (m, ...)."""
        return (right.T / self.numbers).T


@dataclass(frozen=True)
class Local:
    """The linear optimum at one x: planes (n, 3), intensities (m,), the model's parts in every pixel (N,), the
    background with the light of other lattices, the merit χ² + prior terms, the factor of the intensities' system, and
    for each group the columns (b, 4 + k, p) of what is linear: basis, data less that light, profiles. `sd` (m,) are
    those of the intensities' prior, `ln_captured` (m,) the amplitudes that it was frozen at, None where it stands for
    |F|² itself; `at` is what follows from x, None for columns of unknown origin."""

    planes: Tensor
    intensity: Tensor
    background: Tensor
    bragg: Tensor
    merit: float
    chi2: float
    factor: SuperLU | Diagonal
    columns: list[Tensor]
    sd: Tensor
    ln_captured: Tensor | None = None
    at: At | None = None

    def raised(self, by: float) -> "Local":
        """The same with further terms in the merit."""
        return replace(self, merit=self.merit + by)


@dataclass(frozen=True)
class NormalEquations:
    """Gauss-Newton matrix (n, n) and downhill gradient (n,) of half the merit, after elimination, the sensitivity of
    the intensities to x (m, n), and the derivatives (m, n) of their deviations from the prior, in its sd, which follow
    x because the sd does."""

    matrix: Floats
    gradient: Floats
    sensitivity: Floats
    by_prior: Floats


@dataclass(frozen=True)
class Objective:
    """The boxes of a still, the parameters that move, the prior of the intensities and the robust weights (N,) of
    pixels; `rule` samples them, but in boxes whose pixels can be taken `whole` (n,) by a model of few components."""

    boxes: Shoeboxes
    hkl: Tensor
    map: Parametrisation
    prior: IntensityPrior
    rule: Quadrature
    weight: Tensor
    whole: Bools | None = None
    grouping: Grouping | None = None

    def prepared(self, x: Tensor | None = None) -> "Objective":
        """The same, its boxes in groups; of a mixture of many components with those that can be seen at x."""
        count, grouping = self.map.component_count, self.grouping
        if grouping is not None and count <= FEW and grouping.are_of(self.boxes, self.whole, count):
            return self
        return replace(self, grouping=self._grouped(x))

    @property
    def groups(self) -> Grouping:
        """The boxes in groups."""
        if self.grouping is not None and self.grouping.reach is self.boxes.reach:
            return self.grouping
        return self._grouped(None)

    def _grouped(self, x: Tensor | None) -> Grouping:
        count = self.map.component_count
        whole = np.zeros(len(self.boxes), dtype=bool) if self.whole is None or count > FEW else self.whole
        distinct = distinct_nodes(self.boxes, whole)
        seen = np.ones((len(distinct.reflection), count), dtype=bool)
        if x is not None and count > FEW:
            place = torch.as_tensor(distinct.reflection)
            bright = self.prior.mean[place] + self.prior.sd[place]
            seen = visible(self.map.models(x), self.hkl[place], torch.as_tensor(distinct.panel), bright).numpy()
        return grouped(self.boxes, distinct, seen, self.whole, (self.rule, replace(self.rule, oversample=1)))

    def at(self, x: Tensor) -> At:
        """What follows from x."""
        models, parts = self.map.models(x), self.groups.parts
        components = component_rows(models)
        hkl = self.hkl[parts.reflection]
        nodes = part_nodes(components, parts.component, models.panels, hkl, parts.panel, self.sampling)
        panels, beam = panel_rows(models.panels, self.rule.layers), beam_row(models.beam, models.panels.origin)
        seen = ((group.where, group.rule) for group in self.groups.reached)
        scenes = tuple(Scene(w.slow, w.fast, panels[w.panel], beam, rule) for w, rule in seen)
        return At(x, self.map, parts, models, components, nodes, scenes)

    @property
    def sampling(self) -> Quadratures:
        """How the pixels of each node are sampled."""
        return Quadratures(self.groups.parts.oversample, self.rule.layers)

    def ln_captured(self, at: At) -> Tensor:
        """ln amplitude (m,) of each reflection where it meets the Ewald sphere of the beam that was read."""
        return ln_captured(at.nodes, at.parts.node, self.sphere(at.models))[self.groups.first]

    def columns(self, at: At) -> list[Tensor]:
        """For each group what a pixel's model is linear in (b, 4 + k, p): basis, data, profiles of the nodes."""
        boxes, rows = self.boxes, node_rows(at.nodes)
        explained = torch.cat([boxes.basis.T, (boxes.data - boxes.others)[None]])
        result, scenes = [], iter(at.scenes)
        for group in self.groups.groups:
            given = group.of(explained).transpose(0, 1)
            if group.reach:
                given = torch.cat([given, group.of_nodes(box_profiles(rows[:, group.parts], next(scenes)))], 1)
            result.append(given)
        return result

    def profiles(self, x: Tensor) -> Tensor:
        """Profiles (N, k) of the nodes of every pixel's box at x, for |F|² = 1; 0 of those that do not reach it."""
        return self.profiles_of(self.columns(self.at(x)))

    def profiles_of(self, columns: list[Tensor]) -> Tensor:
        """The same from the columns of every group."""
        result = torch.zeros(len(self.boxes.box), self.boxes.node.shape[1], dtype=self.boxes.data.dtype)
        for group, X in zip(self.groups.groups, columns, strict=True):
            result[group.segment, : group.reach] = X[:, FIRST_NODE:].transpose(1, 2).flatten(0, 1)
        return result

    @property
    def bright(self) -> Tensor:
        """Intensities (n, k) of the boxes' nodes an sd above their prior's mean."""
        return self.at_nodes(self.prior.mean + self.prior.sd)

    def solve_linear(self, x: Tensor, variance: Tensor, frozen: Tensor | None = None) -> Local:
        """The optimal planes and intensities at x for fixed variances (N,); with `frozen`, ln amplitudes (m,), the
        prior's sd is fixed in photons, as it was at those amplitudes, and not as a part of |F|²."""
        at = self.at(x)
        columns = self.columns(at)
        if frozen is None:
            return replace(self.solve_with(columns, variance), at=at)
        # an amplitude that changes beyond all bounds says nothing any more
        change = (frozen - self.ln_captured(at)).clamp(-LN_FROZEN_MOST, LN_FROZEN_MOST)
        found = self.solve_with(columns, variance, self.prior.sd * torch.exp(change))
        return replace(found, ln_captured=frozen, at=at)

    def renewed(self, local: Local, variance: Tensor) -> Local:
        """The optimum at the x of `local` for other variances."""
        return replace(self.solve_with(local.columns, variance), at=local.at)

    def solve_with(self, columns: list[Tensor], variance: Tensor, sd: Tensor | None = None) -> Local:
        """The same for columns that are there already, and another sd of the prior."""
        sd = self.prior.sd if sd is None else sd
        boxes, w = self.boxes, self.weights(variance)
        gram = self.gram(columns, w)
        plane_node, plane_data = gram[:, :DATA, FIRST_NODE:], gram[:, :DATA, DATA, None]
        left = torch.linalg.solve(gram[:, :DATA, :DATA], torch.cat([plane_node, plane_data], -1))
        reduced = gram[:, FIRST_NODE:, DATA:] - plane_node.transpose(1, 2) @ left.roll(1, -1)
        factor, z = self._solve_intensities(reduced[..., 1:], reduced[..., 0], sd)
        intensity = self.prior.mean + sd * z
        at_nodes = self.at_nodes(intensity)
        planes = left[..., -1] - (left[..., :-1] @ at_nodes[..., None])[..., 0]
        factors = torch.zeros(len(boxes), 2, gram.shape[1], dtype=w.dtype)
        factors[:, 0, :DATA], factors[:, 1, FIRST_NODE:] = planes, at_nodes
        model = torch.empty(2, len(w), dtype=w.dtype)
        for group, X in zip(self.groups.groups, columns, strict=True):
            group.of(model)[:] = (factors[group.box, :, : X.shape[1]] @ X).transpose(0, 1)
        background, bragg = model[0] + boxes.others, model[1]
        chi2 = float(w @ (boxes.data - background - bragg) ** 2)
        return Local(planes, intensity, background, bragg, chi2 + float((z**2).sum()), chi2, factor, columns, sd)

    def gram(self, columns: list[Tensor], w: Tensor) -> Tensor:
        """The products (n, 4 + k, 4 + k) of what each box's pixels are linear in, weighted by w (N,)."""
        n, most = self.boxes.node.shape
        result = torch.zeros(n, FIRST_NODE + most, FIRST_NODE + most, dtype=w.dtype)
        for group, X in zip(self.groups.groups, columns, strict=True):
            size = X.shape[1]
            result[:, :size, :size].index_add_(0, group.box, (X * group.of(w)[:, None]) @ X.transpose(1, 2))
        return result

    def at_nodes(self, intensity: Tensor) -> Tensor:
        """Intensities (n, k) of the boxes' nodes, 0 where there is none."""
        return intensity[self.boxes.node.clamp_min(0)] * (self.boxes.node >= 0)

    def _solve_intensities(
        self, node_node: Tensor, node_data: Tensor, of_prior: Tensor
    ) -> tuple[SuperLU | Diagonal, Tensor]:
        """The factor of the system of the intensities, in units of their prior's sd, and its solution z (m,)."""
        node, m = self.boxes.node, len(self.prior.mean)
        real = node >= 0
        place = node.clamp_min(0)
        sd, mean = of_prior[place], self.prior.mean[place] * real
        block = node_node * sd[:, :, None] * sd[:, None, :] * (real[:, :, None] & real[:, None, :])
        right = (node_data - (node_node @ mean[..., None])[..., 0]) * sd * real
        entries, own = block.flatten().numpy(), place.flatten().numpy()
        total = np.asarray(np.bincount(own, right.flatten().numpy(), m), dtype=np.float64)
        factor: SuperLU | Diagonal
        if node.shape[1] == 1:
            factor = Diagonal(1.0 + np.bincount(own, entries, m))
        else:
            # one prior each, on the diagonal
            ones, each = np.ones(m), np.arange(m)
            rows = np.concatenate([place[:, :, None].expand_as(block).flatten().numpy(), each])
            cols = np.concatenate([place[:, None, :].expand_as(block).flatten().numpy(), each])
            factor = splu(sparse.csc_matrix((np.concatenate([entries, ones]), (rows, cols)), shape=(m, m)))
        return factor, torch.as_tensor(factor.solve(total))

    def weights(self, variance: Tensor) -> Tensor:
        """Weights (N,) of pixels: 0 where a pixel is not used."""
        return torch.where(self.boxes.used, self.weight / variance, torch.zeros_like(variance))

    def variance(self, local: Local) -> Tensor:
        """Variance (N,) of pixels under a model: its photons plus the read-out noise, above a floor."""
        return pixel_variance(local.background, local.bragg, self.boxes.sigma_squared)

    def first_variance(self) -> Tensor:
        """Variances to begin with, from the data themselves, smoothed so that a 0 does not count for certain."""
        return self.boxes.data.clamp_min(0) + self.boxes.sigma_squared + 1

    def normal_equations(self, x: Tensor, variance: Tensor, local: Local) -> NormalEquations:
        """The Gauss-Newton system at x, where `local` is the linear optimum for these variances."""
        boxes, n = self.boxes, len(self.map)
        root = torch.sqrt(self.weights(variance))
        at_nodes = self.at_nodes(local.intensity)
        matrix = torch.zeros(n, n, dtype=x.dtype)
        cross = torch.zeros(len(self.prior.mean), n, dtype=x.dtype)
        at = local.at if local.at is not None and local.at.is_that_of(self, x) else self.at(x)
        by_x = self.by_x(at)
        residual = boxes.data - local.background - local.bragg
        # what is linear times the derivatives of each box's pixels, the residual in the data's place
        crossed = torch.zeros(len(boxes), FIRST_NODE + boxes.node.shape[1], n, dtype=x.dtype)
        columns = self.groups.of_reached(local.columns)
        by_group = zip(self._derivatives(at, by_x, at_nodes, root), columns, strict=True)
        for (group, found, here), X in by_group:
            linear = X * here[:, None]
            linear[:, DATA] = group.of(residual) * here
            of_sums = found.sums.transpose(1, 2)
            matrix += found.squared(found.sums @ of_sums)
            crossed[:, : linear.shape[1]].index_add_(0, group.box, found.times(linear @ of_sums))
        gram = self.gram(local.columns, self.weights(variance))
        left = torch.linalg.solve(gram[:, :DATA, :DATA], crossed[:, :DATA])
        matrix -= crossed[:, :DATA].flatten(0, 1).T @ left.flatten(0, 1)
        gradient = crossed[:, DATA].sum(0)
        of_nodes = crossed[:, FIRST_NODE:] - gram[:, FIRST_NODE:, :DATA] @ left
        cross.index_add_(0, boxes.node.clamp_min(0).flatten(), of_nodes.flatten(0, 1))
        cross *= local.sd[:, None]
        by_prior = torch.zeros_like(cross)
        if local.ln_captured is not None:
            z = (local.intensity - self.prior.mean) / local.sd
            slopes = self.captured_slopes(at, by_x)[self.groups.first]
            by_prior = z[:, None] * slopes
            matrix += by_prior.T @ by_prior
            gradient -= by_prior.T @ z
            cross += by_prior
        scaled = cross.numpy()
        eliminated = local.factor.solve(scaled)
        widths = np.array([p.prior for p in self.map.parameters])
        return NormalEquations(
            matrix.numpy() + np.diag(widths**-2.0) - scaled.T @ eliminated,
            gradient.numpy() - x.numpy() / widths**2,
            -local.sd.numpy()[:, None] * eliminated,
            by_prior.numpy(),
        )

    def derivatives(self, x: Tensor, at_nodes: Tensor, root: Tensor) -> Iterator[tuple[Group, Derivatives, Tensor]]:
        """Derivatives of the Bragg part times `root` (N,), in two factors, for each group that nodes reach, with its
        root (b, p)."""
        at = self.at(x)
        return self._derivatives(at, self.by_x(at), at_nodes, root)

    def _derivatives(
        self, at: At, by_x: ByX, at_nodes: Tensor, root: Tensor
    ) -> Iterator[tuple[Group, Derivatives, Tensor]]:
        """The same for nodes and their derivatives that are there already."""
        rows, maps = node_rows(at.nodes), node_maps(at.nodes, by_x.nodes)
        for group, scene in zip(self.groups.reached, at.scenes, strict=True):
            places = group.parts
            weights = group.of_parts(at_nodes[group.box, : group.reach])
            follow = None if by_x.rays is None else by_x.rays.of(group.where.panel)
            here = group.of(root)
            yield group, box_derivatives(rows[:, places], maps[:, places], weights, scene, here, follow), here

    def jacobian(self, x: Tensor, at_nodes: Tensor) -> Tensor:
        """Derivatives (N, n) of the Bragg part."""
        result = torch.zeros(len(self.boxes.box), len(self.map), dtype=x.dtype)
        for group, found, _ in self.derivatives(x, at_nodes, torch.ones_like(self.boxes.data)):
            result[group.segment] = found.times(found.sums.transpose(1, 2)).flatten(0, 1)
        return result

    def captured_slopes(self, at: At, by_x: ByX) -> Tensor:
        """Derivatives (nodes, n) of the ln amplitudes where nodes meet the sphere."""
        return captured_slopes(at.nodes, by_x.nodes, at.parts.node, self.sphere(at.models), by_x.waves)

    def sphere(self, models: Models) -> BeamConfig:
        """The beam whose Ewald sphere decides what is captured: of the direction that was read, its wavelength that of
        the models, or it would hold the common scale of wavelength and cell, which nothing else does."""
        return replace(self.map.beam, wavelength_A=models.beam.wavelength_A)

    def by_x(self, at: At) -> ByX:
        """Derivatives of all that follows from x."""
        moves = bool(self.map.geometric())
        changes = moves or "point_spread" in self.map.free_groups("detector")
        panels = at.models.panels

        def numbers(x: Tensor) -> tuple[Tensor, ...]:
            models = self.map.models(x, panels)
            of_beam = ray_numbers(panels, models.beam)[-1:] if moves else ()
            return (*wave_numbers(self.sphere(models), x), component_rows(models), *of_beam)

        s0, length, of_components, *of_beam = jacobian(numbers, at.x)
        of_places, rays = None, None
        if changes:
            of = self.map.panel_slopes(at.x, panels)
            of_places = place_numbers((of.fast, of.slow, of.normal), (of.distance, of.point_spread))
        if moves:
            rays = ray_columns(panels, (of.fast, of.slow, of.normal, of.origin, *of_beam))
        models, parts = at.models, at.parts
        columns = node_columns(
            at.components,
            parts.component,
            models.panels,
            self.hkl[parts.reflection],
            parts.panel,
            self.sampling,
            (of_components, of_places),
        )
        return ByX(columns, rays, (s0, length))


def component_rows(models: Models) -> Tensor:
    """The causes of the nodes of each component (c, CAUSES)."""
    like, rows = models.ln_scale, []
    for run in alike_but_for_size(models.components):
        crystal = run[0].crystal
        if len(run) > 1:
            sizes = as_tensor(tuple(part.crystal.size_covariance for part in run), like)
            crystal = override(crystal, {"size_covariance": sizes})
        ln_scale = torch.stack([like + part.ln_weight for part in run])
        offset = as_tensor(tuple(part.offset_h for part in run), like)
        rows.append(cause_rows(causes(crystal, models.beam, ln_scale, offset)))
    return torch.cat(rows)


def alike_but_for_size(components: Sequence[Component]) -> list[list[Component]]:
    """Runs of components whose crystals share all but the tensor of their sizes."""
    names = [field.name for field in fields(CrystalConfig) if field.name != "size_covariance"]
    runs: list[list[Component]] = []
    for part in components:
        before = runs[-1][0].crystal if runs else None
        if before is not None and all(getattr(before, name) is getattr(part.crystal, name) for name in names):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def visible(models: Models, hkl: Tensor, panel: Tensor, F_squared: Tensor) -> Tensor:
    """Which components (m, c) of nodes hkl (m, 3) of these intensities send photons to some pixel: at their best on
    the Ewald sphere more than `VISIBLE`."""
    panels, components, m = models.panels, component_rows(models), len(hkl)
    # every node of the first component, of the second, and so on
    component = torch.arange(len(components)).repeat_interleave(m)
    on = panel.repeat(len(components))
    at = part_nodes(components, component, panels, hkl.repeat(len(components), 1), on, Quadrature())
    covariance = at.covariance[0]
    found = centroids(at.q, covariance, models.beam)
    range_mm = torch.abs(panels.distance[on] / dot(found.s1, panels.normal[on]))
    solid_angle = panels.pixel_size[on] ** 2 * torch.abs(panels.distance[on]) / range_mm**3
    _, ln_norm = whitening(covariance)
    brightest = (solid_angle * torch.exp(at.ln_amplitude + ln_norm - found.k**2 / 2)).view(-1, m).T
    shown = F_squared[:, None] * brightest > VISIBLE
    shown[:, 0] |= ~shown.any(1)
    return shown
