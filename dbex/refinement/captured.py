"""How much of a reflection the Ewald sphere captures: its amplitude, with everything that turns |F|² into photons but
what a pixel's own place decides.

The error of |F|² is relative to |F|². In photons its standard deviation follows the amplitude, and as with the variance
of a pixel it has to stand still while χ² is minimised: otherwise a larger scale makes every deviation smaller, and the
scale comes out too large by the square of the relative error (docs/physics.md, section 5).
"""

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.node_columns import NodeColumns
from nanobrag_torch.node_slopes import TWICE, six
from nanobrag_torch.profile import Nodes
from nanobrag_torch.tensors import as_tensor, dot, unit


def ln_captured(at: Nodes, node: Tensor, beam: BeamConfig) -> Tensor:
    """ln amplitude (n,) of nodes where they meet the Ewald sphere of `beam`, of parts `at` of which each belongs to
    that one of the nodes (k,)."""
    return _together(_of_parts(at, beam)[0], node)


def wave_numbers(beam: BeamConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """s0 (3,) and its length (), 1/Å: what of the beam decides where nodes meet the sphere."""
    length = 1 / as_tensor(beam.wavelength_A, like)
    return unit(as_tensor(beam.direction, like)) * length, length


def captured_slopes(
    at: Nodes, columns: NodeColumns, node: Tensor, beam: BeamConfig, waves: tuple[Tensor, Tensor]
) -> Tensor:
    """Its derivatives (n, parameters), by the chain through q, covariance and amplitude of each part, and through the
    beam's numbers, whose derivatives are `waves` (3, parameters) and (parameters,)."""
    ln_amplitude, (epsilon, variance, normal, length, along, wave_number) = _of_parts(at, beam)
    # the normal turns with q
    turn = 2 * (along - variance[:, None] * normal) / length[:, None]
    pull = epsilon / variance
    by_variance = 0.5 * (pull**2 - 1 / variance)
    by_q = by_variance[:, None] * turn - pull[:, None] * normal
    outer = (by_variance[:, None] * as_tensor(TWICE, at.q)) * six(normal[:, :, None] * normal[:, None, :])
    slopes = (
        columns.ln_amplitude
        + (by_q[:, None] @ (columns.q + waves[0])).squeeze(1)
        + (pull - 2 / wave_number)[:, None] * waves[1]
        + (outer[:, None] @ columns.covariance[0]).squeeze(1)
    )
    total = _together(ln_amplitude, node)
    share = torch.exp(ln_amplitude - total[node])
    return torch.zeros(len(total), slopes.shape[1], dtype=slopes.dtype).index_add(0, node, share[:, None] * slopes)


def _together(ln_amplitude: Tensor, node: Tensor) -> Tensor:
    """ln of the sum (n,) over the parts of each node."""
    most = torch.full((int(node.max()) + 1,), -torch.inf, dtype=ln_amplitude.dtype)
    most = most.scatter_reduce(0, node, ln_amplitude, "amax")
    return most + torch.log(torch.zeros_like(most).index_add(0, node, torch.exp(ln_amplitude - most[node])))


def _of_parts(at: Nodes, beam: BeamConfig) -> tuple[Tensor, tuple[Tensor, ...]]:
    """ln amplitude (k,) of every part; its ε, the variance along the sphere's normal, that normal n, the length of
    q + s0/λ, S n (k, 3), and 1/λ ()."""
    s0, wave_number = wave_numbers(beam, at.q)
    toward = at.q + s0
    length = torch.linalg.vector_norm(toward, dim=-1)
    normal, epsilon = toward / length[:, None], length - wave_number
    along = (at.covariance[0] @ normal[..., None]).squeeze(-1)
    variance = dot(normal, along)
    # an area of the sphere fills a solid angle in proportion to λ²: photons, not their density, have to stand still
    solid_angle = -2 * torch.log(wave_number)
    ln_amplitude = at.ln_amplitude + solid_angle - 0.5 * torch.log(variance) - 0.5 * epsilon**2 / variance
    return ln_amplitude, (epsilon, variance, normal, length, along, wave_number)
