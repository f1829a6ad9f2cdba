"""The forward model of a still's boxes: three overrides and one call of the closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbex.models import create_beam_config, create_crystal_config, create_detector_config
from dbex.physics.candidates import BoxPixels, Candidates, box_pixels, candidates
from dbex.still import RefinementInputs
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, override
from nanobrag_torch.profile import profile
from nanobrag_torch.tensors import as_tensor


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
    dtype: torch.dtype | str | None = None,
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
    scene = forward_scene(
        inputs, detector, beam, crystal, experiment, hkl_indices, hkl_amplitudes, spot_scale_override,
        torch.zeros((), dtype=_named(dtype), device=device), crystal_overrides, detector_overrides, beam_overrides,
    )  # fmt: skip
    pixels, near = scene.at.pixels, scene.near
    bragg = profile(scene.crystal, scene.panels, scene.beam, scene.hkl, scene.F, pixels, near.pairs, near.panel)
    image = torch.zeros(tuple(inputs.target.shape), dtype=bragg.dtype, device=bragg.device)
    # In place: a second image of this size would take longer than its content.
    return image.index_put_(pixels, bragg * scene.scale)


@dataclass(frozen=True)
class ForwardScene:
    """What the forward model sums: the three records under their overrides, the pixels of the boxes, the nodes `near`
    them with their hkl (m, 3) and amplitudes F (m,), and the scale."""

    crystal: CrystalConfig
    panels: list[DetectorConfig]
    beam: BeamConfig
    at: BoxPixels
    near: Candidates
    hkl: Tensor
    F: Tensor
    scale: Tensor


def forward_scene(
    inputs: RefinementInputs,
    detector: Any,
    beam: Any,
    crystal: Any,
    experiment: Any,
    hkl_indices: Any,
    hkl_amplitudes: Any,
    spot_scale_override: float | Tensor | None,
    like: Tensor,
    crystal_overrides: Mapping[str, Any] | None = None,
    detector_overrides: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    beam_overrides: Mapping[str, Any] | None = None,
) -> ForwardScene:
    """The scene of `simulate_forward_torch`, whose arguments these are, in the dtype and on the device of `like`."""
    crystal_config = override(create_crystal_config(crystal, experiment), crystal_overrides)
    beam_config = override(create_beam_config(beam), beam_overrides)
    panels = panel_configs(detector, beam, detector_overrides)
    scale = as_tensor(inputs.global_scale_hint if spot_scale_override is None else spot_scale_override, like)
    hkl = _indices(hkl_indices).to(like.device)
    F = as_tensor(hkl_amplitudes if isinstance(hkl_amplitudes, Tensor) else np.array(hkl_amplitudes), like)
    return scene_of(crystal_config, panels, beam_config, box_pixels(inputs, like.device), hkl, F, scale)


def scene_of(
    crystal: CrystalConfig,
    panels: Sequence[DetectorConfig],
    beam: BeamConfig,
    at: BoxPixels,
    hkl: Tensor,
    F: Tensor,
    scale: Tensor,
) -> ForwardScene:
    """The scene of these records and pixels, with those of the reflections hkl (n, 3) that may reach them."""
    near = candidates(at, panels, beam, crystal, hkl, scale)
    return ForwardScene(crystal, list(panels), beam, at, near, hkl[near.index], F[near.index], scale)


def _named(dtype: torch.dtype | str | None) -> torch.dtype:
    """A dtype, also by its name ("float64"); float64 by default."""
    if dtype is None:
        return torch.float64
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype is {dtype!r}: expected torch.float64 or torch.float32, or its name")
    return found


def _indices(hkl: Any) -> Tensor:
    """Miller indices (n, 3), whole numbers, of a flex array, a numpy array or a tensor."""
    if isinstance(hkl, Tensor):
        return hkl.reshape(-1, 3).long()
    # flex.miller_index converts ten times faster by way of doubles.
    array = hkl.as_vec3_double().as_double().as_numpy_array() if hasattr(hkl, "as_vec3_double") else np.asarray(hkl)
    return torch.as_tensor(array).reshape(-1, 3).long()


def panel_configs(
    detector: Any, beam: Any, overrides: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
) -> list[DetectorConfig]:
    """One config a panel, with its overrides; a positive distance takes the sign of the panel's."""
    each = overrides if isinstance(overrides, Sequence) else [overrides or {}] * len(detector)
    if len(each) != len(detector):
        raise ValueError(f"detector_overrides gives {len(each)} overrides for {len(detector)} panels: give one a panel")
    result = []
    for panel, values in zip(detector, each, strict=True):
        config = create_detector_config(panel, beam)
        if "distance_mm" in values and float(config.distance_mm) < 0:
            values = {**values, "distance_mm": -abs(values["distance_mm"])}
        result.append(override(config, values))
    return result
