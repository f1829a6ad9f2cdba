"""The files of a still, or of several, as named records."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbex.background import background_image, fit_planes, plane_basis
from dbex.errors import BadInput
from dbex.io import masks, reflections
from dbex.io.experiments import check_experiment, lookup_of_noise, read_experiments, with_crystal
from dbex.io.images import RawImage, check_panels, image_path, in_photons, read_image, within_trusted_range
from dbex.io.measured import read_noise
from dbex.io.structure_factors import check_crystal, read_amplitudes
from dbex.models import (
    carries_widths,
    create_beam_config,
    create_crystal_config,
    create_detector_config,
    panel_groups,
)
from dbex.physics.noise import counts_photons, noise_model
from dbex.rois import Boxes, box_pixels, padded_boxes
from dbex.spot_widths import widths_from_spots
from dbex.still import Bools, Floats, Image, MaskCheck, NoiseModel, Observed, Still
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig

#: Pixels around a spot's own box that its tails may reach, which no background is taken from.
TAIL_PX = 1


def read_stills(
    expt_path: str | Path,
    refl_path: str | Path,
    mtz_path: str | Path,
    mask_path: str | Path | None = None,
    *,
    mtz_columns: str | None = None,
    gain: float | None = None,
    sigma_readout: float | None = None,
    sigma_map: str | Path | None = None,
    trusted_max: float | None = None,
    noise: str | Path | None = None,
) -> "Stills":
    """The stills of an experiment list, read one after the other while they are iterated over; what they share is
    read at once.

    `gain` is in image units per photon; `sigma_readout`, the map and `trusted_max`, above which no pixel is trusted,
    are in image units; `noise` is a file of dbex.estimate_noise, with them for each panel. Raises BadInput, here for
    the shared files, and at a still for what is wrong with it; iteration can go on with the next one.
    """
    return Stills(
        expt_path, refl_path, mtz_path, mask_path, mtz_columns, gain, sigma_readout, sigma_map, trusted_max, noise
    )


@dataclass(frozen=True)
class Shared:
    """What all stills of a run share: the files and numbers of `read_stills`, None where not given."""

    structure_factors: str
    mask: str | None = None
    mtz_columns: str | None = None
    gain: float | None = None
    sigma_readout: float | None = None
    sigma_map: str | None = None
    trusted_max: float | None = None
    noise: str | None = None


@dataclass(frozen=True)
class StillFiles:
    """The files of stills and how they are read: small, so that another process can open them for itself."""

    experiments: str
    reflections: str
    shared: Shared

    def stills(self) -> "Stills":
        """The stills, opened once a process. Raises BadInput."""
        return _opened(self)

    def read(self, index: int) -> Still:
        """One still. Raises BadInput."""
        return self.stills().read(index)


@lru_cache(maxsize=1)
def _opened(files: StillFiles) -> "Stills":
    return Stills(files.experiments, files.reflections, *astuple(files.shared))


class Stills:
    """The stills of an experiment list: `len`, iteration, `read(index)` for one, `images()` and `read_lattices` for
    all those that share an image."""

    def __init__(
        self,
        expt_path: str | Path,
        refl_path: str | Path,
        mtz_path: str | Path,
        mask_path: str | Path | None,
        mtz_columns: str | None,
        gain: float | None,
        sigma_readout: float | None,
        sigma_map: str | Path | None,
        trusted_max: float | None = None,
        noise: str | Path | None = None,
    ) -> None:
        if noise and (gain or sigma_readout or sigma_map):
            raise BadInput(
                "noise= holds gain and read-out noise of each panel: expected no gain=, sigma_readout= or "
                "sigma_map= beside it"
            )
        self.experiments = read_experiments(expt_path)
        self.table = reflections.read_table(refl_path)
        self.amplitudes, self.miller_array = read_amplitudes(mtz_path, mtz_columns)
        self.files = {"experiments": expt_path, "reflections": refl_path, "structure_factors": mtz_path}
        self.files |= {
            name: path for name, path in (("mask", mask_path), ("sigma_map", sigma_map), ("noise", noise)) if path
        }
        self.gain, self.sigma_readout, self.trusted_max = gain, sigma_readout, trusted_max
        self._lattices = by_image(self.experiments)

    def __len__(self) -> int:
        return len(self.experiments)

    def __iter__(self) -> Iterator[Still]:
        return _Reading(self)

    def images(self) -> list[tuple[int, ...]]:
        """The indices of the experiments on each image, which are to be refined together."""
        return list(dict.fromkeys(self._lattices))

    def read_lattices(self, indices: Sequence[int]) -> list[Still | BadInput]:
        """Stills of one image, which is read once and which they share; in the place of one that cannot be read stands
        why."""
        shared = _SharedImage()
        found: list[Still | BadInput] = []
        for index in indices:
            try:
                found.append(self.read(index, shared))
            except BadInput as error:
                found.append(error.with_traceback(None))  # which would keep the image
        return found

    def read(self, index: int, shared: "_SharedImage | None" = None, crystal: Any = None) -> Still:
        """One still, its image `shared` with other lattices, its crystal another of dxtbx's if one is given. Raises
        BadInput."""
        shared = shared or _SharedImage()
        experiment, name = self.experiments[index], self.name(index)
        experiment = experiment if crystal is None else with_crystal(experiment, crystal)
        detector, beam = experiment.detector, experiment.beam
        self.check(index)
        observed, left_out = self.observed(index)
        raw = shared.raw(experiment, name)
        counting = counts_photons(detector, raw.whole_numbers)
        trusted = self.trusted(index, raw, counting, observed)
        noise = self.noise(index, counting, trusted)
        images = shared.photons(noise)
        configs = tuple(create_detector_config(panel, beam) for panel in detector)
        return Still(
            name=name,
            experiment=experiment,
            table=self.table,
            observed=observed,
            images_photons=images,
            trusted=trusted,
            amplitudes=self.amplitudes,
            noise=noise,
            crystal=_crystal_config(experiment, images, trusted, observed, configs),
            detector=configs,
            beam=create_beam_config(beam),
            files={key: str(path) for key, path in self.files.items()} | {"image": str(raw.path)},
            left_out=left_out,
            index=index,
            mask_check=self.mask_check(index, raw, counting, observed),
        )

    def bench(self, index: int) -> tuple[tuple[DetectorConfig, ...], BeamConfig]:
        """Detector and beam of a still, without its image. Raises BadInput."""
        self.check(index)
        experiment = self.experiments[index]
        panels = tuple(create_detector_config(panel, experiment.beam) for panel in experiment.detector)
        return panels, create_beam_config(experiment.beam)

    def panel_groups(self, index: int, level: int) -> list[tuple[str, tuple[int, ...]]]:
        """The groups of panels at a level of the hierarchy of a still's detector, by name."""
        return panel_groups(self.experiments[index].detector, level)

    def name(self, index: int) -> str:
        """The image's name without its ending; with its number where one file holds several, and that of the lattice
        where an image does."""
        imageset = self.experiments[index].imageset
        if imageset is None:
            return f"experiment {index}"
        stem = image_path(self.experiments[index]).stem
        number = imageset.indices()[0]
        name = f"{stem}_{number:05d}" if number else stem
        lattices = self._lattices[index]
        return f"{name}, lattice {lattices.index(index) + 1}" if len(lattices) > 1 else name

    def check(self, index: int) -> None:
        """Raise BadInput unless the models make sense and the structure factors are of this crystal."""
        check_experiment(self.experiments[index], self.name(index))
        check_crystal(self.amplitudes, self.experiments[index].crystal, self.files["structure_factors"])

    def observed(self, index: int) -> tuple[Observed, dict[str, int]]:
        """The indexed spots whose boxes lie on their panel, clipped to it, and counts of those left out."""
        path, shapes = self.files["reflections"], masks.panel_shapes(self.experiments[index].detector)
        rows = reflections.rows_of(self.table, self.experiments, index, path)
        everything = reflections.observed(self.table, rows, len(shapes), path)
        boxes = padded_boxes(reflections.bboxes(self.table)[rows], everything.panel, shapes, 0, 0)
        part = boxes.row
        return Observed(
            everything.hkl[part],
            everything.panel[part],
            boxes.bbox,
            everything.xy_px[part],
            everything.intensity[part],
            everything.variance[part],
            rows[part],
        ), {name: count for name, count in boxes.left_out.items() if count}

    def trusted(self, index: int, raw: RawImage, counting: bool, observed: Observed) -> tuple[Bools, ...]:
        """Pixels that the mask, the experiment's own mask, the format and the trusted range all trust."""
        experiment = self.experiments[index]
        shapes = masks.panel_shapes(experiment.detector)
        together = within_trusted_range(raw, experiment.detector, counting, self.trusted_max)
        for mask in (raw.format_mask, *self.masks(index)):
            if mask is not None:
                masks.check_shapes(mask, shapes, "mask")
                masks.check_polarity(mask, observed.panel, observed.xy_px)
                together = tuple(a & b for a, b in zip(together, mask, strict=True))
        return together

    def masks(self, index: int) -> list[tuple[Bools, ...]]:
        """The mask that was given and the one that the experiment names."""
        experiment = self.experiments[index]
        given = (self.files.get("mask"), experiment.imageset.external_lookup.mask.filename)
        return [masks.read_mask(path, masks.panel_shapes(experiment.detector)) for path in given if path]

    def mask_check(self, index: int, raw: RawImage, counting: bool, observed: Observed) -> MaskCheck | None:
        """Whether the masks are of this image: what they hide of its spots, and trust of its dead pixels."""
        found = self.masks(index)
        if not found:
            return None
        together = [np.logical_and.reduce(panels) for panels in zip(*found, strict=True)]
        dead = [panel < 0 if counting else np.zeros(panel.shape, bool) for panel in raw.panels]
        return masks.mask_check(together, observed.panel, observed.xy_px, dead)

    def noise(self, index: int, counting: bool, trusted: tuple[Bools, ...]) -> NoiseModel:
        """Gain and read-out noise with where they came from."""
        if "noise" in self.files:
            return read_noise(self.files["noise"], len(trusted))
        given, lookup = self.maps_of_noise(index)
        return noise_model(given, self.sigma_readout, lookup, gain=self.gain, counting=counting, trusted=trusted)

    def maps_of_noise(self, index: int) -> tuple[tuple[Floats, ...] | None, tuple[Floats, ...] | None]:
        """The map that was given and the one that the experiment carries, in image units, each None if absent."""
        shapes = masks.panel_shapes(self.experiments[index].detector)
        path = self.files.get("sigma_map")
        return masks.read_map(path, shapes) if path else None, lookup_of_noise(self.experiments[index], shapes)


def _crystal_config(
    experiment: Any,
    images: Sequence[NDArray[Any]],
    trusted: Sequence[Bools],
    observed: Observed,
    detector: Sequence[DetectorConfig],
) -> CrystalConfig:
    """The crystal with the block size and mosaicity that it carries, or else those of its spots."""
    crystal = experiment.crystal
    if not carries_widths(crystal):
        widths = widths_from_spots(images, trusted, observed, detector, create_beam_config(experiment.beam))
        if widths:
            return create_crystal_config(crystal, experiment, domain_size_A=widths[0], mosaicity_deg=widths[1])
    return create_crystal_config(crystal, experiment)


def by_image(experiments: Any) -> list[tuple[int, ...]]:
    """For each experiment the indices of those on its image; one without a single image is alone."""
    places: dict[tuple[str, int], list[int]] = {}
    for index, experiment in enumerate(experiments):
        images = experiment.imageset
        single = images is not None and len(images) == 1
        key = (str(image_path(experiment)), int(images.indices()[0])) if single else ("", index)
        places.setdefault(key, []).append(index)
    together = {index: tuple(indices) for indices in places.values() for index in indices}
    return [together[index] for index in range(len(experiments))]


class _SharedImage:
    """An image that is read for the first of its lattices, and turned into photons once for each set of gains."""

    def __init__(self) -> None:
        self._raw: RawImage | None = None
        self._photons: dict[Any, tuple[Image, ...]] = {}

    def raw(self, experiment: Any, name: str) -> RawImage:
        """The image as stored. Raises BadInput where it is not one of this experiment's detector."""
        if self._raw is None:
            self._raw = read_image(experiment, name)
        check_panels(self._raw, experiment.detector)
        return self._raw

    def photons(self, noise: NoiseModel) -> tuple[Image, ...]:
        """The image in photons, once it was read."""
        units = noise.gain, noise.panels
        if units not in self._photons and self._raw is not None:
            self._photons[units] = in_photons(self._raw, noise)
        return self._photons[units]


class _Reading:
    """Reads the next still at every step; one that raises does not end the iteration, as it would a generator."""

    def __init__(self, stills: Stills) -> None:
        self.stills, self.index = stills, 0

    def __iter__(self) -> "Iterator[Still]":
        return self

    def __next__(self) -> Still:
        if self.index >= len(self.stills):
            raise StopIteration
        self.index += 1
        return self.stills.read(self.index - 1)


class DataLoad:
    """One still as arrays [panel, slow, fast] in the image's units, for scripts.

    `args` has `mtzFile`, `mtzCol` ("F,SIGF"), `exptName`, `exptIdx`, `reflName`, and may have `maskFile`, `sigma_map`
    and `gain` (image units per photon, 1 where it is not given, for the weights of the background planes).

    `F` is a cctbx miller array in P1 with Bijvoet mates; `Expt`, `Refs`, `detector`, `beam` and `crystal` are dxtbx's
    and DIALS' own, `Refs` the indexed rows in the order of the boxes. `bbox` (n, 4) are boxes padded as in dbex.rois
    on panels `pids` (n,), `frames` (n, 2) their z0 and z1, `left_out` counts what was dropped. `tilt_coefs` (n, 3)
    are the planes of dbex.background in image units, `bg_is_good` (n,) whether each can be used, `background_image`
    the planes, -1 outside the boxes. `trusted_mask` is a tuple of flex.bool a panel, True = trusted.
    `sigma_readout_map` is in image units, or None where neither args nor the experiment have a map;
    `sigma_readout_source` is sigma_map, external_lookup, photon_counting or None. Raises BadInput.
    """

    def __init__(self, args: Any) -> None:
        index, gain = int(args.exptIdx), getattr(args, "gain", None)
        mask, sigma_map = getattr(args, "maskFile", None), getattr(args, "sigma_map", None)
        stills = Stills(args.exptName, args.reflName, args.mtzFile, mask, args.mtzCol, gain, None, sigma_map)
        if not 0 <= index < len(stills):
            raise BadInput(f"exptIdx is {index} but {args.exptName} has {len(stills)} experiments: count from 0")
        stills.check(index)
        self.args = args
        self.F = stills.miller_array
        self.Expt = stills.experiments[index]
        self.detector, self.beam, self.crystal = self.Expt.detector, self.Expt.beam, self.Expt.crystal
        raw = read_image(self.Expt, stills.name(index))
        if len({panel.shape for panel in raw.panels}) > 1:
            raise BadInput("panels differ in shape: DataLoad needs one array for all; use read_stills instead")
        self.data: Floats = np.stack(raw.panels).astype(np.float64)
        observed, dropped = stills.observed(index)
        counting = counts_photons(self.detector, raw.whole_numbers)
        trusted = stills.trusted(index, raw, counting, observed)
        self.trusted_mask = masks.as_flex(trusted)
        boxes = _boxes_of(stills, index, observed)
        self.Refs = reflections.select(stills.table, observed.row[boxes.row])
        self.bbox, self.pids, self.frames = boxes.bbox, boxes.panel, boxes.frames
        self.left_out = {name: dropped.get(name, 0) + count for name, count in boxes.left_out.items()}
        self.sigma_readout_map, self.sigma_readout_source = _sigma(stills, index, counting, trusted)
        self._fit_background(boxes, np.stack(trusted), 1.0 if gain is None else gain)

    def _fit_background(self, boxes: Boxes, trusted: Bools, gain: float) -> None:
        pixels = box_pixels(boxes.bbox)
        at = (boxes.panel[:, None], pixels.slow, pixels.fast)
        spots = _spots(boxes, self.data.shape)
        sigma = 0.0 if self.sigma_readout_map is None else self.sigma_readout_map[at] / gain
        basis = plane_basis(boxes.bbox, pixels)
        planes = fit_planes(basis, self.data[at] / gain, spots[at], trusted[at] & pixels.present, sigma**2)
        self.tilt_coefs, self.bg_is_good = planes.coefs * gain, planes.good
        image = background_image(self.data.shape, boxes.panel, boxes.bbox, pixels, planes)
        self.background_image = np.where(image >= 0, image * gain, -1.0)


def _boxes_of(stills: Stills, index: int, observed: Observed) -> Boxes:
    """Padded boxes around the observed spots, frames as the table has them."""
    bbox = np.hstack([observed.bbox, reflections.bboxes(stills.table)[observed.row, 4:]])
    shapes = masks.panel_shapes(stills.experiments[index].detector)
    return padded_boxes(bbox, observed.panel, shapes)


def _spots(boxes: Boxes, shape: tuple[int, ...]) -> Bools:
    """Where spots and their tails are, [panel, slow, fast]."""
    spots = np.zeros(shape, dtype=bool)
    for panel, (x0, x1, y0, y1) in zip(boxes.panel, boxes.core, strict=True):
        spots[panel, max(y0 - TAIL_PX, 0) : y1 + TAIL_PX, max(x0 - TAIL_PX, 0) : x1 + TAIL_PX] = True
    return spots


def _sigma(stills: Stills, index: int, counting: bool, trusted: tuple[Bools, ...]) -> tuple[Floats | None, str | None]:
    """A map of σ in image units and its source; (None, None) where a scalar is still to be given."""
    given, lookup = stills.maps_of_noise(index)
    if given is None and lookup is None:
        return None, "photon_counting" if counting else None
    noise = noise_model(given, None, lookup, gain=1.0, counting=counting, trusted=trusted)
    return np.stack([np.asarray(panel) for panel in noise.sigma_readout_photons]), noise.provenance
