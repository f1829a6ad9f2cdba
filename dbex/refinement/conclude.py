"""What a solved still amounts to: esds, tables, figures, what the data ask for beyond it, and the verdict."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dbex.physics.sigma_z import background_sigma_z
from dbex.refinement.box_drift import box_drift
from dbex.refinement.demands import unmet_demands
from dbex.refinement.jackknife import jackknife_covariance, larger_esds, quoted_covariance
from dbex.refinement.parameters import CELL, Parametrisation
from dbex.refinement.rounds import Round, as_minimised, resolution_limit, solved_round
from dbex.refinement.search import Search, spot_offsets
from dbex.refinement.settings import Settings
from dbex.refinement.tables import (
    Solved,
    box_table,
    figures_of_merit,
    free_intensities,
    likely_model_error,
    pixel_table,
    squared_residuals,
)
from dbex.refinement.uncertainty import curvature
from dbex.refinement.verdict import judge
from dbex.refinement.width_tensors import isotropic_widths
from dbex.still import BoxTable, Floats, Iteration, ParameterEstimate, Refined, Still, Trial
from nanobrag_torch.config import BeamConfig, CrystalConfig, Matrix
from nanobrag_torch.jacobian import jacobian
from nanobrag_torch.lattice import orientation


def conclude(
    still: Still,
    settings: Settings,
    final: Round,
    found: Search | None,
    trials: list[Trial],
    history: list[Iteration],
) -> Refined:
    """Esds, tables, figures, what the data ask for, and the verdict."""
    map, x = final.objective.map, torch.as_tensor(final.solution.x)
    bend = curvature(final.solution.matrix, map)
    solved = solved_round(final)
    minimised = as_minimised(final)
    boxes = final.objective.boxes
    weight = mean_weights(solved)
    reduced = reduced_chi2(final, solved)
    inflation = esd_inflation(reduced)
    empirical = jackknife_covariance(minimised, final.solution.matrix, np.zeros(len(map)), range(len(map)))
    quoted = quoted_covariance(bend.covariance, empirical, inflation)
    table, pixels = box_table(solved, still, weight, quoted), pixel_table(solved)
    background = background_sigma_z(pixels)
    figures = fit_figures(still, settings, final, solved, table, reduced)
    figures |= {
        "condition_number": bend.condition_number,
        "sigma_z": background.together.rms,
        "sigma_z_esd": background.together.esd,
        "search_median_px_before": found.median_px_before if found else float("nan"),
        "search_median_px_after": found.median_px_after if found else float("nan"),
        "explained_spots": found.explained if found else float("nan"),
    }
    figures |= evidence(still, map, x)
    if still.others is not None:
        figures["lattices"] = 1.0 + still.others.count
    wanted = unmet_demands(minimised, inflation)
    crystal, beam = plain(map, x)
    slopes = reported_slopes(map, x)
    return Refined(
        still=still,
        crystal=crystal,
        detector=map.detector_at(x),
        beam=beam,
        estimates=estimates(
            map, still, x, slopes, bend.covariance, empirical, box_drift(still, settings, final), inflation
        ),
        covariance=slopes @ bend.covariance @ slopes.T * inflation**2,
        boxes=table,
        pixels=pixels,
        background=background,
        figures=figures,
        left_out=still.left_out
        | boxes.left_out
        | {"pixels down-weighted, more than 6 sigma off": int(figures["down_weighted_pixels"])},
        history=tuple(history),
        verdict=judge(final.solution.converged, figures, wanted, bend, map),
        seconds={},
        worst_direction=bend.worst_direction,
        terms=tuple(trials),
    )


def reduced_chi2(final: Round, solved: Solved) -> float:
    """χ² of a solved round over its degrees of freedom."""
    pixel_weight, boxes = solved.objective.weight, final.objective.boxes
    freedom = float(boxes.used.sum()) - 3 * len(boxes) - len(final.objective.map) - _effective_intensities(solved)
    # pixels that were down-weighted in the fit do not speak for the noise of the others either
    return float((pixel_weight**2 * squared_residuals(solved) * boxes.used).sum()) / max(freedom, 1.0)


def mean_weights(solved: Solved) -> Tensor:
    """The mean robust weight of the used pixels of each box (n,)."""
    boxes = solved.objective.boxes
    return boxes.sums(solved.objective.weight * boxes.used) / boxes.sums(boxes.used.double())


def esd_inflation(reduced: float) -> float:
    """What a reduced χ² does to esds."""
    return float(np.sqrt(max(1.0, reduced)))


def fit_figures(
    still: Still, settings: Settings, final: Round, solved: Solved, table: BoxTable, reduced: float
) -> dict[str, float]:
    """The figures of merit of a solved round, its reduced χ² and what that does to esds."""
    pixel_weight, used = solved.objective.weight, final.objective.boxes.used
    figures = figures_of_merit(solved, table, still.amplitudes)
    error = (
        likely_model_error(solved, still.amplitudes).relative if settings.model_error is None else settings.model_error
    )
    return figures | {
        "chi2_reduced": reduced,
        "esd_inflation": esd_inflation(reduced),
        "relative_model_error": error,
        "down_weighted_pixels": float((used & (pixel_weight < 1)).sum()),
        "d_min_A": resolution_limit(still, settings),
    }


def evidence(still: Still, map: Parametrisation, x: Tensor) -> dict[str, float]:
    """How many spots were indexed, how far (median, pixels) the model puts them from where they are, and what they and
    the dead pixels say of the mask."""
    spots = still.observed
    hkl, panel = torch.as_tensor(spots.hkl, dtype=x.dtype), torch.as_tensor(spots.panel)
    offset, _ = spot_offsets(map.models(x), hkl, panel, torch.as_tensor(spots.xy_px))
    found = {
        "indexed_spots": float(len(spots)),
        "spots_median_px": float(torch.linalg.vector_norm(offset, dim=-1).median()),
    }
    mask = still.mask_check
    if mask is not None:
        found |= {
            "spots_under_mask": mask.hidden_spots / max(mask.spots, 1),
            "dead_pixels_trusted": mask.trusted_dead / max(mask.dead_pixels, 1),
        }
    return found


def _effective_intensities(solved: Solved) -> float:
    """How many of the intensities the data rather than the prior determine."""
    _, variance = free_intensities(solved)
    sd = solved.objective.prior.sd[solved.objective.boxes.node[:, 0]].numpy()
    share = sd**2 / (sd**2 + variance)
    return float(np.nansum(share))


def plain(map: Parametrisation, x: Tensor) -> tuple[CrystalConfig, BeamConfig]:
    """The refined crystal and beam as plain numbers: the misset moves into U; of several components the mean."""
    crystal, beam = map.mean_crystal(x), map.models(x).beam
    cell = {name: float(getattr(crystal, name)) for name in CELL}
    size, mosaicity = isotropic_widths(crystal)
    crystal = replace(
        crystal,
        **cell,  # type: ignore[arg-type]
        U=rows(orientation(crystal, x)),
        misset_deg=(0.0, 0.0, 0.0),
        domain_size_A=size,
        N_cells=(size / cell["cell_a"], size / cell["cell_b"], size / cell["cell_c"]),
        mosaicity_deg=mosaicity,
        strain=float(crystal.strain),
        b_factor_A2=float(crystal.b_factor_A2),
        size_covariance=None if crystal.size_covariance is None else rows(crystal.size_covariance),
        mosaic_covariance_deg2=(
            None if crystal.mosaic_covariance_deg2 is None else rows(crystal.mosaic_covariance_deg2)
        ),
    )
    direction = beam.direction.tolist() if isinstance(beam.direction, Tensor) else beam.direction
    return crystal, replace(
        beam,
        wavelength_A=float(beam.wavelength_A),
        direction=tuple(direction),
        bandwidth=float(beam.bandwidth),
        divergence_h_mrad=float(beam.divergence_h_mrad),
        divergence_v_mrad=float(beam.divergence_v_mrad),
    )


def rows(matrix: Matrix) -> Matrix:
    """A matrix as nested tuples."""
    return tuple((float(x), float(y), float(z)) for x, y, z in torch.as_tensor(matrix).tolist())


def estimates(
    map: Parametrisation,
    still: Still,
    x: Tensor,
    slopes: Floats,
    covariance: Floats,
    empirical: Floats,
    drift: Floats,
    inflation: float,
) -> tuple[ParameterEstimate, ...]:
    """Each free number as it was read and as it is now, with its esds, in the unit it is reported in; `slopes` are
    derivatives (n, n) of reported values by coordinates, `drift` (n,) how these move when boxes are larger."""
    formal, jackknife = (np.sqrt(np.einsum("ki,ij,kj->k", slopes, of, slopes)) for of in (covariance, empirical))
    drifted = slopes @ drift
    quoted = np.maximum(larger_esds(formal, jackknife, inflation), np.abs(drifted))
    before, now = starting_values(map, still), map.values(x)
    return tuple(
        ParameterEstimate(p.name, p.group, p.unit, before[p.name], now[p.name], *map_esds)
        for p, map_esds in zip(map.parameters, np.stack([formal, quoted, jackknife, drifted], 1).tolist(), strict=True)
    )


def reported_slopes(map: Parametrisation, x: Tensor) -> Floats:
    """Derivatives (n, n) of the reported values by the coordinates."""
    (slopes,) = jacobian(lambda x: (map.reported(x),), x)
    return np.asarray(slopes.numpy())


def starting_values(map: Parametrisation, still: Still) -> dict[str, float]:
    """The reported values of the models that were read."""
    point_spread = torch.as_tensor([float(panel.point_spread_mm) for panel in still.detector], dtype=torch.float64)
    read = replace(map, crystal=still.crystal, beam=still.beam, panels=replace(map.panels, point_spread=point_spread))
    zero = torch.zeros(len(map), dtype=torch.float64)
    return read.values(zero)
