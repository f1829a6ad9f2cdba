"""A pixel of a still traced from the still's files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from dbex.background import fit_planes, plane_basis
from dbex.errors import BadInput
from dbex.io import masks
from dbex.io.experiments import check_experiment, lookup_of_noise, read_experiments
from dbex.io.images import check_panels, in_photons, read_image
from dbex.io.measured import read_noise
from dbex.io.structure_factors import check_crystal, read_amplitudes
from dbex.measured_noise import mark_spots, trusted_pixels
from dbex.models import create_beam_config, create_crystal_config, create_detector_config
from dbex.physics.candidates import BoxPixels, pixels_of
from dbex.physics.forward import ForwardScene, scene_of
from dbex.physics.noise import counts_photons, noise_model
from dbex.rois import box_pixels
from dbex.still import Amplitudes, Bools, Floats, Image, NoiseModel
from dbex.tracing.chain import Counts, Trace, trace_pixel
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig
from nanobrag_torch.lattice import fractional_hkl, reciprocal_basis
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.profile import profile, rays, sensor_layers

#: Half the edge of the box around the pixel in which background and scale are found, pixels.
REACH_PX = 12
#: Pixels to which the model sends more than this part of the box's highest are spot and no background.
SPOT_PART = 0.01

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class TraceFiles:
    """The files of a still, and how its image is read, as for dbex.refine; without `reflections` only the model says
    where spots are."""

    experiments: str
    structure_factors: str
    reflections: str | None = None
    mask: str | None = None
    mtz_columns: str | None = None
    gain: float | None = None
    sigma_readout: float | None = None
    sigma_map: str | None = None
    noise: str | None = None
    index: int = 0

    def named(self) -> dict[str, str]:
        """The files that were given, by what they are."""
        names = ("experiments", "structure_factors", "reflections", "mask", "sigma_map", "noise")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def trace_of_still(
    files: TraceFiles, pixel: Sequence[int], scale: float | None = None, background: float | None = None
) -> Trace:
    """Trace a pixel (panel, slow, fast). Where they are not given, `scale` and `background` (photons) are the best ones
    of the pixels around it. Raises BadInput for files that cannot be used and a pixel that the detector has not."""
    experiment = _experiment(files)
    shapes = masks.panel_shapes(experiment.detector)
    _check_pixel(pixel, shapes)
    amplitudes, _ = read_amplitudes(files.structure_factors, files.mtz_columns)
    check_crystal(amplitudes, experiment.crystal, files.structure_factors)
    raw = read_image(experiment, f"experiment {files.index}")
    check_panels(raw, experiment.detector)
    counting = counts_photons(experiment.detector, raw.whole_numbers)
    trusted = trusted_pixels(experiment, raw, counting, files.mask)
    noise = _noise(files, experiment, counting, trusted)
    image = in_photons(raw, noise)[pixel[0]]

    panels = [create_detector_config(panel, experiment.beam) for panel in experiment.detector]
    crystal, beam = create_crystal_config(experiment.crystal, experiment), create_beam_config(experiment.beam)
    around = _box_around(pixel, shapes[pixel[0]])
    at = pixels_of([(pixel[0], around)], shapes[pixel[0]], torch.device("cpu"))
    scene = _scene(crystal, panels, beam, at, amplitudes, pixel)
    patch = _patch(scene, around, image, trusted[pixel[0]], noise.sigma_readout_photons[pixel[0]])
    planes, plane_from = _background(patch, _spots(files, shapes, patch, pixel[0]))
    scale, scale_from = (_scale(patch, planes), "fitted to the pixels around") if scale is None else (scale, "given")
    row = (pixel[1] - around[2]) * (around[1] - around[0]) + pixel[2] - around[0]
    counts = Counts(
        data=float(patch.data[row]),
        background=float(planes[row]) if background is None else background,
        sigma_readout=float(np.sqrt(patch.sigma_squared[row])),
        trusted=bool(patch.trusted[row]),
        background_from=plane_from if background is None else "given",
        scale_from=scale_from,
    )
    return trace_pixel(replace(scene, scale=scene.F.new_tensor(scale)), (pixel[0], pixel[1], pixel[2]), counts)


def _experiment(files: TraceFiles) -> Any:
    experiments = read_experiments(files.experiments)
    if not 0 <= files.index < len(experiments):
        raise BadInput(
            f"index is {files.index} but {files.experiments} has {len(experiments)} experiments: count from 0"
        )
    check_experiment(experiments[files.index], f"experiment {files.index}")
    return experiments[files.index]


def _words(pixel: Sequence[int]) -> str:
    return ",".join(map(str, pixel))


def _check_pixel(pixel: Sequence[int], shapes: Sequence[tuple[int, int]]) -> None:
    """Raise BadInput unless the detector has the pixel."""
    if len(pixel) != 3:
        raise BadInput(f"the pixel is {_words(pixel)}: expected panel,slow,fast")
    panel, slow, fast = pixel
    if not 0 <= panel < len(shapes):
        raise BadInput(f"the pixel is on panel {panel} but the detector has {len(shapes)}: count from 0")
    if not (0 <= slow < shapes[panel][0] and 0 <= fast < shapes[panel][1]):
        raise BadInput(
            f"the pixel is at slow {slow}, fast {fast} but panel {panel} has shape {shapes[panel]} (slow, fast): "
            "expected panel,slow,fast, counted from 0"
        )


def _noise(files: TraceFiles, experiment: Any, counting: bool, trusted: tuple[Bools, ...]) -> NoiseModel:
    if files.noise is not None:
        return read_noise(files.noise, len(trusted))
    shapes = masks.panel_shapes(experiment.detector)
    given = None if files.sigma_map is None else masks.read_map(files.sigma_map, shapes)
    lookup = lookup_of_noise(experiment, shapes)
    return noise_model(given, files.sigma_readout, lookup, gain=files.gain, counting=counting, trusted=trusted)


def _box_around(pixel: Sequence[int], shape: tuple[int, int]) -> Box:
    """x0, x1, y0 and y1 of the box around a pixel, clipped to its panel."""
    _, slow, fast = pixel
    return (
        max(fast - REACH_PX, 0),
        min(fast + REACH_PX + 1, shape[1]),
        max(slow - REACH_PX, 0),
        min(slow + REACH_PX + 1, shape[0]),
    )


def _scene(
    crystal: CrystalConfig,
    panels: Sequence[DetectorConfig],
    beam: BeamConfig,
    at: BoxPixels,
    amplitudes: Amplitudes,
    pixel: Sequence[int],
) -> ForwardScene:
    """The scene around a pixel at a scale of 1; where the list has no reflection there, that nearest to the pixel with
    the amplitude 0 that the model gives it."""
    F, hkl = torch.as_tensor(amplitudes.F), torch.as_tensor(amplitudes.hkl)
    try:
        return scene_of(crystal, panels, beam, at, hkl, F, F.new_ones(()))
    except ValueError:
        stacked, panel = stack_panels(panels, F), torch.tensor([pixel[0]])
        slow, fast = (F.new_tensor([place + 0.5]) for place in pixel[1:])
        ray = rays(stacked, beam, panel, slow, fast, sensor_layers(stacked, 1)[0], 1)
        nearest = torch.round(fractional_hkl(ray.q, reciprocal_basis(crystal, F))).long()
        return scene_of(crystal, panels, beam, at, nearest, F.new_zeros(1), F.new_ones(()))


@dataclass(frozen=True)
class _Patch:
    """The pixels (n,) of a box, row by row: data, variance of the read-out noise and the model at a scale of 1, in
    photons and their squares, and whether they are trusted."""

    box: Box
    data: Floats
    sigma_squared: Floats
    bragg: Floats
    trusted: Bools


def _patch(scene: ForwardScene, box: Box, image: Image, trusted: Bools, sigma: float | Floats) -> _Patch:
    where = (slice(box[2], box[3]), slice(box[0], box[1]))
    near = scene.near
    bragg = profile(
        scene.crystal, scene.panels, scene.beam, scene.hkl, scene.F, scene.at.pixels, near.pairs, near.panel
    )
    sigmas = np.broadcast_to(np.asarray(sigma, dtype=np.float64), image.shape)
    return _Patch(
        box,
        np.asarray(image[where], dtype=np.float64).ravel(),
        sigmas[where].ravel() ** 2,
        bragg.numpy(),
        trusted[where].ravel(),
    )


def _spots(files: TraceFiles, shapes: Sequence[tuple[int, int]], patch: _Patch, panel: int) -> Bools:
    """Which pixels (n,) of a patch are spot and no background: those of the table, or those of the model."""
    if files.reflections is None:
        bright: Bools = patch.bragg > SPOT_PART * patch.bragg.max()
        return bright
    spots = tuple(np.zeros(shape, dtype=bool) for shape in shapes)
    mark_spots(spots, read_experiments(files.experiments), files.index, files.reflections)
    x0, x1, y0, y1 = patch.box
    return spots[panel][y0:y1, x0:x1].ravel()


def _background(patch: _Patch, spots: Bools) -> tuple[Floats, str]:
    """The plane under a patch (n,), not below zero, and in words what it rests on."""
    bbox = np.array([patch.box], dtype=np.int64)
    basis = plane_basis(bbox, box_pixels(bbox))
    used = patch.trusted[None]
    planes = fit_planes(basis, patch.data[None], spots[None], used, patch.sigma_squared[None])
    value: Floats = np.maximum(basis[0] @ planes.coefs[0], 0.0)
    count = int(planes.inliers.sum())
    kind = "a plane through" if planes.good[0] else "too few pixels for a plane, or one below zero:"
    return value, f"{kind} {count} of the {len(value)} pixels around"


def _scale(patch: _Patch, background: Floats) -> float:
    """The scale, not below 0, with which the model fits the trusted pixels of a patch best."""
    bragg = np.where(patch.trusted, patch.bragg, 0.0)
    above = np.where(patch.trusted, patch.data - background, 0.0)
    weight = 1 / (np.maximum(np.where(patch.trusted, patch.data, 0.0), 0.0) + patch.sigma_squared + 1)
    total = float((weight * bragg**2).sum())
    return max(float((weight * bragg * above).sum()) / total, 0.0) if total > 0 else 0.0
