"""How much of a reflection the Ewald sphere captures: its amplitude, with everything that turns |F|² into photons.

The error of |F|² is relative to |F|². In photons its standard deviation follows the amplitude, and as with the variance
of a pixel it has to stand still while χ² is minimised: otherwise a larger scale makes every deviation smaller, and the
scale comes out too large by the square of the relative error (docs/physics.md, section 5).
"""

import torch
from torch import Tensor

from nanobrag_torch.config import BeamConfig
from nanobrag_torch.node_columns import NodeColumns
from nanobrag_torch.profile import Nodes
from nanobrag_torch.tensors import as_tensor, dot, unit


def ln_captured(at: Nodes, parts: int, beam: BeamConfig) -> Tensor:
    """ln amplitude (n,) of nodes of `parts` components each, where they meet the Ewald sphere of `beam`."""
    ln_amplitude, _ = _of_components(at, parts, beam)
    return torch.logsumexp(ln_amplitude, 1)


def captured_slopes(at: Nodes, columns: NodeColumns, parts: int, beam: BeamConfig) -> Tensor:
    """Its derivatives (n, parameters), by the chain through q, covariance and amplitude of each component's node."""
    ln_amplitude, (epsilon, variance, normal, length) = _of_components(at, parts, beam)
    along = (at.covariance[0] @ normal[..., None]).squeeze(-1)
    # the normal turns with q
    turn = 2 * (along - dot(along, normal)[:, None] * normal) / length[:, None]
    by_variance = 0.5 * (epsilon**2 / variance - 1) / variance
    by_q = by_variance[:, None] * turn - (epsilon / variance)[:, None] * normal
    outer = by_variance[:, None, None] * normal[:, :, None] * normal[:, None, :]
    slopes = (
        columns.ln_amplitude
        + (by_q[:, None] @ columns.q).squeeze(1)
        + torch.einsum("nij,nijk->nk", outer, columns.covariance[0])
    )
    share = torch.softmax(ln_amplitude, 1)
    return (share[..., None] * slopes.unflatten(0, (-1, parts))).sum(1)


def _of_components(at: Nodes, parts: int, beam: BeamConfig) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """ln amplitude (n, parts), and of every component's node ε, the variance along the sphere's normal, that normal,
    and the length of q + s0/λ."""
    wavelength = as_tensor(beam.wavelength_A, at.q)
    toward = at.q + unit(as_tensor(beam.direction, at.q)) / wavelength
    length = torch.linalg.vector_norm(toward, dim=-1)
    normal, epsilon = toward / length[:, None], length - 1 / wavelength
    variance = dot(normal, (at.covariance[0] @ normal[..., None]).squeeze(-1))
    ln_amplitude = at.ln_amplitude - 0.5 * torch.log(variance) - 0.5 * epsilon**2 / variance
    return ln_amplitude.unflatten(0, (-1, parts)), (epsilon, variance, normal, length)
