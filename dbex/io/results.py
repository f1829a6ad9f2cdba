"""A refined still as DIALS' files and as tables of pixels and boxes."""

import math
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from dials.array_family import flex
from dxtbx.model import MosaicCrystalSauter2014
from dxtbx.model.experiment_list import Experiment, ExperimentList

from dbex.models import to_dxtbx_beam, to_dxtbx_crystal, to_dxtbx_detector
from dbex.scoring import box_z
from dbex.still import BoxTable, PixelTable, Refined

FLAGS = flex.reflection_table.flags

#: Units of the columns of pixels.h5; what is not here has none.
UNITS = {
    **dict.fromkeys(("data", "background", "other_lattices", "bragg", "background_mean"), "photons"),
    "slow": "pixels",
    "fast": "pixels",
    "bbox": "pixels",
    "xy_px": "pixels",
    "xy_before_px": "pixels",
    "xy_observed_px": "pixels",
    "xy_mm": "mm",
    "s1": "1/angstrom",
    "delpsi_rad": "rad",
    **dict.fromkeys(("intensity", "summed_intensity", "posterior_intensity", "prior_intensity"), "photons"),
}
PIXEL_VARIANCE_UNIT = "photons^2"
#: Columns that DIALS made from the models before: no longer true, and remade by whoever needs them.
STALE = {"delpsical2", "delpsical.weights", "entering", "x_resid", "x_resid2", "y_resid", "y_resid2", "rlp", "d"}
#: What DIALS multiplies or divides intensities by, which these are corrected for already.
STALE |= {"lp", "qe", "dqe", "inverse_scale_factor"}
#: Beyond so many widths from the Ewald sphere a Gaussian's tail tells no full intensity: not for scaling.
K_FLAGGED = 2.0
MEANINGS = {
    "data": "counts before subtraction of the background",
    "background": "the box's plane, and the light of other lattices on the image",
    "other_lattices": "that light alone, as the fits of those lattices have it",
    "bragg": "the model without background",
    "variance": "of data, before subtraction of the background",
    "used": "1 where the pixel entered the fit",
    "box": "row of /boxes",
    "bbox": "x0, x1, y0, y1: x along fast, y along slow, upper bounds exclusive",
    "xy_px": "fast, slow; whole numbers are edges of pixels",
    "xy_before_px": "where the models that were read put it",
    "xy_observed_px": "the centroid that was read, NaN where there is none",
    "excitation": "excitation error over its rms along the normal of the Ewald sphere",
    "intensity": "full intensity from the pixels without prior, together with those of overlapping spots",
    "variance_boxes": "of intensity",
    "summed_intensity": "full intensity from the added up pixels of the spot",
    "posterior_intensity": "full intensity with the structure factors as prior",
    "partiality": "relative to a node on the Ewald sphere",
    "row": "row of the reflection table that was read, -1 where there was none",
}


def write_results(refined: Refined, folder: Path) -> None:
    """Write refined.expt, refined.refl and pixels.h5 into `folder`; raises OSError."""
    write_models(refined, folder)
    write_pixels(refined, folder / "pixels.h5")


def write_models(refined: Refined, folder: Path) -> None:
    """Write refined.expt and refined.refl into `folder`, without the pixels; raises OSError."""
    experiments: Any = ExperimentList([refined_experiment(refined)])
    experiments.as_file(str(folder / "refined.expt"))
    reflection_table(refined).as_file(str(folder / "refined.refl"))


def write_geometry(refined: Refined, file: Path) -> None:
    """Write beam and detector alone as an experiment list, for dials.import reference_geometry=; raises OSError."""
    found = refined_experiment(refined)
    experiments: Any = ExperimentList([Experiment(beam=found.beam, detector=found.detector)])
    experiments.as_file(str(file))


def write_composite(folders: list[Path], target: Path, name: str = "refined", relative_error: float = 0.0) -> None:
    """Put the refined.expt and refined.refl of several stills together in `target` as `name`.expt and `name`.refl, ids
    in the order of `folders`; `relative_error` is one that every full intensity has beside its own.

    A still that could not be refined leaves no gap in the ids: `dbex.input_id` has those of the .expt that was read.
    They are read back from disk, so that no image is held in memory. Raises OSError.
    """
    experiments: Any = ExperimentList()
    table, identifiers = flex.reflection_table(), []
    for index, folder in enumerate(folders):
        (experiment,) = experiments.from_file(str(folder / "refined.expt"), check_format=False)
        part = flex.reflection_table.from_file(str(folder / "refined.refl"))
        for known in list(part.experiment_identifiers().keys()):
            del part.experiment_identifiers()[known]
        set_ids(part, index)
        experiments.append(experiment)
        table.extend(part)
        identifiers.append(experiment.identifier)
    name_experiments(table, identifiers)
    table["intensity.prf.variance"] += relative_error**2 * table["intensity.prf.value"] ** 2
    experiments.as_file(str(target / f"{name}.expt"))
    table.as_file(str(target / f"{name}.refl"))


def set_ids(table: Any, index: int) -> None:
    """Make all rows those of one experiment, and of its image."""
    for name in ("id", "imageset_id"):
        table[name] = flex.int(len(table), index)


def name_experiments(table: Any, identifiers: list[str]) -> None:
    """Tie the ids of a table to the experiments' identifiers, where they have one."""
    for index, identifier in enumerate(identifiers):
        if identifier:
            table.experiment_identifiers()[index] = identifier


def refined_experiment(refined: Refined) -> Any:
    """The dxtbx experiment with everything that moved; the experiment that was read stays as it was."""
    before = refined.still.experiment
    return Experiment(
        identifier=before.identifier,
        beam=to_dxtbx_beam(refined.beam, before.beam),
        detector=to_dxtbx_detector(refined.detector, before.detector),
        goniometer=before.goniometer,
        scan=before.scan,
        crystal=to_dxtbx_crystal(refined.crystal, mosaic_crystal(before.crystal)),
        profile=None,
        imageset=before.imageset,
        scaling_model=None,
    )


def mosaic_crystal(crystal: Any) -> Any:
    """The crystal as the kind of dxtbx's that carries domain size and half mosaic angle (Sauter et al., 2014)."""
    return crystal if isinstance(crystal, MosaicCrystalSauter2014) else MosaicCrystalSauter2014(crystal)


def reflection_table(refined: Refined) -> Any:
    """The reflections as DIALS holds them, one row a box: what was read of them, and what the model says.

    `intensity.prf` is the full intensity without prior; it is NaN, without the flag, where no pixel determines it.
    `intensity.sum` is what DIALS divides by the partiality to have the same by summation; 0, without the flag, where
    the spot has no pixel. There is no `lp`: DIALS would multiply both by it, which are corrected.
    """
    boxes = refined.boxes
    table = kept_columns(refined.still.table, boxes.row)
    bbox = np.column_stack([boxes.bbox, np.zeros(len(boxes), int), np.ones(len(boxes), int)])
    scale = 1 / (float(refined.beam.wavelength_A) * np.linalg.norm(boxes.s1, axis=1, keepdims=True))
    zeros, summed = np.zeros(len(boxes)), np.isfinite(boxes.summed_intensity)
    set_ids(table, 0)
    table["dbex.input_id"] = flex.int(len(table), refined.still.index)
    table["panel"] = flex.size_t(boxes.panel.astype(np.uint64))
    table["miller_index"] = flex.miller_index(*(flex.int(column) for column in columns(boxes.hkl, np.int32)))
    table["bbox"] = flex.int6(*(flex.int(column) for column in columns(bbox, np.int32)))
    table["s1"] = vectors(boxes.s1 * scale)
    table["xyzcal.px"] = vectors(np.column_stack([boxes.xy_px, zeros]))
    table["xyzcal.mm"] = vectors(np.column_stack([positions_mm(refined), zeros]))
    for name, values in {
        "delpsical.rad": boxes.delpsi_rad,
        "intensity.prf.value": boxes.intensity,
        "intensity.prf.variance": boxes.variance,
        "intensity.sum.value": np.where(summed, boxes.partiality * boxes.summed_intensity, 0.0),
        "intensity.sum.variance": np.where(summed, boxes.partiality**2 * boxes.summed_variance, 0.0),
        "intensity.posterior.value": boxes.posterior_intensity,
        "intensity.posterior.variance": boxes.posterior_variance,
        "partiality": boxes.partiality,
        "partiality.esd": boxes.partiality_esd,
        "excitation": boxes.excitation,
        "dbex.lp": boxes.lp,
        "background.mean": boxes.background_mean,
        "profile.correlation": boxes.cc,
        "dbex.chi2": boxes.chi2_per_pixel,
        "dbex.z": box_z(refined.pixels, len(boxes)),
        "dbex.weight": boxes.weight,
        "dbex.other_lattices": other_lattices_esds(refined.pixels, len(boxes)),
    }.items():
        table[name] = flex.double(np.ascontiguousarray(values, dtype=float))
    table["flags"] = flags(boxes, table)
    name_experiments(table, [refined.still.experiment.identifier])
    return table


def positions_mm(refined: Refined) -> np.ndarray:
    """The centroids (n, 2) as DIALS has them in mm: where the ray meets the sensor's surface, parallax taken off."""
    detector = to_dxtbx_detector(refined.detector, refined.still.experiment.detector)
    boxes = refined.boxes
    pixels = zip(boxes.panel.tolist(), boxes.xy_px.tolist(), strict=True)
    return np.array([detector[panel].pixel_to_millimeter(xy) for panel, xy in pixels]).reshape(-1, 2)


def kept_columns(observed: Any, row: np.ndarray) -> Any:
    """A table of len(row) rows with the columns of `observed`, zero where a row is -1; neither the pixels are kept nor
    what depended on the models."""
    table = flex.reflection_table(len(row))
    known = flex.size_t(np.flatnonzero(row >= 0).astype(np.uint64))
    source = flex.size_t(row[row >= 0].astype(np.uint64))
    for name in set(observed.keys()) - {"shoebox"} - STALE:
        column = type(observed[name])(len(row))
        column.set_selected(known, observed[name].select(source))
        table[name] = column
    return table


def flags(boxes: BoxTable, table: Any) -> Any:
    """Every row predicted; in the refinement where its pixels had weight; integrated where they determine it; excluded
    from scaling far from the Ewald sphere."""
    kept = np.array(table["flags"], dtype=np.int64) if "flags" in table else np.zeros(len(boxes), np.int64)
    ours = FLAGS.predicted | FLAGS.used_in_refinement | FLAGS.integrated | FLAGS.excluded_for_scaling
    used = (boxes.pixels > 0) & (boxes.weight > 0)
    with np.errstate(invalid="ignore"):
        measured = np.isfinite(boxes.intensity) & np.isfinite(boxes.variance) & (boxes.variance > 0)
    values = (kept & ~int(ours)) | int(FLAGS.predicted)
    values |= np.where(boxes.row >= 0, int(FLAGS.indexed), 0)
    values |= np.where(used, int(FLAGS.used_in_refinement), 0)
    values |= np.where(measured, int(FLAGS.integrated_prf), 0)
    values |= np.where(np.isfinite(boxes.summed_intensity), int(FLAGS.integrated_sum), 0)
    values |= np.where(np.abs(boxes.excitation) > K_FLAGGED, int(FLAGS.excluded_for_scaling), 0)
    return flex.size_t(values.astype(np.uint64))


def other_lattices_esds(pixels: PixelTable, boxes: int) -> np.ndarray:
    """By how many esds the light of other lattices would have raised the intensity of each box, had it not been taken
    off: that light weighed with the spot's own profile over the variance."""
    used = pixels.used
    box, weight = pixels.box[used], np.abs(pixels.bragg[used]) / pixels.variance[used]
    projected = np.bincount(box, weight * pixels.other_lattices[used], boxes)
    curvature = np.bincount(box, weight * np.abs(pixels.bragg[used]), boxes)
    return projected / np.sqrt(np.maximum(curvature, np.finfo(float).tiny))


def columns(values: np.ndarray, dtype: type) -> list[np.ndarray]:
    """The columns of an array (n, m), each contiguous."""
    return [np.ascontiguousarray(column, dtype=dtype) for column in values.T]


def vectors(values: np.ndarray) -> Any:
    """An array (n, 3) as flex."""
    return flex.vec3_double(*(flex.double(column) for column in columns(values, np.float64)))


def write_pixels(refined: Refined, file: Path) -> None:
    """Write /pixels, one row a pixel, and /boxes, one row a box, with units and meanings as attributes."""
    with h5py.File(file, "w") as stream:
        stream.attrs["still"] = refined.still.name
        stream.attrs["chi2"] = "mean of (data - background - bragg)^2 / variance over the pixels with used = 1"
        for program in ("dbex", "numpy", "h5py"):
            stream.attrs[f"version_{program}"] = metadata.version(program)
        for group, record in (("pixels", refined.pixels), ("boxes", refined.boxes)):
            for item in fields(record):
                values = getattr(record, item.name)
                dataset = stream.create_dataset(
                    f"{group}/{item.name}",
                    data=values.astype(compact_type(values)),
                    compression="gzip",
                    compression_opts=4,
                    shuffle=True,
                )
                describe(dataset, group, item.name)


def compact_type(values: np.ndarray) -> type:
    """The type to store: 32-bit whole numbers, bytes for yes and no, doubles."""
    if values.dtype == np.bool_:
        return np.uint8
    return np.int32 if np.issubdtype(values.dtype, np.integer) else np.float64


def describe(dataset: Any, group: str, name: str) -> None:
    """Attach unit and meaning to a column of pixels.h5."""
    dataset.attrs["unit"] = PIXEL_VARIANCE_UNIT if name.endswith("variance") else UNITS.get(name, "1")
    meaning = MEANINGS.get(f"{name}_{group}", MEANINGS.get(name))
    if meaning:
        dataset.attrs["meaning"] = meaning


def plain(value: Any) -> Any:
    """`value` as strict JSON knows it: arrays and tensors as lists, NaN and infinity as None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
