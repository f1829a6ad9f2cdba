"""The plain records of one still: what was read, what is refined against, what a refinement found.

Arrays are numpy. Pixel coordinates are in pixels from the outer corner of a panel's first pixel: whole numbers are
edges, the centre of pixel i is at i + 0.5. A bbox is (x0, x1, y0, y1), x along fast, y along slow, upper bounds
exclusive.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig
from nanobrag_torch.lattice import reciprocal_matrix

Floats = NDArray[np.float64]
Image = NDArray[np.float32] | NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: Shells of resolution in which the mean F² is taken.
SHELLS = 40


@dataclass(frozen=True)
class Amplitudes:
    """Structure factor amplitudes in P1 with Friedel mates apart: hkl (n, 3), F and sigma_F (n,); `dataset` is what
    the file calls them, `space_group` the Hermann-Mauguin symbol and `unit_cell` the six numbers of the file."""

    hkl: Ints
    F: Floats
    sigma_F: Floats
    dataset: str
    space_group: str
    unit_cell: tuple[float, ...]

    @cached_property
    def s_squared(self) -> Floats:
        """1/d² (n,), 1/Å²."""
        B = reciprocal_matrix(torch.tensor(self.unit_cell, dtype=torch.float64)).numpy()
        return np.asarray(((self.hkl @ B.T) ** 2).sum(1))

    @cached_property
    def mean_square(self) -> Floats:
        """The mean F² (n,) of each one's resolution: that of `SHELLS` shells, equal in 1/d², and between them by
        interpolation of its logarithm."""
        s2, F2 = self.s_squared, self.F**2
        edges = np.linspace(0, s2.max() * (1 + 1e-9) or 1.0, SHELLS + 1)
        shell = np.digitize(s2, edges) - 1
        count, total = np.bincount(shell, minlength=SHELLS), np.bincount(shell, F2, SHELLS)
        full = (count > 0) & (total > 0)
        if not full.any():
            return F2
        centre = 0.5 * (edges[1:] + edges[:-1])
        return np.exp(np.interp(s2, centre[full], np.log(total[full] / count[full])))


@dataclass(frozen=True)
class Observed:
    """The indexed reflections of a still: hkl (n, 3), panel (n,), bbox (n, 4), observed centroid xy_px (n, 2)
    (fast, slow), summed intensity and its variance (n,), and `row` (n,), the place in the table that was read."""

    hkl: Ints
    panel: Ints
    bbox: Ints
    xy_px: Floats
    intensity: Floats
    variance: Floats
    row: Ints

    def __len__(self) -> int:
        return len(self.hkl)


@dataclass(frozen=True)
class NoiseModel:
    """How numbers in the image become photons: photons = (value − pedestal) / gain; read-out noise in photons, per
    panel a number or an array (slow, fast). `provenance` is measured, sigma_map, sigma_scalar, external_lookup or
    photon_counting. `panels` holds gain and pedestal of each panel where they have their own; `gain` is then the mean.
    """

    gain: float
    sigma_readout_photons: tuple[float | Floats, ...]
    provenance: str
    panels: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class MaskCheck:
    """What speaks for or against a mask: of `spots` indexed ones it hides `hidden_spots`; of `dead_pixels`, which a
    counting detector marks by numbers below zero, it trusts `trusted_dead`."""

    spots: int
    hidden_spots: int
    dead_pixels: int
    trusted_dead: int


@dataclass(frozen=True)
class OtherLattices:
    """The other crystals on a still's image: how many, and their Bragg light as their own fits have it, photons, one
    array (slow, fast) a panel."""

    count: int
    photons: tuple[Image, ...]


@dataclass(frozen=True)
class Still:
    """One still as read, one entry a panel in `images_photons` and `trusted` (slow, fast), dxtbx's models as they
    are, the opaque reflection table that they came with, and the experiment's place in the list that was read.

    `held_out` (m,) marks amplitudes whose reflections get no box, to judge a fit by that never saw them; as neighbours
    they keep their place and their tails. `others` are further lattices on the same image, None where it has one alone
    or nothing is known of them yet. `mask_check` is None where no mask was given, `d_min_A` the resolution to which its
    pixels show reflections, None where nobody has looked.
    """

    name: str
    experiment: Any
    table: Any
    observed: Observed
    images_photons: tuple[Image, ...]
    trusted: tuple[Bools, ...]
    amplitudes: Amplitudes
    noise: NoiseModel
    crystal: CrystalConfig
    detector: tuple[DetectorConfig, ...]
    beam: BeamConfig
    files: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    index: int = 0
    held_out: Bools | None = None
    others: OtherLattices | None = None
    mask_check: MaskCheck | None = None
    d_min_A: float | None = None

    def q_as_read(self, hkl: Ints) -> Floats:
        """Scattering vectors (n, 3) of reflections hkl (n, 3) under the crystal that was read, 1/Å."""
        return hkl @ np.asarray(self.experiment.crystal.get_A()).reshape(3, 3).T

    @cached_property
    def finest_A(self) -> float:
        """The smallest spacing (Å) among the amplitudes."""
        return 1 / float(np.linalg.norm(self.q_as_read(self.amplitudes.hkl), axis=1).max())


@dataclass(frozen=True)
class RefinementInputs:
    """What a loss needs, as arrays [panel, slow, fast]: `target` in photons with the background subtracted,
    `loss_mask` where background and trust allow, `panel_slices` of (panel, (x0, x1, y0, y1)), σ in photons, a
    background in photons that is -1 outside the boxes, and where gain, σ and scale came from."""

    target: Floats
    loss_mask: Bools
    panel_slices: tuple[tuple[int, tuple[int, int, int, int]], ...]
    trusted_mask: Bools
    sigma_readout: Floats
    target_representation: str
    global_scale_hint: float
    sigma_readout_provenance: str
    background: Floats
    adu_per_photon: float
    unit_mode: str
    variance_floor: float


#: How pixels that do not fit are weighed, and the mean weight below which a box is named as one of them.
ROBUST_RULE, FULL_WEIGHT = "Huber: pixels more than 6 sigma off pull no harder than there", 0.99


@dataclass(frozen=True)
class ParameterEstimate:
    """One refined number: before, after and its esds in `unit`.

    `esd_formal` is that of the normal matrix, `esd_jackknife` that of leaving out groups of boxes, `esd` the one to
    quote: the formal one times √(χ²/ν), or the jackknife's where that is clearly larger, or `drift`, by how much the
    number moves when boxes are larger, where that is.
    """

    name: str
    group: str
    unit: str
    before: float
    after: float
    esd_formal: float
    esd: float
    esd_jackknife: float = float("nan")
    drift: float = float("nan")


@dataclass(frozen=True)
class Iteration:
    """One step of the solver, for the history and the progress display."""

    stage: str
    number: int
    chi2_per_pixel: float
    merit: float
    damping: float
    step_in_esds: float
    accepted: bool


@dataclass(frozen=True)
class BoxTable:
    """One row a box (n): the reflection, where the model puts it and what its pixels say of it.

    Positions are (fast, slow). `excitation` is the excitation error over its rms along the Ewald sphere's normal (k),
    `delpsi_rad` the rotation that would bring the node onto the sphere, `partiality` relative to a node on the
    sphere. `intensity` and `variance` are the full intensity (scale of F²) without prior, overlapping spots together;
    `summed_*` are those of the added up pixels of the spot, without the error of the partiality; `posterior_*` use the
    structure factors as prior. `row` is the row of the table that was read, -1 for a reflection
    that was only predicted. `xy_observed_px` is the centroid that was read with it, NaN where there is none;
    `xy_before_px` is where the models that were read put the reflection.
    """

    hkl: Ints
    panel: Ints
    bbox: Ints
    xy_px: Floats
    xy_before_px: Floats
    xy_observed_px: Floats
    xy_mm: Floats
    s1: Floats
    delpsi_rad: Floats
    excitation: Floats
    partiality: Floats
    partiality_esd: Floats
    lp: Floats
    intensity: Floats
    variance: Floats
    summed_intensity: Floats
    summed_variance: Floats
    posterior_intensity: Floats
    posterior_variance: Floats
    prior_intensity: Floats
    background_mean: Floats
    cc: Floats
    chi2_per_pixel: Floats
    signal_to_noise: Floats
    pixels: Ints
    weight: Floats
    row: Ints

    def __len__(self) -> int:
        return len(self.hkl)


@dataclass(frozen=True)
class PixelTable:
    """One row a pixel (n), in photons; data and variance are those before subtraction of the background, which is the
    plane of the box and what other lattices on the image send, `other_lattices`."""

    box: Ints
    panel: Ints
    slow: Ints
    fast: Ints
    data: Floats
    background: Floats
    other_lattices: Floats
    bragg: Floats
    variance: Floats
    used: Bools


@dataclass(frozen=True)
class SigmaZ:
    """The rms of Z over some pixels with its esd, and their mean intensity; NaN where there is no pixel."""

    pixels: int
    intensity: float
    rms: float
    esd: float


@dataclass(frozen=True)
class SigmaZCheck:
    """σ-Z over all pixels, in bins of rising intensity with about as many pixels each, and by number of panel."""

    together: SigmaZ
    by_intensity: tuple[SigmaZ, ...]
    by_panel: dict[int, SigmaZ]


@dataclass(frozen=True)
class Verdict:
    """Whether a fit can be used: `state` is good, fair, incomplete, poor or not converged, `reasons` say why in
    words, `advice` names what the data ask for beyond what was refined. A fit is fair where only the noise of bright
    spots is not reached, incomplete where model and pixels agree but the data contradict what was held."""

    state: str
    reasons: tuple[str, ...]
    advice: tuple[str, ...]


#: What spreads wavelengths and what spreads the cell are one covariance on a still.
SAME_ON_ONE_STILL = {"bandwidth": "cell_spread", "cell_spread": "bandwidth"}


@dataclass(frozen=True)
class Trial:
    """A term of the model that was asked for: by how much its beginning promised to lower -2 ln likelihood, its cost,
    and by how much it did, None where it was not tried because it promised too little."""

    name: str
    promised: float
    cost: float
    gain: float | None = None

    @property
    def kept(self) -> bool:
        """Whether it paid."""
        return self.gain is not None and self.gain > self.cost


@dataclass(frozen=True)
class Refined:
    """A refined still: the models, the estimates and everything that the reports and files are made from.

    `figures` holds chi2_per_pixel, chi2_core, median_cc, boxes, pixels, core_pixels, boxes_cc, relative_model_error,
    condition_number and their like by name; `left_out` counts what was not used and why; `background` is σ-Z of the
    pixels that hold no Bragg scattering; `terms` are those of the model that were asked for.
    """

    still: Still
    crystal: CrystalConfig
    detector: tuple[DetectorConfig, ...]
    beam: BeamConfig
    estimates: tuple[ParameterEstimate, ...]
    covariance: Floats
    boxes: BoxTable
    pixels: PixelTable
    background: SigmaZCheck
    figures: dict[str, float]
    left_out: dict[str, int]
    history: tuple[Iteration, ...]
    verdict: Verdict
    seconds: dict[str, float]
    worst_direction: str
    terms: tuple[Trial, ...] = ()

    def same_on_one_still(self) -> dict[str, str]:
        """Estimates by name, each with the other name that its data could as well have."""
        found = {estimate.name for estimate in self.estimates}
        return {name: other for name, other in SAME_ON_ONE_STILL.items() if name in found}

    def down_weighted(self) -> Ints:
        """The boxes whose pixels lost weight to the robust rule (`ROBUST_RULE`), those that lost most first."""
        return down_weighted(self.boxes)

    def quoted_covariance(self) -> Floats:
        """The covariance of the estimates in their units: its correlations, with the esds that are quoted."""
        formal = np.sqrt(np.diag(self.covariance))
        esd = np.array([estimate.esd for estimate in self.estimates])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.covariance * np.outer(esd / formal, esd / formal))


@dataclass(frozen=True)
class StillResult:
    """What a run leaves of a still, as reports are made from it: the content of dbex.json, boxes and pixels."""

    content: dict[str, Any]
    boxes: BoxTable
    pixels: PixelTable

    @property
    def name(self) -> str:
        """What the still is called."""
        return str(self.content["still"])

    @property
    def detector(self) -> tuple[DetectorConfig, ...]:
        """The refined panels."""
        panels = self.content["models"]["after"]["detector"]
        plain: list[dict[str, Any]] = [
            {key: tuple(v) if isinstance(v, list) else v for key, v in panel.items()} for panel in panels
        ]
        return tuple(DetectorConfig(**fields) for fields in plain)

    @property
    def beam_direction(self) -> tuple[float, float, float]:
        """The refined direction in which the beam travels."""
        x, y, z = self.content["models"]["after"]["beam"]["direction"]
        return float(x), float(y), float(z)

    def down_weighted(self) -> Ints:
        """The boxes whose pixels lost weight to the robust rule, those that lost most first."""
        return down_weighted(self.boxes)


def down_weighted(boxes: BoxTable) -> Ints:
    """The boxes whose pixels lost weight to the robust rule (`ROBUST_RULE`), those that lost most first."""
    order = np.argsort(boxes.weight, kind="stable")
    found: Ints = order[boxes.weight[order] < FULL_WEIGHT]
    return found
