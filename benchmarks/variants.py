"""`python -m benchmarks.variants`: stills like the shipped one but for one thing, drawn, refined, and compared.

They are drawn by the sampled sum, which knows nothing of the closed form that is refined. The true crystal and detector
are those to which the shipped still refines; the start is that of the shipped files, wrong on purpose. The orientation
that a still can show is the mean over its mosaic domains and steps of the spindle.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.still import FILES, ROOT
from dbex.data_load import read_stills
from dbex.refinement.conclude import rows
from dbex.refinement.parameters import CELL, parametrisation
from dbex.refinement.predictions import predict
from dbex.refinement.refine import refine_still
from dbex.refinement.rounds import resolution_limit
from dbex.refinement.settings import Settings
from nanobrag_torch.config import ScanConfig
from nanobrag_torch.lattice import orientation, reciprocal_basis
from nanobrag_torch.mosaic import MOSAIC_RMS_PER_SPREAD, domain_rotations
from nanobrag_torch.panel import Pixels, captured, obliquity, pixel_positions, stack_panels
from nanobrag_torch.profile import Layer, centroids, intersection_px, layer_depth, ln_integral, sensor_layers
from nanobrag_torch.rotation import vector_from_rotation
from nanobrag_torch.simulate import simulate
from nanobrag_torch.source import SampledRange, sampled_beam
from nanobrag_torch.spindle import scan_rotations
from nanobrag_torch.structure_factors import from_list
from nanobrag_torch.units import R_E_SQUARED_M2

TRUE_CELL = (27.444278, 32.001668, 34.56976, 88.8686, 71.5500, 68.2789)
SIZE_A, DOMAINS, LAYERS = 780.0, 60, 4
#: Full widths: three wavelengths, three horizontal directions.
BANDWIDTH, DIVERGENCE_MRAD = 0.0003, 0.1
F_ERROR = 0.027
DETECTOR = ("distance", "shift")
#: The bars: degrees, per cent, degrees, mm, pixels; all within this many esds.
BARS = {"orientation": 0.002, "lengths": 0.01, "angles": 0.004, "distance": 0.025, "predicted": 0.03, "z": 3.0}


@dataclass(frozen=True)
class Variant:
    """What differs from the shipped still: nanoBragg's mosaic spread, domains, shape of the blocks, sensor, rotation
    during the exposure about the x axis, brightest pixel (None: as bright a beam as the shipped still's)."""

    spread_deg: float = 0.05
    domains: int = DOMAINS
    shape: str = "gauss_isotropic"
    thick: bool = True
    rotation_deg: float = 0.0
    brightest: float | None = None
    oversample: int = 2
    reach_px: int = 13


VARIANTS = {
    "shipped": Variant(),
    "rich": Variant(spread_deg=0.35, brightest=439_000.0, reach_px=17),
    "osc01": Variant(domains=12, rotation_deg=0.1, reach_px=15),
    "square_thin": Variant(shape="square", thick=False, oversample=3, reach_px=22),
}


@dataclass(frozen=True)
class Truth:
    """What is drawn: records of the crystal, panel and beam, the rotation, and photons of the background."""

    crystal: object
    panel: object
    beam: object
    scan: ScanConfig | None
    background: np.ndarray

    @property
    def orientation(self):
        """The mean orientation (3, 3) over domains and steps."""
        like = torch.zeros((), dtype=torch.float64)
        turns = domain_rotations(self.crystal, like)[:, None] @ scan_rotations(self.scan, like)
        u, _, v = torch.linalg.svd(turns.flatten(0, 1).mean(0))
        return u @ v @ orientation(self.crystal, like)


def shipped():
    """The shipped still, and what it refines to."""
    still = next(iter(read_stills(*(ROOT / name.removeprefix("mask=") for name in FILES))))
    return still, refine_still(still, Settings(detector=DETECTOR))


def truth_of(still, refined, variant, seed):
    """The truth of a variant: the refined models with its own widths, a beam as bright as the shipped still's."""
    like = torch.zeros((), dtype=torch.float64)
    cells = tuple(SIZE_A / edge for edge in TRUE_CELL[:3])
    crystal = replace(
        refined.crystal,
        **dict(zip(CELL, TRUE_CELL, strict=True)),
        N_cells=tuple(float(round(n)) for n in cells) if variant.shape == "square" else cells,
        domain_size_A=None if variant.shape == "square" else SIZE_A,
        shape=variant.shape,
        mosaicity_deg=variant.spread_deg * MOSAIC_RMS_PER_SPREAD,
        mosaic_domains=variant.domains,
        mosaic_seed=-12345678 - seed,
        size_covariance=None,
        mosaic_covariance_deg2=None,
        b_factor_A2=0.0,
    )
    scale = next(e.after for e in refined.estimates if e.name == "scale")
    gaussian = replace(crystal, shape="gauss_isotropic", domain_size_A=SIZE_A, N_cells=cells)
    fluence = scale / float(torch.exp(ln_integral(gaussian, like))) / R_E_SQUARED_M2
    beam = sampled_beam(
        replace(refined.beam, fluence=fluence, bandwidth=0.0),
        SampledRange(DIVERGENCE_MRAD, 3),
        SampledRange(),
        SampledRange(BANDWIDTH, 3),
    )
    panel = replace(refined.detector[0], oversample=variant.oversample)
    if not variant.thick:
        panel = replace(panel, sensor_thickness_mm=0.0)
    steps = 10
    scan = ScanConfig((1.0, 0.0, 0.0), 0.0, variant.rotation_deg, steps) if variant.rotation_deg else None
    return Truth(crystal, panel, beam, scan, radial_background(still, panel))


def radial_background(still, panel, width_px=12):
    """The median of the shipped image's trusted pixels on rings about the beam, photons (slow, fast)."""
    image, trusted = still.images_photons[0], still.trusted[0]
    like = torch.zeros((), dtype=torch.float64)
    beam = torch.tensor(still.beam.direction, dtype=torch.float64)[None]
    centre = intersection_px(stack_panels([panel], like), torch.zeros(1, dtype=torch.long), beam)[0].numpy()
    slow, fast = np.indices(image.shape)
    ring = (np.hypot(fast + 0.5 - centre[0], slow + 0.5 - centre[1]) / width_px).astype(int)
    seen = [image[trusted & (ring == i)] for i in range(ring.max() + 1)]
    level = np.array([np.mean(np.clip(one, 0, 2 * np.median(one) + 5)) if len(one) else np.nan for one in seen])
    known = np.nonzero(np.isfinite(level))[0]
    return np.interp(np.hypot(fast + 0.5 - centre[0], slow + 0.5 - centre[1]) / width_px - 0.5, known, level[known])


def drawn_pixels(still, truth, variant):
    """The pixels within reach of every reflection that could matter."""
    # blocks with flat faces and narrow Gaussians alike: wide enough to find the fringes
    wide = replace(
        truth.crystal,
        shape="gauss_isotropic",
        domain_size_A=SIZE_A / (3 if variant.shape == "square" else 1),
        mosaicity_deg=truth.crystal.mosaicity_deg + 0.3 * variant.rotation_deg,
        U=rows(truth.orientation),
    )
    beam = replace(still.beam, bandwidth=BANDWIDTH)
    map = parametrisation(wide, [truth.panel], beam, ((), np.zeros((6, 0))), ("scale",), (), ())
    models = map.models(torch.zeros(1, dtype=torch.float64))
    found = predict(models, still.amplitudes, 0.98 * resolution_limit(still, Settings()), 4.5, [truth.panel.shape])
    chosen = np.zeros(truth.panel.shape, bool)
    for x, y in np.floor(found.xy_px).astype(int):
        r = variant.reach_px
        chosen[max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1] = True
    slow, fast = np.nonzero(chosen & still.trusted[0])
    return Pixels(torch.zeros(len(slow), dtype=torch.long), torch.as_tensor(slow), torch.as_tensor(fast))


def expected_photons(still, truth, variant):
    """Photons of the spots (slow, fast), without noise: a sum over layers of the sensor, each at its mean depth."""
    like = torch.zeros((), dtype=torch.float64)
    pixels = drawn_pixels(still, truth, variant)
    factors = from_list(torch.as_tensor(still.amplitudes.hkl), torch.as_tensor(still.amplitudes.F))
    panels = stack_panels([truth.panel], like)
    surface = pixel_positions(panels, pixels.panel, pixels.slow + 0.5, pixels.fast + 0.5)
    ray = surface / torch.linalg.vector_norm(surface, dim=-1, keepdim=True)
    cosine = obliquity(panels, pixels.panel, ray)
    total = torch.zeros(len(pixels), dtype=torch.float64)
    for layer in sensor_layers(panels, LAYERS if variant.thick else 1):
        share, depth = torch.ones_like(cosine), 0.0
        if variant.thick:
            share = captured(panels.mu[0], layer.near, layer.far, cosine)
            depth = float(
                layer_depth(
                    panels, Layer(layer.near, layer.far), torch.zeros(1, dtype=torch.long), cosine.mean()[None]
                )[0]
            )
        sign = float(torch.sign(panels.distance[0]))
        sunk = replace(truth.panel, sensor_thickness_mm=0.0, distance_mm=truth.panel.distance_mm + sign * depth)
        total += share * simulate(
            truth.crystal, sunk, truth.beam, factors, scan=truth.scan, pixels=pixels, dtype=torch.float32
        )
    image = np.zeros(truth.panel.shape)
    image[pixels.slow.numpy(), pixels.fast.numpy()] = total.numpy()
    return image


def drawn_still(still, truth, spots, variant, seed):
    """The still with its noise, and amplitudes that err: what was drawn had other |F|."""
    rng = np.random.default_rng(seed)
    if variant.brightest is not None:
        spots = spots * (variant.brightest / spots.max())
    image = rng.poisson(truth.background + spots).astype(np.float64)
    given = still.amplitudes.F * (1 + F_ERROR * rng.normal(size=len(still.amplitudes.F)))
    detector = still.detector
    if not variant.thick:
        detector = (replace(detector[0], sensor_thickness_mm=0.0),)
    amplitudes = replace(still.amplitudes, F=given)
    return replace(still, images_photons=(image,), amplitudes=amplitudes, detector=detector)


def compared(start, refined, truth, seconds):
    """A refinement's figures, its errors, and its largest error in esds."""
    like = torch.zeros((), dtype=torch.float64)
    esd = {e.name: e.esd for e in refined.estimates}
    turned = vector_from_rotation(orientation(refined.crystal, like) @ truth.orientation.T) * 180 / np.pi
    errors = dict(zip(("misset_x", "misset_y", "misset_z"), turned.tolist(), strict=True))
    errors |= {name: getattr(refined.crystal, name) - getattr(truth.crystal, name) for name in CELL}
    panel = refined.detector[0]
    errors |= {
        "distance": panel.distance_mm - truth.panel.distance_mm,
        "shift_fast": panel.origin_fast_mm - truth.panel.origin_fast_mm,
        "shift_slow": panel.origin_slow_mm - truth.panel.origin_slow_mm,
    }
    z = {name: error / esd[name] for name, error in errors.items()}
    figures = refined.figures
    return {
        "chi2": figures["chi2_per_pixel"],
        "core": figures["chi2_core"],
        "cc": figures["median_cc"],
        "orientation": float(torch.linalg.vector_norm(turned)),
        "lengths": max(abs(errors[n] / getattr(truth.crystal, n)) for n in CELL[:3]) * 100,
        "angles": max(abs(errors[n]) for n in CELL[3:]),
        "distance": errors["distance"],
        "predicted": predicted_apart_px(start, refined, truth),
        "z": max(z.values(), key=abs),
        "seconds": seconds,
        "z_each": z,
        "terms": [trial.name for trial in refined.terms if trial.kept],
        "estimates": {e.name: (e.after, e.esd_formal, e.esd) for e in refined.estimates},
        "state": refined.verdict.state,
    }


def predicted_apart_px(start, refined, truth):
    """Root mean square distance of predicted from true positions of the indexed spots."""
    like = torch.zeros((), dtype=torch.float64)
    hkl = torch.as_tensor(start.observed.hkl, dtype=torch.float64)
    panel = torch.as_tensor(start.observed.panel)
    true = replace(truth.crystal, U=rows(truth.orientation))
    places = []
    for crystal, record, beam in (
        (true, truth.panel, start.beam),
        (refined.crystal, refined.detector[0], refined.beam),
    ):
        q = hkl @ reciprocal_basis(crystal, like).T
        found = centroids(q, torch.eye(3, dtype=torch.float64).expand(len(q), 3, 3), beam)
        places.append(intersection_px(stack_panels([record], like), panel, found.s1))
    return float(((places[1] - places[0]) ** 2).sum(-1).mean() ** 0.5)


def measured(still, shipped_refined, name, seed, folder=None, settings=None):
    """A variant drawn with a seed, refined, and compared; its image without noise is kept in `folder`."""
    variant = VARIANTS[name]
    truth = truth_of(still, shipped_refined, variant, seed)
    kept = None if folder is None else Path(folder) / f"{name}_{seed}.npz"
    if kept is not None and kept.exists():
        spots = np.load(kept)["spots"]
    else:
        spots = expected_photons(still, truth, variant)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(kept, spots=spots)
    drawn = drawn_still(still, truth, spots, variant, seed)
    began = time.process_time()
    refined = refine_still(drawn, settings or Settings(detector=DETECTOR))
    return compared(still, refined, truth, time.process_time() - began)


COLUMNS = ("chi2", "core", "cc", "orientation", "lengths", "angles", "distance", "predicted", "z", "seconds")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(VARIANTS), help=f"any of {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", type=int, default=2, help="how many stills of each (2)")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--folder", type=Path, help="keep images without noise there, and take them from there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    still, refined = shipped()
    told = {}
    print("variant      seed   χ²/px    core      CC   orient.°  lengths%   angles°  dist. mm   pred px       z     s")
    for name in options.names:
        for seed in range(1, options.seeds + 1):
            row = told[f"{name}_{seed}"] = measured(still, refined, name, seed, options.folder)
            cells = " ".join(f"{row[c]:9.4f}" if abs(row[c]) < 1 else f"{row[c]:7.3f}" for c in COLUMNS)
            print(f"{name:12s} {seed:4d} {cells}  {','.join(row['terms'])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
