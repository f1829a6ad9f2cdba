"""χ² of a still's boxes with everything linear eliminated: the function that a solver minimises.

A pixel's model is the plane of its box plus the sum over reflections of intensity times profile. For fixed
parameters x, planes and intensities have closed-form optima: planes box by box, intensities from a sparse system that
couples only reflections that share pixels, each with its prior. What is left is a function of x alone, whose
Gauss-Newton matrix is the Schur complement (docs/physics.md, sections 5 and 6).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.sparse as sparse
import torch
from scipy.sparse.linalg import SuperLU, splu
from torch import Tensor
from torch.func import jacfwd

from dbex.refinement.parameters import Parametrisation
from dbex.refinement.prior import IntensityPrior
from dbex.refinement.shoeboxes import Shoeboxes
from dbex.still import Floats
from nanobrag_torch.config import BeamConfig
from nanobrag_torch.fused import NodeColumns, box_derivatives, box_profiles, box_rays, ray_derivatives, ray_map
from nanobrag_torch.panel import Panels
from nanobrag_torch.profile import Nodes, Quadrature, Rays, nodes

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
    fixed_rays: list[Rays] | None = None

    def nodes_at(self, x: Tensor) -> Nodes:
        """The nodes (boxes * k); places without a node repeat the box's own."""
        models = self.map.models(x)
        node = self.boxes.node
        hkl = self.hkl[torch.where(node < 0, node[:, :1], node).flatten()]
        panel = self.boxes.pixels.panel.repeat_interleave(node.shape[1])
        return nodes(models.crystal, models.panels, models.beam, hkl, panel, models.ln_scale, self.rule)

    def parts(self) -> list[slice]:
        """Groups of boxes that are worked on together."""
        count = len(self.boxes)
        return [slice(i, min(i + BOXES_AT_ONCE, count)) for i in range(0, count, BOXES_AT_ONCE)]

    def rays_of(self, x: Tensor, part: slice) -> list[Rays]:
        """The rays of some boxes; those of a detector and a beam that stay are kept."""
        if self.fixed_rays is not None:
            return [Rays(ray.q[part], ray.factor[part]) for ray in self.fixed_rays]
        models = self.map.models(x)
        return box_rays(models.panels, models.beam, self.boxes.pixels[part], self.rule)

    def profiles(self, x: Tensor) -> Tensor:
        """Profiles (n, p, k) of every box's nodes at x, for |F|² = 1."""
        at, k = self.nodes_at(x), self.boxes.node.shape[1]
        found = [box_profiles(_rows(at, part, k), self.rays_of(x, part), k) for part in self.parts()]
        return torch.cat(found) * (self.boxes.node >= 0)[:, None, :]

    def solve_linear(self, x: Tensor, variance: Tensor) -> Local:
        """The optimal planes and intensities at x for fixed variances (n, p)."""
        boxes, profiles = self.boxes, self.profiles(x)
        w = self.weights(variance)
        T = boxes.basis
        wT = w[..., None] * T
        plane_plane = T.transpose(1, 2) @ wT
        plane_node = wT.transpose(1, 2) @ profiles
        inverse = torch.linalg.inv(plane_plane)
        plane_data = (wT * boxes.data[..., None]).sum(1)
        wP = w[..., None] * profiles
        node_node = profiles.transpose(1, 2) @ wP - plane_node.transpose(1, 2) @ inverse @ plane_node
        node_data = (wP * boxes.data[..., None]).sum(1) - (plane_node.transpose(1, 2) @ (inverse @ plane_data[..., None]))[..., 0]
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
        matrix = sparse.coo_matrix((block.flatten().numpy(), (rows, cols)), shape=(m, m)).tocsc() + sparse.identity(m, format="csc")
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
        for part, J in self._jacobian(x, at_nodes):
            wJ = w[part, :, None] * J
            T, P = boxes.basis[part], local.profiles[part]
            wT = w[part, :, None] * T
            inverse = torch.linalg.inv(T.transpose(1, 2) @ wT)
            plane_x, plane_node = wT.transpose(1, 2) @ J, wT.transpose(1, 2) @ P
            matrix += ((J.transpose(1, 2) @ wJ).sum(0) - (plane_x.transpose(1, 2) @ inverse @ plane_x).sum(0)).numpy()
            gradient += (wJ * residual[part, :, None]).sum((0, 1)).numpy()
            node_x = P.transpose(1, 2) @ wJ - plane_node.transpose(1, 2) @ inverse @ plane_x
            real = boxes.node[part] >= 0
            np.add.at(cross, boxes.node[part][real].numpy(), node_x[real].numpy())
        cross *= self.prior.sd.numpy()[:, None]
        eliminated = local.factor.solve(cross)
        widths = np.array([p.prior for p in self.map.parameters])
        matrix += np.diag(widths**-2.0) - cross.T @ eliminated
        gradient -= x.numpy() / widths**2
        return NormalEquations(matrix, gradient, -self.prior.sd.numpy()[:, None] * eliminated)

    def _jacobian(self, x: Tensor, at_nodes: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Derivatives (boxes, p, n) of the Bragg part, group by group of boxes."""
        at, k = self.nodes_at(x), self.boxes.node.shape[1]
        columns = NodeColumns(*jacfwd(self._node_numbers)(x))
        follow = self._ray_follower(x)
        for part in self.parts():
            ours = None if follow is None else partial(follow, part)
            rows = slice(part.start * k, part.stop * k)
            yield part, box_derivatives(
                _rows(at, part, k), at_nodes[part], columns.rows(rows), self.rays_of(x, part), ours
            )

    def _node_numbers(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = self.nodes_at(x)
        return at.q, at.covariance, at.ln_amplitude

    def _ray_follower(self, x: Tensor) -> Callable[[slice, int, Tensor, Tensor], Tensor] | None:
        """Turns slopes along the samples' rays into columns of the parameters that move rays."""
        if not self.map.geometric():
            return None
        models = self.map.models(x)

        def geometry(x: Tensor) -> tuple[Panels, BeamConfig]:
            found = self.map.models(x)
            return found.panels, found.beam

        map = ray_map(geometry, x)

        def follow(part: slice, layer: int, along_q: Tensor, along_ln: Tensor) -> Tensor:
            pixels = self.boxes.pixels[part]
            of_panel, of_beam = ray_derivatives(
                models.panels, models.beam, pixels, self.rule, layer, along_q, along_ln
            )
            return of_panel @ map.panel[pixels.panel] + of_beam @ map.beam

        return follow

    def prepared(self) -> "Objective":
        """The same, its rays computed once where neither detector nor beam moves."""
        if self.map.geometric():
            return replace(self, fixed_rays=None)
        models = self.map.models(torch.zeros(len(self.map), dtype=self.boxes.data.dtype))
        return replace(self, fixed_rays=box_rays(models.panels, models.beam, self.boxes.pixels, self.rule))


def _rows(at: Nodes, part: slice, k: int) -> Nodes:
    """The nodes of some boxes out of those of all."""
    rows = slice(part.start * k, part.stop * k)
    return Nodes(at.q[rows], at.covariance[:, rows], at.ln_amplitude[rows])
