"""The forward model of a still's boxes: three overrides and one call of the closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbex.models import create_beam_config, create_crystal_config, create_detector_config
from dbex.still import RefinementInputs
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, override
from nanobrag_torch.lattice import fractional_hkl, reciprocal_basis
from nanobrag_torch.panel import pixel_positions, stack_panels
from nanobrag_torch.profile import Pairs, centroids, profile
from nanobrag_torch.spread import node_covariance
from nanobrag_torch.tensors import as_tensor, unit

#: Nodes farther from the Ewald sphere than this many widths give nothing, but the nearest of a box is always kept.
K_MAX = 8.0
#: Nodes are looked for this many pixels beyond a box, whose tails reach into it.
REACH_PX = 4


def simulate_forward_torch(
    inputs: RefinementInputs,
    detector: Any,
    beam: Any,
    crystal: Any,
    experiment: Any,
    hkl_indices: Any,
    hkl_amplitudes: Any,
    spot_scale_override: float | Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    crystal_overrides: Mapping[str, Any] | None = None,
    detector_overrides: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    beam_overrides: Mapping[str, Any] | None = None,
) -> Tensor:
    """Bragg intensities [panel, slow, fast] in photons on the pixels of the inputs' boxes, 0 elsewhere.

    `detector`, `beam`, `crystal` and `experiment` are dxtbx's. `hkl_indices` (n, 3) and `hkl_amplitudes` (n,) may be
    flex arrays, numpy arrays or tensors; amplitudes of P1 with Friedel mates apart. The intensities are multiplied by
    `spot_scale_override`, or by the inputs' `global_scale_hint`. Overrides replace fields of the configs of
    nanobrag_torch and keep their place in the autograd graph; `detector_overrides` act on every panel, or are one
    mapping a panel. A positive `distance_mm` means the panel where it stands: its sign is that of the panel. dtype and
    device default to float64 on the CPU. Raises KeyError for an unknown field, with the nearest one.
    """
    dtype = torch.float64 if dtype is None else dtype
    like = torch.zeros((), dtype=dtype, device=device)
    crystal_config = override(create_crystal_config(crystal, experiment), crystal_overrides)
    beam_config = override(create_beam_config(beam), beam_overrides)
    panels = panel_configs(detector, beam, detector_overrides)
    scale = inputs.global_scale_hint if spot_scale_override is None else spot_scale_override
    hkl = torch.as_tensor(np.asarray(hkl_indices), device=device).reshape(-1, 3).long()
    F = as_tensor(hkl_amplitudes if isinstance(hkl_amplitudes, Tensor) else np.array(hkl_amplitudes), like)
    pixels = box_pixels(inputs, like)
    candidates = box_candidates(inputs, panels, beam_config, crystal_config, hkl, like)
    bragg = profile(
        crystal_config, panels, beam_config, hkl[candidates.index], F[candidates.index], pixels, candidates.pairs, candidates.panel
    )
    image = torch.zeros(inputs.target.shape, dtype=dtype, device=device)
    return image.index_put(pixels, bragg) * as_tensor(scale, like)


def panel_configs(
    detector: Any, beam: Any, overrides: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
) -> list[DetectorConfig]:
    """One config a panel, with its overrides; a positive distance takes the sign of the panel's."""
    each = overrides if isinstance(overrides, Sequence) else [overrides or {}] * len(detector)
    result = []
    for panel, values in zip(detector, each, strict=True):
        config = create_detector_config(panel, beam)
        if "distance_mm" in values and float(config.distance_mm) < 0:
            values = {**values, "distance_mm": -abs(values["distance_mm"])}
        result.append(override(config, values))
    return result


def box_pixels(inputs: RefinementInputs, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Panel, slow and fast (n,) of every pixel in a box, once each, in the order of the image."""
    inside = np.zeros(inputs.target.shape, bool)
    for panel, (x0, x1, y0, y1) in inputs.panel_slices:
        inside[panel, y0:y1, x0:x1] = True
    panel, slow, fast = (torch.as_tensor(column, device=like.device) for column in np.nonzero(inside))
    return panel, slow, fast


@dataclass(frozen=True)
class Candidates:
    """The nodes that may reach the boxes: `index` (m,) into the list of hkl, `panel` (m,), and their pairs with the
    pixels of box_pixels."""

    index: Tensor
    panel: Tensor
    pairs: Pairs


def box_candidates(
    inputs: RefinementInputs,
    detector: Sequence[DetectorConfig],
    beam: BeamConfig,
    crystal: CrystalConfig,
    hkl: Tensor,
    like: Tensor,
) -> Candidates:
    """Nodes nearest to a pixel in or near a box. Which nodes they are is no smooth function: it has no gradient."""
    place = np.full(inputs.target.shape, -1, np.int64)
    pixels = box_pixels(inputs, like)
    place[tuple(column.cpu().numpy() for column in pixels)] = np.arange(len(pixels[0]))
    index_of = _lookup(hkl.cpu().numpy())
    with torch.no_grad():
        panels = stack_panels(detector, like)
        A = reciprocal_basis(crystal, like)
        k0 = unit(as_tensor(beam.direction, like)) / as_tensor(beam.wavelength_A, like)
        nodes: dict[tuple[int, int], int] = {}
        pairs = []
        for panel, (x0, x1, y0, y1) in inputs.panel_slices:
            at = [torch.arange(a - REACH_PX, b + REACH_PX, device=like.device) for a, b in ((y0, y1), (x0, x1))]
            slow, fast = (grid.flatten().to(like.dtype) + 0.5 for grid in torch.meshgrid(*at, indexing="ij"))
            s1 = unit(pixel_positions(panels, torch.full((len(slow),), panel, device=like.device), slow, fast))
            q = s1 / as_tensor(beam.wavelength_A, like) - k0
            near = torch.unique(torch.round(fractional_hkl(q, A)).long(), dim=0)
            k = torch.abs(centroids(near.to(like.dtype) @ A.T, node_covariance(crystal, beam, near.to(like.dtype) @ A.T), beam).k)
            kept = near[(k < K_MAX) | (k == k.min())]
            found = [index_of[h] for h in map(tuple, kept.tolist()) if h in index_of]
            mine = place[panel, y0:y1, x0:x1].reshape(-1)
            for i in found:
                node = nodes.setdefault((i, panel), len(nodes))
                pairs.append(np.stack([mine, np.full_like(mine, node)]))
    if not pairs:
        raise ValueError("no reflection of the list lies near the boxes: expected hkl of the crystal that they show")
    unique = np.unique(np.concatenate(pairs, 1), axis=1)
    names = torch.as_tensor(np.array(list(nodes)), device=like.device)
    pixel, node = (torch.as_tensor(column, device=like.device) for column in unique)
    return Candidates(names[:, 0], names[:, 1], Pairs(pixel, node))


def _lookup(hkl: np.ndarray) -> dict[tuple[int, ...], int]:
    return {tuple(h): i for i, h in enumerate(hkl.tolist())}
