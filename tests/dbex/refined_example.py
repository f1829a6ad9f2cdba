"""A refined still made from the shipped experiment and drawn photons, for tests of what is written and told."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
from dials.array_family import flex
from dxtbx.model.experiment_list import ExperimentList

from dbex.models import create_beam_config, create_crystal_config, create_detector_config
from dbex.physics.sigma_z import background_sigma_z
from dbex.still import (
    Amplitudes,
    BoxTable,
    Iteration,
    NoiseModel,
    Observed,
    ParameterEstimate,
    PixelTable,
    Refined,
    Still,
    Verdict,
)
from nanobrag_torch.config import override

ROOT = Path(__file__).resolve().parents[2]
PREDICTED_ONLY = 5
HALF_BOX = 5
READOUT_PHOTONS = 0.5


def example_still(name: str = "lys_nitr_10_6_0001") -> Still:
    """The shipped still's models and reflections, with an image that stays unread."""
    (experiment,) = ExperimentList.from_file(str(ROOT / "refGeom.expt"), check_format=False)
    table = flex.reflection_table.from_file(str(ROOT / "refGeom.refl"))
    observed = Observed(
        hkl=np.array(table["miller_index"]).reshape(-1, 3),
        panel=np.array(table["panel"]).astype(int),
        bbox=np.array(table["bbox"]).reshape(-1, 6)[:, :4],
        xy_px=np.array(table["xyzobs.px.value"])[:, :2],
        intensity=np.array(table["intensity.sum.value"]),
        variance=np.array(table["intensity.sum.variance"]),
        row=np.arange(len(table)),
    )
    return Still(
        name=name,
        experiment=experiment,
        table=table,
        observed=observed,
        images_photons=(),
        trusted=(),
        amplitudes=Amplitudes(np.zeros((0, 3), int), np.zeros(0), np.zeros(0), "F", "P 1", (27, 32, 34, 88, 71, 68)),
        noise=NoiseModel(1.0, (READOUT_PHOTONS,), "sigma_scalar"),
        crystal=create_crystal_config(experiment.crystal, experiment),
        detector=tuple(create_detector_config(panel, experiment.beam) for panel in experiment.detector),
        beam=create_beam_config(experiment.beam),
        files={"experiments": str(ROOT / "refGeom.expt"), "image": "/nowhere.cbf"},
        left_out={"reflections without a box": 2},
    )


def example_refined(still: Still | None = None, seed: int = 1) -> Refined:
    """A refinement that moved everything: a cell edge, the orientation, the distance and the wavelength; its pixels
    are Poisson deviates of round spots on a sloping background."""
    still = still or example_still()
    rng = np.random.default_rng(seed)
    row = np.concatenate([np.arange(len(still.observed)), np.full(PREDICTED_ONLY, -1)])
    position = np.concatenate([still.observed.xy_px, rng.uniform(100, 2300, (PREDICTED_ONLY, 2))])
    boxes, pixels = drawn_spots(position, row, still, rng)
    estimates = (
        ParameterEstimate("misset_x", "orientation", "deg", 0.0, 0.2, 0.0008, 0.001),
        ParameterEstimate("cell_a", "cell", "A", still.crystal.cell_a, still.crystal.cell_a * 1.001, 0.001, 0.002),
        ParameterEstimate("mosaicity", "mosaicity", "deg", 0.003, 0.031, 0.0005, 0.0006),
        ParameterEstimate("distance", "detector", "mm", still.detector[0].distance_mm, 231.4, 0.01, float("nan")),
        ParameterEstimate("wavelength", "beam", "A", 0.9768, 0.9770, 0.0001, 0.0001),
    )
    z = (pixels.data - pixels.background - pixels.bragg) / np.sqrt(pixels.variance)
    return Refined(
        still=still,
        crystal=override(still.crystal, {"cell_a": still.crystal.cell_a * 1.001, "misset_deg": (0.2, 0.0, 0.0),
                                         "mosaicity_deg": 0.031, "domain_size_A": 612.0}),
        detector=(override(still.detector[0], {"distance_mm": 231.4}),),
        beam=override(still.beam, {"wavelength_A": 0.9770}),
        estimates=estimates,
        covariance=np.diag([e.esd**2 for e in estimates]),
        boxes=boxes,
        pixels=pixels,
        background=background_sigma_z(pixels),
        figures={"chi2_per_pixel": float((z[pixels.used] ** 2).mean()), "chi2_core": 1.02, "median_cc": float("nan"),
                 "boxes": float(len(boxes)), "pixels": float(pixels.used.sum()), "core_pixels": 900.0,
                 "boxes_cc": 0.0},
        left_out={"boxes at the edge": 3, "hot pixels": 0},
        history=(Iteration("near", 1, 1.8, 100.0, 1e-3, 4.2, True), Iteration("near", 2, 1.01, 60.0, 1e-4, 0.1, True)),
        verdict=Verdict("good", (), ("the data ask for a bandwidth: add refine.beam=bandwidth",)),
        seconds={"solver": 0.1},
        worst_direction="distance against cell_a",
    )  # fmt: skip


def drawn_spots(position, row, still, rng):
    """Boxes at `position` (n, 2) and their pixels: round spots of 20 to 2000 photons; the corner pixel is not used."""
    n = len(position)
    bbox = np.column_stack([np.floor(position) - HALF_BOX, np.floor(position) + HALF_BOX + 1])[:, [0, 2, 1, 3]]
    bbox = bbox.astype(int)
    slow, fast = np.mgrid[0 : 2 * HALF_BOX + 1, 0 : 2 * HALF_BOX + 1]
    total = np.geomspace(20, 2000, n)
    x, y = bbox[:, 0, None, None] + fast, bbox[:, 2, None, None] + slow
    r2 = (x + 0.5 - position[:, 0, None, None]) ** 2 + (y + 0.5 - position[:, 1, None, None]) ** 2
    bragg = total[:, None, None] * np.exp(-r2 / 2 / 1.3**2) / (2 * np.pi * 1.3**2)
    background = np.broadcast_to(4.0 + 0.1 * fast, bragg.shape)
    data = rng.poisson(background + bragg) + rng.normal(0, READOUT_PHOTONS, bragg.shape)
    used = np.broadcast_to((slow > 0) | (fast > 0), bragg.shape)
    variance = background + bragg + READOUT_PHOTONS**2
    box = np.broadcast_to(np.arange(n)[:, None, None], bragg.shape)
    flat = [a.reshape(-1) for a in (box, np.zeros_like(box), y, x, data, background, 0 * bragg, bragg, variance, used)]
    z2 = ((data - background - bragg) ** 2 / variance).mean((1, 2))
    cc = np.array([np.corrcoef(d.ravel(), m.ravel())[0, 1] for d, m in zip(data, background + bragg, strict=True)])
    noise = np.sqrt(variance.sum((1, 2)))
    xy_mm = position * float(still.detector[0].pixel_size_mm)
    s1 = still.experiment.detector[0].get_lab_coord(flex.vec2_double(list(map(tuple, xy_mm))))
    intensity = total * 50.0
    intensity[0] = np.nan
    seen = np.where(row[:, None] >= 0, position + rng.normal(0, 0.1, position.shape), np.nan)
    hkl = np.concatenate([still.observed.hkl, np.arange(3 * PREDICTED_ONLY).reshape(-1, 3)])
    ones, zeros = np.ones(n), np.zeros(n, int)
    table = BoxTable(
        hkl=hkl, panel=zeros, bbox=bbox, xy_px=position, xy_before_px=position + 1.0,
        xy_observed_px=seen, xy_mm=xy_mm, s1=np.array(s1), delpsi_rad=0.001 * ones,
        excitation=0.3 * ones, partiality=0.9 * ones, partiality_esd=0.05 * ones, lp=0.8 * ones, intensity=intensity,
        variance=intensity**2 / 100, summed_intensity=1.1 * intensity, summed_variance=intensity**2 / 50,
        posterior_intensity=total * 49.0, posterior_variance=total,
        prior_intensity=total * 50.0, background_mean=4.5 * ones, cc=cc, chi2_per_pixel=z2,
        signal_to_noise=total / noise,
        pixels=zeros + int(used[0].sum()), weight=np.where(np.arange(n) == 1, 0.0, 1.0), row=row,
    )  # fmt: skip
    return table, PixelTable(*flat)


def renamed(refined: Refined, name: str, identifier: str) -> Refined:
    """The same refinement of a still of another name and identifier."""
    experiment = copy.copy(refined.still.experiment)
    experiment.identifier = identifier
    return replace(refined, still=replace(refined.still, name=name, experiment=experiment))
