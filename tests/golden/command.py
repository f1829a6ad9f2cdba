"""nanoBragg's command line as configs, as far as the golden images need it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from nanobrag_torch.background import FormFactor, molecules
from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig, ScanConfig
from nanobrag_torch.conventions import (
    AXES,
    Axes,
    Mounting,
    automatic_cells,
    beam_along,
    cell_and_orientation,
    default_orientation,
    fluence_per_m2,
    mounted_detector,
    rotation_xyz,
)
from nanobrag_torch.io.hkl import read_hkl
from nanobrag_torch.io.mosflm_matrix import read_matrix
from nanobrag_torch.io.smv import read_smv
from nanobrag_torch.io.sources import read_sources
from nanobrag_torch.source import SampledRange, sampled_beam
from nanobrag_torch.structure_factors import StructureFactors, from_list
from nanobrag_torch.units import HC_EV_A

LIKE = torch.zeros((), dtype=torch.float64)
DEFAULT_BEAM_SIZE_MM = 0.1
MICROMETRES = 1e-3

#: Flags with their number of values; what is not listed has one.
ARITY = {
    **dict.fromkeys(("-beam_vector", "-fdet_vector", "-sdet_vector", "-odet_vector", "-polar_vector"), 3),
    **dict.fromkeys(("-spindle_axis", "-twotheta_axis", "-misset"), 3),
    **dict.fromkeys(("-mosflm", "-denzo", "-adxv", "-xds", "-dials", "-nopolar", "-point_pixel", "-curved_det"), 0),
    **dict.fromkeys(("-interpolate", "-nointerpolate", "-round_div", "-square_div"), 0),
    **dict.fromkeys(("-square_xtal", "-round_xtal", "-gauss_xtal", "-tophat_spots"), 0),
    "-cell": 6,
    "-roi": 4,
}
SHAPES = {"-round_xtal": "round", "-gauss_xtal": "gauss_isotropic", "-tophat_spots": "tophat_isotropic"}
VECTORS = {
    "-beam_vector": "beam",
    "-fdet_vector": "fast",
    "-sdet_vector": "slow",
    "-odet_vector": "normal",
    "-twotheta_axis": "twotheta",
    "-polar_vector": "polarization",
    "-spindle_axis": "spindle",
}
BEAM_PIVOT = ("-Xbeam", "-Ybeam", "-distance")
SAMPLE_PIVOT = ("-Xclose", "-Yclose", "-ORGX", "-ORGY", "-close_distance", "-twotheta")
FROM_HEADER = {
    "SIZE1": "-detpixels_f",
    "SIZE2": "-detpixels_s",
    "PIXEL_SIZE": "-pixel",
    "DISTANCE": "-distance",
    "WAVELENGTH": "-lambda",
    "BEAM_CENTER_X": "-Xbeam",
    "BEAM_CENTER_Y": "-Ybeam",
    "PHI": "-phi",
    "OSC_RANGE": "-osc",
}


@dataclass(frozen=True)
class Command:
    """What one command line simulates."""

    crystal: CrystalConfig
    detector: DetectorConfig
    beam: BeamConfig
    scan: ScanConfig | None
    factors: StructureFactors
    interpolate: bool
    dmin_A: float | None
    used: torch.Tensor
    water_um: float | None = None

    def arguments(self):
        return (self.crystal, self.detector, self.beam, self.factors), {
            "scan": self.scan,
            "interpolate": self.interpolate,
            "dmin_A": self.dmin_A,
        }


def parse(argv: list[str], folder: Path, mosaic_rotations: torch.Tensor | None = None) -> Command:
    """The configs of `argv`; files are named relative to `folder`."""
    flags = _flags(argv, folder)
    axes, convention = _axes(flags)
    wavelength = HC_EV_A / _number(flags, "-energy") if "-energy" in flags else _number(flags, "-lambda")
    detector = _detector(flags, axes, convention)
    factors = _factors(flags, folder)
    crystal = _crystal(flags, folder, wavelength, mosaic_rotations)
    few = bool((crystal.N_cells <= 2).any()) and "-hkl" in flags
    return Command(
        crystal=crystal,
        detector=detector,
        beam=_beam(flags, folder, axes, wavelength),
        scan=_scan(flags, axes),
        factors=factors,
        interpolate="-interpolate" in flags or (few and "-nointerpolate" not in flags),
        dmin_A=_number(flags, "-dmin"),
        used=_used(flags, folder, detector.shape),
        water_um=_number(flags, "-water"),
    )


@dataclass(frozen=True)
class AmorphousCommand:
    """What one command line of nonBragg simulates."""

    detector: DetectorConfig
    beam: BeamConfig
    factor: FormFactor
    molecules: float


def parse_amorphous(argv: list[str], folder: Path) -> AmorphousCommand:
    """The configs of a nonBragg command: its Xbeam runs along fast and its Ybeam along slow, no half pixel is added."""
    flags = _flags(argv, folder)
    flags["-detpixels_f"], flags["-detpixels_s"] = flags["-detpixels_x"], flags["-detpixels_y"]
    flags["-Xbeam"], flags["-Ybeam"] = flags["-Ybeam"], flags["-Xbeam"]
    table = torch.as_tensor(np.loadtxt(folder / flags["-stol"][0]))
    edge = min(DEFAULT_BEAM_SIZE_MM, _number(flags, "-beamsize", DEFAULT_BEAM_SIZE_MM))
    volume = _number(flags, "-thickness") * edge**2
    return AmorphousCommand(
        _detector(flags, AXES["DENZO"], "DENZO"),
        _beam(flags, folder, AXES["DENZO"], _number(flags, "-lambda")),
        FormFactor(table[:, 0].contiguous(), table[:, 1].contiguous()),
        molecules(volume, _number(flags, "-density"), _number(flags, "-MW")),
    )


def _flags(argv, folder):
    flags, i = {}, 0
    while i < len(argv):
        count = ARITY.get(argv[i], 1)
        # The order is kept: the last of the flags that choose a pivot counts.
        flags.pop(argv[i], None)
        flags[argv[i]] = argv[i + 1 : i + 1 + count]
        i += 1 + count
    for source in ("-img", "-mask"):
        if source in flags:
            header, _ = read_smv(folder / flags[source][0])
            for key, flag in FROM_HEADER.items():
                if key in header:
                    flags.setdefault(flag, [header[key]])
    return flags


def _number(flags, name, default=None):
    return float(flags[name][0]) if name in flags else default


def _vector(words):
    return tuple(float(word) for word in words)


def _axes(flags) -> tuple[Axes, str]:
    if any(flag in flags for flag in VECTORS):
        own = {name: _vector(flags[flag]) for flag, name in VECTORS.items() if flag in flags}
        return replace(AXES["CUSTOM"], **own), "CUSTOM"
    named = [name for name in AXES if f"-{name.lower()}" in flags]
    convention = named[0] if named else "MOSFLM"
    return AXES[convention], convention


def _detector(flags, axes, convention) -> DetectorConfig:
    pivots = [flag for flag in flags if flag in (*BEAM_PIVOT, *SAMPLE_PIVOT, "-pivot")]
    pivot = flags["-pivot"][0] if pivots[-1] == "-pivot" else "beam" if pivots[-1] in BEAM_PIVOT else "sample"
    mounting = Mounting(
        convention=convention,
        axes=axes,
        pixel_size_mm=_number(flags, "-pixel"),
        shape=(int(flags["-detpixels_s"][0]), int(flags["-detpixels_f"][0])),
        distance_mm=_number(flags, "-distance"),
        close_distance_mm=_number(flags, "-close_distance"),
        beam_centre_mm=(_number(flags, "-Xbeam"), _number(flags, "-Ybeam")),
        close_mm=(_number(flags, "-Xclose"), _number(flags, "-Yclose")),
        origin_px=(_number(flags, "-ORGX"), _number(flags, "-ORGY")),
        rotation_deg=tuple(_number(flags, f"-detector_rot{axis}", 0.0) for axis in "xyz"),
        twotheta_deg=_number(flags, "-twotheta", 0.0),
        pivot=pivot,
    )
    thick = _number(flags, "-detector_thick", 0.0) * MICROMETRES
    return replace(
        mounted_detector(mounting, LIKE),
        oversample=int(_number(flags, "-oversample", -1)),
        point_pixel="-point_pixel" in flags,
        curved="-curved_det" in flags,
        sensor_thickness_mm=thick,
        sensor_mu_per_mm=1 / (_number(flags, "-detector_abs") * MICROMETRES) if thick else 0.0,
        depth_layers=int(_number(flags, "-detector_thicksteps", 2)),
    )


def _beam(flags, folder, axes, wavelength) -> BeamConfig:
    beam = beam_along(axes, wavelength, None if "-nopolar" in flags else _number(flags, "-polar", 0.0), LIKE)
    if "-flux" in flags:
        size = _number(flags, "-beamsize", DEFAULT_BEAM_SIZE_MM)
        beam = replace(beam, fluence=fluence_per_m2(_number(flags, "-flux"), _number(flags, "-exposure", 1.0), size))
    if "-fluence" in flags:
        beam = replace(beam, fluence=_number(flags, "-fluence"))
    if "-sourcefile" in flags:
        return read_sources(folder / flags["-sourcefile"][0], beam)
    h, v = (_range(flags, f"-{name}divrange", f"-{name}divsteps", f"-{name}divstep") for name in "hv")
    dispersion = _range(flags, "-dispersion", "-dispsteps", "-dispstep")
    return sampled_beam(beam, h, v, replace(dispersion, width=dispersion.width / 100), "-square_div" not in flags)


def _range(flags, width, steps, step) -> SampledRange:
    both = "divrange" in width
    count = _number(flags, steps, _number(flags, "-divsteps") if both else None)
    return SampledRange(
        width=_number(flags, width, _number(flags, "-divergence", 0.0) if both else 0.0),
        steps=None if count is None else int(count),
        step=_number(flags, step),
    )


def _scan(flags, axes) -> ScanConfig | None:
    width, steps, step = _number(flags, "-osc"), _number(flags, "-phisteps"), _number(flags, "-phistep")
    if width is None and steps is None and step is None:
        return None
    count = int(steps) if steps else math.ceil(width / step) if step else 2
    step = step or width / count
    return ScanConfig(axes.spindle, _number(flags, "-phi", 0.0), step * count, count)


def _crystal(flags, folder, wavelength, mosaic_rotations) -> CrystalConfig:
    if "-mat" in flags:
        cell, U = cell_and_orientation(read_matrix(folder / flags["-mat"][0]) / wavelength)
    else:
        cell = torch.tensor(_vector(flags["-cell"]), dtype=torch.float64)
        U = default_orientation(cell)
    if "-misset" in flags:
        U = rotation_xyz(_vector(flags["-misset"]), LIKE) @ U
    if "-samplesize" in flags:
        size = _number(flags, "-samplesize")
        N = automatic_cells(cell, (size, size, size), _number(flags, "-beamsize", DEFAULT_BEAM_SIZE_MM))
    else:
        every = _number(flags, "-N", 1.0)
        N = torch.tensor([_number(flags, f"-N{axis}", every) for axis in "abc"], dtype=torch.float64)
    shape = next((SHAPES[flag] for flag in flags if flag in SHAPES), "square")
    fudge = _number(flags, "-fudge", 1.0)
    return CrystalConfig(*cell, U=U, N_cells=N, shape=shape, fudge=fudge, mosaic_rotations=mosaic_rotations)


def _factors(flags, folder) -> StructureFactors:
    default_F = _number(flags, "-default_F", 0.0)
    if "-hkl" in flags:
        return from_list(*read_hkl(folder / flags["-hkl"][0]), default_F=default_F)
    return from_list(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.float64), default_F=default_F)


def _used(flags, folder, shape) -> torch.Tensor:
    """Pixels (slow, fast) inside the region of interest, its limits included, and not masked."""
    used = torch.ones(shape, dtype=torch.bool)
    if "-roi" in flags:
        fast_low, fast_high, slow_low, slow_high = (int(word) for word in flags["-roi"])
        used[:slow_low], used[slow_high + 1 :] = False, False
        used[:, :fast_low], used[:, fast_high + 1 :] = False, False
    if "-mask" in flags:
        used &= read_smv(folder / flags["-mask"][0])[1] != 0
    return used
