"""What the joint solution says of one still: its models, esds, tables and figures."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dbex.joint.solve import Joint
from dbex.physics.sigma_z import background_sigma_z
from dbex.refinement.conclude import (
    esd_inflation,
    estimates,
    fit_figures,
    mean_weights,
    plain,
    reduced_chi2,
    reported_slopes,
    starting_values,
)
from dbex.refinement.detector_motion import WHOLE, motions_between, unit_frame
from dbex.refinement.jackknife import QUOTED_BEYOND, jackknife_covariance, quoted_covariance
from dbex.refinement.parameters import Parametrisation
from dbex.refinement.rounds import Round, as_minimised, solved_round
from dbex.refinement.settings import Settings
from dbex.refinement.tables import box_table, pixel_table
from dbex.refinement.uncertainty import curvature
from dbex.still import BoxTable, Floats, ParameterEstimate, Refined, Still, Verdict
from nanobrag_torch.config import DetectorConfig
from nanobrag_torch.panel import stack_panels

#: The scatter of fewer stills than this says nothing of esds.
FEWEST_STILLS = 8
#: Full intensities are told of reflections within so many widths of the Ewald sphere.
K_MEASURED = 2.5
JOINTLY = Verdict("joint", ("refined jointly with other stills: see joint.json",), ())


def conclude(still: Still, settings: Settings, final: Round) -> Refined:
    """A still of the joint solution; the matrix of its round holds what all stills say of what they share."""
    map, x = final.objective.map, torch.as_tensor(final.solution.x)
    bend = curvature(final.solution.matrix, map)
    solved = solved_round(final)
    reduced = reduced_chi2(final, solved)
    inflation = esd_inflation(reduced)
    empirical = jackknife_covariance(as_minimised(final), final.solution.matrix, np.zeros(len(map)), range(len(map)))
    quoted = quoted_covariance(bend.covariance, empirical, inflation)
    table = measured(box_table(solved, still, mean_weights(solved), quoted))
    pixels = pixel_table(solved)
    figures = fit_figures(still, settings, final, solved, table, reduced)
    crystal, beam = plain(map, x)
    slopes = reported_slopes(map, x)
    return Refined(
        still=still,
        crystal=crystal,
        detector=map.detector_at(x),
        beam=beam,
        estimates=estimates_without_drift(final, still, slopes, bend.covariance, empirical, inflation),
        covariance=slopes @ bend.covariance @ slopes.T * inflation**2,
        boxes=table,
        pixels=pixels,
        background=background_sigma_z(pixels),
        figures=figures | {"condition_number": bend.condition_number},
        left_out=still.left_out | final.objective.boxes.left_out,
        history=(),
        verdict=JOINTLY,
        seconds={},
        worst_direction=bend.worst_direction,
    )


def measured(table: BoxTable) -> BoxTable:
    """The table without full intensities where hardly anything of the node reaches the Ewald sphere: a few percent of
    the widths' error would be half of them."""
    seen = np.abs(table.excitation) <= K_MEASURED
    full = ("intensity", "variance", "summed_intensity", "summed_variance")
    return replace(table, **{name: np.where(seen, getattr(table, name), np.nan) for name in full})


def estimates_without_drift(
    final: Round, still: Still, slopes: Floats, covariance: Floats, empirical: Floats, inflation: float
) -> tuple[ParameterEstimate, ...]:
    """The numbers with the esds of the normal matrix and of the jackknife; larger boxes are not tried on each of many
    stills."""
    map, x = final.objective.map, torch.as_tensor(final.solution.x)
    found = estimates(map, still, x, slopes, covariance, empirical, np.zeros(len(map)), inflation)
    return tuple(replace(estimate, drift=float("nan")) for estimate in found)


@dataclass(frozen=True)
class SharedEstimate:
    """A shared number in `unit`, before and after; its esd from the normal matrix, from the scatter of the stills, and
    the one to quote: the former, or the latter where it is clearly larger."""

    name: str
    group: str
    unit: str
    before: float
    after: float
    esd_formal: float
    esd_scatter: float
    esd: float


def shared_estimates(
    joint: Joint, still: Still, final: Round, read: tuple[DetectorConfig, ...]
) -> tuple[tuple[SharedEstimate, ...], Floats]:
    """The shared numbers in the units they are reported in, and their covariance (g, g) there, scaled to the quoted
    esds; in the words of one of the stills and its last round. Units of a detector have moved from where it was
    `read`."""
    map, x = final.objective.map, torch.as_tensor(final.solution.x)
    places = joint.common.places(map)
    slopes = reported_slopes(map, x)[np.ix_(places, places)]
    formal, scatter = (slopes @ of @ slopes.T for of in (joint.covariance, joint.scatter))
    one, other = np.sqrt(np.diag(formal)), np.sqrt(np.diag(scatter))
    trusted = len(joint.begun) >= FEWEST_STILLS
    quoted = np.where(trusted & (other > QUOTED_BEYOND * one), other, one)
    before, now = starting_values(map, still), map.values(x)
    if joint.common.frame.names != (WHOLE,):
        now |= unit_motions(map, x, read)
    found = tuple(
        SharedEstimate(p.name, p.group, p.unit, before[p.name], now[p.name], *map_esds)
        for p, map_esds in zip(joint.common.parameters, np.stack([one, other, quoted], 1).tolist(), strict=True)
    )
    return found, formal * np.outer(quoted / one, quoted / one)


def unit_motions(map: Parametrisation, x: torch.Tensor, read: tuple[DetectorConfig, ...]) -> dict[str, float]:
    """How far each unit has moved from where the detector was read, mm and mrad, by name."""
    panels, members = stack_panels(read, x.new_zeros(())), map.frame.unit.tolist()
    units = [[i for i, number in enumerate(members) if number == unit] for unit in range(len(map.frame))]
    frame = unit_frame(panels, read, units)
    motions = motions_between(frame, panels, map.models(x).panels) * ([1.0] * 3 + [1e3] * 3)
    return {
        name: value
        for names, row in zip(frame.names, motions.tolist(), strict=True)
        for name, value in zip(names, row, strict=True)
    }
