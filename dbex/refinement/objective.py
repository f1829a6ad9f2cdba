"""χ² of a still's boxes with everything linear eliminated: the function that a solver minimises.

A pixel's model is the plane of its box plus the sum over reflections of intensity times profile. For fixed
parameters x, planes and intensities have closed-form optima: planes box by box, intensities from a sparse system that
couples only reflections that share pixels, each with its prior. What is left is a function of x alone, whose
Gauss-Newton matrix is the Schur complement (docs/physics.md, sections 5 and 6).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import SuperLU, splu
from torch import Tensor

from dbex.refinement.parameters import Parametrisation
from dbex.refinement.prior import IntensityPrior
from dbex.refinement.shoeboxes import Shoeboxes
from dbex.still import Floats
from nanobrag_torch.config import BeamConfig
from nanobrag_torch.fused import NodeColumns, Sample, box_derivatives, box_profiles, ray_columns, samples
from nanobrag_torch.jacobian import jacobian
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Nodes, Quadrature, nodes

#: Smallest variance of a pixel in photons²; how often it acts is reported.
VARIANCE_FLOOR = 1e-2
#: Boxes that are worked on at once: the pixels' samples of that many stay in the processor's cache.
BOXES_AT_ONCE = 32


@dataclass(frozen=True)
class Local:
    """The linear optimum at one x: planes (n, 3), intensities (m,), their prior-free estimates and variances (m,),
    the model's parts in every pixel (n, p), and the merit χ² + prior terms."""

    planes: Tensor
    intensity: Tensor
    background: Tensor
    bragg: Tensor
    merit: float
    chi2: float
    factor: SuperLU
    profiles: Tensor

    def raised(self, by: float) -> "Local":
        """The same with further terms in the merit."""
        return replace(self, merit=self.merit + by)


@dataclass(frozen=True)
class NormalEquations:
    """Gauss-Newton matrix (n, n) and downhill gradient (n,) of half the merit, after elimination, and the sensitivity
    of the intensities to x (m, n)."""

    matrix: Floats
    gradient: Floats
    sensitivity: Floats


@dataclass(frozen=True)
class Objective:
    """The boxes of a still, the parameters that move, the prior of the intensities and the robust weights (n, p)."""

    boxes: Shoeboxes
    hkl: Tensor
    map: Parametrisation
    prior: IntensityPrior
    rule: Quadrature
    weight: Tensor
    fixed: list[list[Sample]] | None = None

    def nodes_at(self, x: Tensor) -> Nodes:
        """The nodes (boxes * k * components); places without a node repeat the box's own."""
        models = self.map.models(x)
        node = self.boxes.node
        hkl = self.hkl[torch.where(node < 0, node[:, :1], node).flatten()]
        panel = self.boxes.pixels.panel.repeat_interleave(node.shape[1])
        each = [
            nodes(part.crystal, models.panels, models.beam, hkl, panel, models.ln_scale + part.ln_weight, self.rule)
            for part in models.components
        ]
        if len(each) == 1:
            return each[0]
        return Nodes(
            torch.stack([at.q for at in each], 1).flatten(0, 1),
            torch.stack([at.covariance for at in each], 2).flatten(1, 2),
            torch.stack([at.ln_amplitude for at in each], 1).flatten(),
        )

    def parts(self) -> list[slice]:
        """Groups of boxes that are worked on together."""
        count = len(self.boxes)
        return [slice(i, min(i + BOXES_AT_ONCE, count)) for i in range(0, count, BOXES_AT_ONCE)]

    def samples_of(self, x: Tensor, number: int, part: slice) -> list[Sample]:
        """The samples of a group of boxes; those of a detector and a beam that stay are kept."""
        if self.fixed is not None:
            return self.fixed[number]
        models = self.map.models(x)
        return samples(models.panels, models.beam, self.boxes.pixels.cut(part, self.boxes.extent(part)[0]), self.rule)

    def profiles(self, x: Tensor) -> Tensor:
        """Profiles (n, p, k) of every box's nodes at x, for |F|² = 1."""
        at, k, parts = self.nodes_at(x), self.boxes.node.shape[1], self.map.component_count
        total = torch.zeros(*self.boxes.data.shape, k, dtype=x.dtype)
        for number, part in enumerate(self.parts()):
            pixels, reach = self.boxes.extent(part)
            found = self.samples_of(x, number, part)
            image = box_profiles(_rows(at, part, k * parts, reach * parts), found, reach * parts)
            total[part, :pixels, :reach] = image.unflatten(-1, (reach, parts)).sum(-1)
        return total * (self.boxes.node >= 0)[:, None, :]

    def solve_linear(self, x: Tensor, variance: Tensor) -> Local:
        """The optimal planes and intensities at x for fixed variances (n, p)."""
        return self.solve_with(self.profiles(x), variance)

    def solve_with(self, profiles: Tensor, variance: Tensor) -> Local:
        """The same for profiles (n, p, k) that are there already."""
        boxes = self.boxes
        w = self.weights(variance)
        T = boxes.basis
        wT = w[..., None] * T
        plane_plane = T.transpose(1, 2) @ wT
        plane_node = wT.transpose(1, 2) @ profiles
        inverse = torch.linalg.inv(plane_plane)
        plane_data = (wT * boxes.data[..., None]).sum(1)
        wP = w[..., None] * profiles
        node_node = profiles.transpose(1, 2) @ wP - plane_node.transpose(1, 2) @ inverse @ plane_node
        node_data = (wP * boxes.data[..., None]).sum(1) - (
            plane_node.transpose(1, 2) @ (inverse @ plane_data[..., None])
        )[..., 0]
        factor, z = self._solve_intensities(node_node, node_data)
        intensity = self.prior.mean + self.prior.sd * z
        at_nodes = intensity[boxes.node.clamp_min(0)] * (boxes.node >= 0)
        planes = (inverse @ (plane_data - (plane_node @ at_nodes[..., None])[..., 0])[..., None])[..., 0]
        background = (T @ planes[..., None])[..., 0]
        bragg = (profiles @ at_nodes[..., None])[..., 0]
        chi2 = float((w * (boxes.data - background - bragg) ** 2).sum())
        return Local(planes, intensity, background, bragg, chi2 + float((z**2).sum()), chi2, factor, profiles)

    def _solve_intensities(self, node_node: Tensor, node_data: Tensor) -> tuple[SuperLU, Tensor]:
        """The factor of the system of the intensities, in units of their prior's sd, and its solution z (m,)."""
        node, m = self.boxes.node, len(self.prior.mean)
        real = node >= 0
        place = node.clamp_min(0)
        sd, mean = self.prior.sd[place], self.prior.mean[place] * real
        block = node_node * sd[:, :, None] * sd[:, None, :] * (real[:, :, None] & real[:, None, :])
        right = (node_data - (node_node @ mean[..., None])[..., 0]) * sd * real
        rows = place[:, :, None].expand_as(block).flatten().numpy()
        cols = place[:, None, :].expand_as(block).flatten().numpy()
        matrix = sparse.coo_matrix((block.flatten().numpy(), (rows, cols)), shape=(m, m)).tocsc() + sparse.identity(
            m, format="csc"
        )
        total = np.bincount(place.flatten().numpy(), right.flatten().numpy(), m)
        factor = splu(matrix)
        return factor, torch.as_tensor(factor.solve(total))

    def weights(self, variance: Tensor) -> Tensor:
        """Weights (n, p) of pixels: 0 where a pixel is not used."""
        return torch.where(self.boxes.used, self.weight / variance, torch.zeros_like(variance))

    def variance(self, local: Local) -> Tensor:
        """Variance (n, p) of pixels under a model: its photons plus the read-out noise, above a floor."""
        photons = local.background.clamp_min(0) + local.bragg.clamp_min(0)
        return (photons + self.boxes.sigma_squared).clamp_min(VARIANCE_FLOOR)

    def first_variance(self) -> Tensor:
        """Variances to begin with, from the data themselves, smoothed so that a 0 does not count for certain."""
        return self.boxes.data.clamp_min(0) + self.boxes.sigma_squared + 1

    def normal_equations(self, x: Tensor, variance: Tensor, local: Local) -> NormalEquations:
        """The Gauss-Newton system at x, where `local` is the linear optimum for these variances."""
        boxes, n = self.boxes, len(self.map)
        w = self.weights(variance)
        residual = boxes.data - local.background - local.bragg
        at_nodes = local.intensity[boxes.node.clamp_min(0)] * (boxes.node >= 0)
        matrix, gradient = np.zeros((n, n)), np.zeros(n)
        cross = np.zeros((len(self.prior.mean), n))
        for part, J in self.jacobian(x, at_nodes):
            p = J.shape[1]
            wJ = w[part, :p, None] * J
            T, P = boxes.basis[part, :p], local.profiles[part, :p]
            wT = w[part, :p, None] * T
            inverse = torch.linalg.inv(T.transpose(1, 2) @ wT)
            plane_x, plane_node = wT.transpose(1, 2) @ J, wT.transpose(1, 2) @ P
            matrix += ((J.transpose(1, 2) @ wJ).sum(0) - (plane_x.transpose(1, 2) @ inverse @ plane_x).sum(0)).numpy()
            gradient += (wJ * residual[part, :p, None]).sum((0, 1)).numpy()
            node_x = P.transpose(1, 2) @ wJ - plane_node.transpose(1, 2) @ inverse @ plane_x
            real = boxes.node[part] >= 0
            np.add.at(cross, boxes.node[part][real].numpy(), node_x[real].numpy())
        cross *= self.prior.sd.numpy()[:, None]
        eliminated = local.factor.solve(cross)
        widths = np.array([p.prior for p in self.map.parameters])
        matrix += np.diag(widths**-2.0) - cross.T @ eliminated
        gradient -= x.numpy() / widths**2
        return NormalEquations(matrix, gradient, -self.prior.sd.numpy()[:, None] * eliminated)

    def jacobian(self, x: Tensor, at_nodes: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Derivatives (boxes, pixels, n) of the Bragg part, group by group of boxes."""
        at, k, parts = self.nodes_at(x), self.boxes.node.shape[1], self.map.component_count
        columns = NodeColumns(*jacobian(self._node_numbers, x))
        models = self.map.models(x)
        follow = ray_columns(self._geometry, x) if self.map.geometric() else None
        for number, part in enumerate(self.parts()):
            pixels, reach = self.boxes.extent(part)
            rows = _places(part, k * parts, reach * parts)
            yield (
                part,
                box_derivatives(
                    _rows(at, part, k * parts, reach * parts),
                    at_nodes[part, :reach].repeat_interleave(parts, 1),
                    columns.rows(rows),
                    self.samples_of(x, number, part),
                    self.boxes.pixels.cut(part, pixels),
                    models.panels,
                    models.beam,
                    follow,
                ),
            )

    def _node_numbers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = self.nodes_at(x)
        return at.q, at.covariance, at.ln_amplitude

    def _geometry(self, x: Tensor) -> tuple[Panels, BeamConfig]:
        found = self.map.models(x)
        return found.panels, found.beam

    def prepared(self) -> "Objective":
        """The same, its samples computed once where neither detector nor beam moves."""
        bare = replace(self, fixed=None)
        if self.map.geometric():
            return bare
        x = torch.zeros(len(self.map), dtype=self.boxes.data.dtype)
        return replace(bare, fixed=[bare.samples_of(x, number, part) for number, part in enumerate(self.parts())])


def _places(part: slice, k: int, reach: int) -> Tensor:
    """Where the first `reach` of the k nodes of each box of a group stand in the list of all nodes."""
    return (torch.arange(part.start, part.stop)[:, None] * k + torch.arange(reach)).flatten()


def _rows(at: Nodes, part: slice, k: int, reach: int) -> Nodes:
    """The first `reach` of the k nodes of each box of a group."""
    rows = _places(part, k, reach)
    return Nodes(at.q[rows], at.covariance[:, rows], at.ln_amplitude[rows])
