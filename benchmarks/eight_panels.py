"""`python -m benchmarks.eight_panels`: stills on eight panels, each misplaced by its own shift and rotation, refined
jointly and compared with the truth.

An orthorhombic crystal (P 21 21 21), images in ADU with read-out noise, and a wavelength that differs from shot to
shot by a tenth of a per cent, of which the start knows nothing. They are drawn by the closed form itself, by its finer
rule. The rotation of all panels about the beam, which is one of every crystal, is taken off before anything is
compared.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from dxtbx.model import Crystal, Detector, ParallaxCorrectedPxMmStrategy
from dxtbx.model.beam import BeamFactory
from dxtbx.model.experiment_list import Experiment

from dbex.joint.conclude import conclude, shared_estimates
from dbex.joint.merging import observations
from dbex.joint.shared import Sharing, Units
from dbex.joint.solve import solve
from dbex.joint.visits import Visitor
from dbex.models import create_beam_config, create_crystal_config, create_detector_config, free_cell_parameters
from dbex.refinement.conclude import rows
from dbex.refinement.detector_motion import motions_between, moved, unit_frame
from dbex.refinement.parameters import panel_records, parametrisation
from dbex.refinement.predictions import predict
from dbex.refinement.settings import Settings
from dbex.still import Amplitudes, NoiseModel, Observed, Still
from nanobrag_torch.lattice import orientation, reciprocal_basis
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.profile import centroids, intersection_px
from nanobrag_torch.rotation import rotation_from_vector, vector_from_rotation
from tests.dbex.refinement.closed_form import add_spots

SPACE_GROUP, CELL = "P 21 21 21", (38.0, 47.0, 61.0)
DISTANCE_MM, PIXEL_MM, SHAPE = 110.0, 0.172, (190, 380)
GAIN_ADU, READOUT_ADU, BACKGROUND = 5.0, 4.0, 3.0
#: The truth: how far panels are shifted and turned, and the whole detector with them.
SHIFT_MM, TURN_MRAD, WHOLE_MM, WHOLE_MRAD = 0.08, 1.5, (0.07, -0.05, -0.10), (1.2, -0.8, 0.0)
WAVELENGTH_A, WAVELENGTH_SPREAD = 1.0, 0.001
#: The start: how far orientations and the cell are off.
TURNED_DEG, STRETCHED = 0.05, 0.001
SIZE_A, MOSAICITY_DEG, LN_SCALE, D_MIN_A = 700.0, 0.04, -3.5, 2.0
F_ERROR = 0.02
SETTINGS = Settings(detector=("distance", "shift", "tilt"), beam=("wavelength",), d_min=D_MIN_A, start="near", terms=())


@dataclass(frozen=True)
class Truth:
    """What was drawn: panels as records, and for each still the crystal and the wavelength (Å)."""

    detector: tuple
    crystals: list
    wavelengths: list


def amplitudes_of(rng):
    """A list of acentric structure factors with the symmetry of the space group, Friedel mates apart."""
    steps = [np.arange(-int(edge / D_MIN_A), int(edge / D_MIN_A) + 1) for edge in CELL]
    hkl = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    d = 1 / np.maximum(np.linalg.norm(hkl / np.array(CELL), axis=1), 1e-9)
    axial = (hkl == 0).sum(1) == 2
    absent = axial & (np.abs(hkl).sum(1) % 2 == 1)
    hkl = hkl[(d >= D_MIN_A) & (d < 30) & ~absent]
    # 222: all signs of a Friedel class are equivalent; mates differ by the parity of the signs
    parity = (hkl < 0).sum(1) % 2 * ((hkl != 0).all(1))
    names, where = np.unique(np.column_stack([np.abs(hkl), parity]), axis=0, return_inverse=True)
    d = 1 / np.linalg.norm(names[:, :3] / np.array(CELL), axis=1)
    F = np.sqrt(rng.exponential(1.0, len(names))) * 220 * np.exp(-6.0 / d**2)
    given = F * (1 + F_ERROR * rng.normal(size=len(F)))
    cell = (*CELL, 90.0, 90.0, 90.0)
    true, known = F[where.ravel()], given[where.ravel()]
    return [Amplitudes(hkl, f, F_ERROR * f, "F", SPACE_GROUP, cell) for f in (true, known)]


def nominal_detector():
    """Two columns of four panels about the beam."""
    detector = Detector()
    high, wide = (n * PIXEL_MM for n in SHAPE)
    for column in range(2):
        for row in range(4):
            panel = detector.add_panel()
            panel.set_name(f"p{column}{row}")
            origin = ((column - 1) * (wide + 1.5) + 0.7, (2 - row) * (high + 1.5) - 0.7, -DISTANCE_MM)
            panel.set_local_frame((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), origin)
            panel.set_pixel_size((PIXEL_MM, PIXEL_MM))
            panel.set_image_size(tuple(reversed(SHAPE)))
            panel.set_trusted_range((-200, 1_000_000))
            panel.set_thickness(0.32)
            panel.set_mu(3.6)
            panel.set_px_mm_strategy(ParallaxCorrectedPxMmStrategy(3.6, 0.32))
    return detector


def misplaced(panels, detector, rng):
    """Each panel turned about its middle and shifted, and then all together."""
    frame = unit_frame(panels, detector, [(i,) for i in range(len(detector))])
    shift, turn = rng.normal(0, SHIFT_MM, (len(frame), 3)), rng.normal(0, TURN_MRAD * 1e-3, (len(frame), 3))
    each = moved(panels, frame, torch.as_tensor(shift), torch.as_tensor(turn))
    whole = rotation_from_vector(torch.tensor(WHOLE_MRAD, dtype=torch.float64) * 1e-3)
    offset, pivot = torch.tensor([WHOLE_MM, (0, 0, -DISTANCE_MM)], dtype=torch.float64)
    origin = (each.origin - pivot) @ whole.T + pivot + offset
    axes = {name: getattr(each, name) @ whole.T for name in ("fast", "slow", "normal")}
    together = replace(each, origin=origin, distance=(origin * axes["normal"]).sum(-1), **axes)
    return panel_records(detector, together)


def turned(U, vector):
    """An orientation turned by a rotation vector, radians."""
    return rows(rotation_from_vector(torch.as_tensor(vector)) @ torch.as_tensor(U, dtype=torch.float64))


def drawn_stills(count, seed=1):
    """The stills as they would be read, and the truth."""
    rng = np.random.default_rng(seed)
    true_F, known_F = amplitudes_of(rng)
    dxtbx_detector, zero = nominal_detector(), torch.zeros((), dtype=torch.float64)
    beam = BeamFactory.make_beam(sample_to_source=(0, 0, 1), wavelength=WAVELENGTH_A)
    nominal = tuple(create_detector_config(panel, beam) for panel in dxtbx_detector)
    detector = misplaced(stack_panels(nominal, zero), nominal, rng)
    stills, crystals, wavelengths = [], [], []
    while len(stills) < count:
        matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        U = matrix * np.linalg.det(matrix)
        real = [tuple(edge * U[:, i]) for i, edge in enumerate(CELL)]
        crystal = replace(
            create_crystal_config(Crystal(*real, SPACE_GROUP)), domain_size_A=SIZE_A, mosaicity_deg=MOSAICITY_DEG
        )
        wavelength = WAVELENGTH_A * (1 + WAVELENGTH_SPREAD * rng.normal())
        lit = replace(create_beam_config(beam), wavelength_A=wavelength)
        free = free_cell_parameters(Crystal(*real, SPACE_GROUP).get_space_group())
        map = parametrisation(crystal, detector, lit, free, ("scale",), (), (), LN_SCALE + rng.normal(0, 0.3))
        models = map.models(torch.zeros(1, dtype=torch.float64))
        spots = predict(models, true_F, D_MIN_A, 5.0, [SHAPE] * len(detector))
        expected = [np.full(SHAPE, BACKGROUND) for _ in detector]
        photons = add_spots(expected, models, spots, true_F)
        image = [
            np.round(GAIN_ADU * rng.poisson(e) + rng.normal(0, READOUT_ADU, e.shape)).astype(np.int32) for e in expected
        ]
        seen = spots.select((np.abs(spots.k) < 1.2) & (photons > 300))
        off = rng.normal(0, np.radians(TURNED_DEG), 3)
        start = [tuple(edge * (1 + STRETCHED) * np.array(turned(U, off))[:, i]) for i, edge in enumerate(CELL)]
        believed = Crystal(*start, SPACE_GROUP)
        experiment = Experiment(crystal=believed, detector=dxtbx_detector, beam=beam)
        corner = np.floor(seen.xy_px).astype(np.int64)
        observed = Observed(
            true_F.hkl[seen.index],
            seen.panel,
            np.stack([corner[:, 0] - 4, corner[:, 0] + 5, corner[:, 1] - 4, corner[:, 1] + 5], -1),
            seen.xy_px + rng.normal(0, 0.15, seen.xy_px.shape),
            photons[(np.abs(spots.k) < 1.2) & (photons > 300)],
            photons[(np.abs(spots.k) < 1.2) & (photons > 300)],
            np.arange(len(seen)),
        )
        stills.append(
            Still(
                name=f"drawn {len(stills)}",
                experiment=experiment,
                table=None,
                observed=observed,
                images_photons=tuple(panel / GAIN_ADU for panel in image),
                trusted=tuple(np.ones(SHAPE, bool) for _ in detector),
                amplitudes=known_F,
                noise=NoiseModel(GAIN_ADU, (READOUT_ADU / GAIN_ADU,) * len(detector), "sigma_scalar"),
                crystal=replace(
                    create_crystal_config(believed), domain_size_A=1.4 * SIZE_A, mosaicity_deg=2 * MOSAICITY_DEG
                ),
                detector=nominal,
                beam=create_beam_config(beam),
                index=len(stills),
            )
        )
        crystals.append(crystal)
        wavelengths.append(wavelength)
    return stills, Truth(detector, crystals, wavelengths), (true_F, known_F)


def common_turn(joint, estimates, detector, truth):
    """The rotation about the beam (radians) of the true panels that the solution does not have."""
    gauge = joint.gauges[0].functional
    zero = torch.zeros((), dtype=torch.float64)
    base = stack_panels(joint.common.detector, zero)
    frame = joint.common.frame
    motions = motions_between(frame, base, stack_panels(truth, zero)).ravel()
    names = [name for unit in frame.names for name in unit]
    by_name = dict(zip(names, motions, strict=True))
    return float(sum(f * by_name.get(p.name, 0.0) for f, p in zip(gauge, joint.common.parameters, strict=True)))


def spun(detector, angle):
    """Panels turned about the beam (-z) by an angle."""
    turn = rotation_from_vector(torch.tensor([0.0, 0.0, -angle], dtype=torch.float64))
    panels = stack_panels(detector, torch.zeros((), dtype=torch.float64))
    axes = {name: getattr(panels, name) @ turn.T for name in ("fast", "slow", "normal", "origin")}
    return panel_records(detector, replace(panels, **axes)), turn


def figures(joint, visitor, stills, truth, factors):
    """Errors of panels in esds, of predicted positions (px), of orientations (degrees), CC with F², coverage."""
    zero = torch.zeros((), dtype=torch.float64)
    ended = [visitor.ended(joint.task(place)) for place in range(len(stills))]
    shared, _ = shared_estimates(joint, *ended[0], visitor.detector)
    angle = common_turn(joint, shared, visitor.detector, truth.detector)
    detector, turn = spun(truth.detector, -angle)
    read = stack_panels(visitor.detector, zero)
    frame = unit_frame(read, visitor.detector, visitor.sharing.units.panels)
    true = motions_between(frame, read, stack_panels(detector, zero)) * ([1.0] * 3 + [1e3] * 3)
    true = dict(zip([n for unit in frame.names for n in unit], true.ravel(), strict=True))
    true |= {f"cell_{n}": edge for n, edge in zip("abc", CELL, strict=True)}
    z = {e.name: (e.after - true[e.name]) / e.esd for e in shared if e.name in true}
    found_wavelengths = []
    turns, apart, value, square, scaled = [], [], [], [], []
    known = {tuple(h): f for h, f in zip(factors[0].hkl.tolist(), factors[0].F ** 2, strict=True)}
    for (still, final), crystal, wavelength in zip(ended, truth.crystals, truth.wavelengths, strict=True):
        refined = conclude(still, visitor.settings, final)
        found_wavelengths.append(refined.beam.wavelength_A)
        U = turn @ orientation(crystal, zero)
        difference = vector_from_rotation(orientation(refined.crystal, zero) @ U.T)
        turns.append(float(torch.rad2deg(torch.linalg.vector_norm(difference))))
        lit = replace(refined.beam, wavelength_A=wavelength)
        apart.append(
            predicted_apart_px(
                still.observed,
                (replace(crystal, U=rows(U)), detector, lit),
                (refined.crystal, refined.detector, refined.beam),
            )
        )
        found = observations(refined.boxes, 0, refined.figures["esd_inflation"])
        F2 = np.array([known[tuple(h)] for h in found.hkl.tolist()])
        bright = np.abs(found.partiality) > 0.3
        value += found.value[bright].tolist()
        square += F2[bright].tolist()
        scaled += ((found.value - F2)[bright] / np.sqrt(found.variance(F2))[bright]).tolist()
    units = {name: error for name, error in z.items() if "[" in name}
    moved_mm = max(abs(v) for n, v in true.items() if n.startswith("shift"))
    return {
        "largest_true_shift_mm": moved_mm,
        "panel_z_max": max(map(abs, units.values())),
        "panel_z_within_1": float(np.mean(np.abs(list(units.values())) < 1)),
        "cell_esd": {e.name: e.esd for e in shared if e.name.startswith("cell")},
        "wavelength_off": [
            float(np.log(float(v) / w)) for v, w in zip(found_wavelengths, truth.wavelengths, strict=True)
        ],
        "wavelength_true": truth.wavelengths,
        "cell_z": {name: error for name, error in z.items() if name.startswith("cell")},
        "panel_esds": {
            n: max(e.esd for e in shared if e.name.startswith(n))
            for n in ("shift_fast", "shift_normal", "tilt_fast", "tilt_normal")
        },
        "predicted_px_rms": float(np.sqrt(np.mean(np.square(apart)))),
        "orientation_deg_max": max(turns),
        "orientation_deg_median": float(np.median(turns)),
        "cc_F2": float(np.corrcoef(value, square)[0, 1]),
        "full_intensities": len(value),
        "intensity_within_1": float(np.mean(np.abs(scaled) < 1)),
        "converged": joint.solution.converged,
        "undetermined": joint.undetermined,
    }


def predicted_apart_px(observed, one, other):
    """Root mean square distance of the spots' positions under two sets of models."""
    zero = torch.zeros((), dtype=torch.float64)
    hkl, panel = torch.as_tensor(observed.hkl, dtype=torch.float64), torch.as_tensor(observed.panel)
    places = []
    for crystal, detector, beam in (one, other):
        q = hkl @ reciprocal_basis(crystal, zero).T
        found = centroids(q, torch.eye(3, dtype=torch.float64).expand(len(q), 3, 3), beam)
        places.append(intersection_px(stack_panels(detector, zero), panel, found.s1))
    return float(((places[1] - places[0]) ** 2).sum(-1).mean() ** 0.5)


def refined_jointly(stills, folder, tell):
    """The visitor and the joint solution."""
    units = Units(tuple((i,) for i in range(8)), tuple(f"panel {i}" for i in range(8)))
    settings = replace(SETTINGS, priors={"wavelength": 0.002 * WAVELENGTH_A})
    visitor = Visitor(
        stills.__getitem__, settings, Sharing(settings.detector, (), True, units), stills[0].detector, Path(folder)
    )
    return visitor, solve(visitor, range(len(stills)), stills[0].beam, map, 50, tell)


def main():
    """Draw, refine, compare; the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stills", nargs="?", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    stills, truth, factors = drawn_stills(options.stills, options.seed)
    print(f"drawn in {time.process_time() - began:.0f} s of CPU; spots {[len(s.observed) for s in stills]}")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        began = time.process_time()
        visitor, joint = refined_jointly(stills, folder, print)
        seconds = time.process_time() - began
        content = figures(joint, visitor, stills, truth, factors) | {"cpu_seconds": seconds}
    print(json.dumps(content, indent=1, default=float))


if __name__ == "__main__":
    main()
