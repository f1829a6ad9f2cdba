"""One still from start to verdict: search, widths, all predicted reflections, and what the data say of the result."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dbex.errors import BadInput
from dbex.models import free_cell_parameters
from dbex.refinement.objective import Objective
from dbex.refinement.parameters import CELL, Parametrisation, parametrisation
from dbex.refinement.prior import estimate_model_error, intensity_prior
from dbex.refinement.problem import State, StillProblem
from dbex.refinement.search import Search, search
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import Predictions, Shoeboxes, observed_predictions, predict, shoeboxes
from dbex.refinement.solvers.levenberg_marquardt import minimise
from dbex.refinement.solvers.solution import Solution, Step
from dbex.refinement.tables import Solved, box_table, figures_of_merit, free_intensities, pixel_table
from dbex.refinement.uncertainty import Demand, curvature, demands
from dbex.refinement.verdict import judge
from dbex.still import Floats, Iteration, ParameterEstimate, Refined, Still
from nanobrag_torch.profile import Quadrature

Progress = Callable[[Iteration], None]

#: Reflections within this many widths of the Ewald sphere have boxes; those within the second send tails into them.
K_BOXES, K_TAILS = 3.0, 4.0
#: The finest resolution looked at, over that which 95 % of the indexed spots reach.
BEYOND_SPOTS = 0.85
#: Relative error of F² while the scale and the widths are still rough.
ROUGH_MODEL_ERROR = 1.0
#: A solution is one where the next step is below this fraction of every esd; rough stages stop earlier.
CONVERGED_ESDS, ROUGH_ESDS = 0.02, 0.5
#: Rounds of predicting the boxes anew until they stay.
MAX_ROUNDS = 6
#: Start widths: no narrower than what the search finds, no wider than a degree.
MOSAICITY_RANGE_DEG, DOMAIN_RANGE_A = (0.01, 1.0), (150.0, 3000.0)
#: A pixel with a residual beyond this, whose neighbours have none, is no part of a spot.
HOT_PIXEL_Z, CALM_Z = 6.0, 1.5


@dataclass(frozen=True)
class Round:
    """A solved round: the objective, the solution and the predictions that it was built on."""

    objective: Objective
    solution: Solution
    predictions: Predictions

    @property
    def state(self) -> State:
        found: State = self.solution.state
        return found


def refine_still(still: Still, settings: Settings, progress: Progress | None = None) -> Refined:
    """Refine one still. Raises BadInput where nothing can be refined: no indexed spot among the amplitudes, no box."""
    clock = [time.perf_counter()]
    history: list[Iteration] = []

    def report(iteration: Iteration) -> None:
        history.append(iteration)
        if progress is not None:
            progress(iteration)

    map = start(still, settings)
    found = search(still, map, np.zeros(len(map))) if settings.start != "near" else None
    x = np.zeros(len(map)) if found is None else found.x
    map = with_widths(map, found)
    clock.append(time.perf_counter())
    x, map = strong_stage(still, map, x, settings, report)
    clock.append(time.perf_counter())
    final = all_predicted(still, map, x, settings, report)
    clock.append(time.perf_counter())
    refined = conclude(still, settings, final, found, history)
    clock.append(time.perf_counter())
    names = ("search", "strong_spots", "all_predicted", "conclusion")
    seconds = {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
    return replace(refined, seconds=seconds | {"total": clock[-1] - clock[0]})


def start(still: Still, settings: Settings) -> Parametrisation:
    """What moves, from the models that were read."""
    free_cell = free_cell_parameters(still.experiment.crystal.get_space_group())
    crystal = still.crystal
    if crystal.domain_size_A is None:
        raise BadInput(f"{still.name}: the crystal has no domain size: expected one from the experiment or the spots")
    crystal = replace(crystal, domain_size_A=float(np.clip(float(crystal.domain_size_A), *DOMAIN_RANGE_A)))
    beam = still.beam
    if "bandwidth" in settings.beam and float(beam.bandwidth) == 0:
        beam = replace(beam, bandwidth=1e-3)
    return parametrisation(
        crystal, still.detector, beam, free_cell, settings.crystal, settings.detector, settings.beam
    )


def with_widths(map: Parametrisation, found: Search | None) -> Parametrisation:
    """A mosaicity to begin with that reaches the spots which were seen."""
    seen = found.excitation_deg if found is not None else 0.0
    mosaicity = float(np.clip(max(float(map.crystal.mosaicity_deg), seen), *MOSAICITY_RANGE_DEG))
    if "mosaicity" not in [p.name for p in map.parameters]:
        return map
    return replace(map, crystal=replace(map.crystal, mosaicity_deg=mosaicity))


def resolution_limit(still: Still, settings: Settings) -> float:
    """d_min: as asked, else a little beyond the indexed spots, never beyond the amplitudes."""
    unit_cell_A = np.linalg.norm(_q_of(still, still.amplitudes.hkl), axis=1)
    finest = 1 / unit_cell_A.max()
    if settings.d_min is not None:
        return max(settings.d_min, finest)
    spots = np.linalg.norm(_q_of(still, still.observed.hkl), axis=1)
    return max(finest, BEYOND_SPOTS / float(np.quantile(spots, 0.95)))


def _q_of(still: Still, hkl: Floats) -> Floats:
    """Scattering vectors (n, 3) under the model that was read."""
    return hkl @ np.asarray(still.experiment.crystal.get_A()).reshape(3, 3).T


def objective_for(
    still: Still, map: Parametrisation, boxes: Shoeboxes, model_error: float, weight: Tensor | None = None
) -> Objective:
    """The objective of some boxes."""
    hkl = torch.as_tensor(still.amplitudes.hkl[boxes.reflections])
    prior = intensity_prior(still.amplitudes, boxes.reflections, model_error)
    ones = torch.ones_like(boxes.data) if weight is None else weight
    return Objective(boxes, hkl, map, prior, Quadrature(), ones).prepared()


def strong_stage(
    still: Still, map: Parametrisation, x: Floats, settings: Settings, report: Progress
) -> tuple[Floats, Parametrisation]:
    """Scale, widths and geometry from the indexed spots, their intensities nearly free."""
    models = map.models(torch.as_tensor(x))
    spots = observed_predictions(still, models)
    if not len(spots):
        raise BadInput(
            f"{still.name}: none of its {len(still.observed)} indexed spots is among the structure factors: "
            "is this the MTZ of this crystal?"
        )
    boxes = shoeboxes(still, spots, spots)
    if not len(boxes):
        raise BadInput(f"{still.name}: no indexed spot has enough trusted pixels: {_words(boxes.left_out)}")
    objective = objective_for(still, map, boxes, ROUGH_MODEL_ERROR)
    map = with_scale(objective, x)
    objective = replace(objective, map=map)
    solution = minimise(
        StillProblem(objective), x, settings.max_iterations, ROUGH_ESDS, _printer("strong spots", objective, report)
    )
    return solution.x, map


def with_scale(objective: Objective, x: Floats) -> Parametrisation:
    """The map with a scale at which intensities are those of the amplitudes, in the median of the spots."""
    at = torch.as_tensor(x)
    variance = objective.first_variance()
    local = objective.solve_linear(at, variance)
    solved = Solved(objective, at, np.zeros((len(at), len(at))), variance, local)
    value, _ = free_intensities(solved)
    prior = objective.prior.mean[objective.boxes.node[:, 0]].numpy()
    usable = np.isfinite(value) & (value > 0) & (prior > 0)
    shift = float(np.median(np.log(value[usable] / prior[usable]))) if usable.any() else 0.0
    return replace(objective.map, ln_scale=objective.map.ln_scale + shift)


def all_predicted(
    still: Still, map: Parametrisation, x: Floats, settings: Settings, report: Progress
) -> Round:
    """All reflections that the model predicts, predicted anew until the boxes stay and the model with them."""
    d_min = resolution_limit(still, settings)
    model_error = ROUGH_MODEL_ERROR if settings.model_error is None else settings.model_error
    shapes = [panel.shape for panel in still.detector]
    found: Round | None = None
    for number in range(MAX_ROUNDS):
        everything = predict(map.models(torch.as_tensor(x)), still.amplitudes, d_min, K_TAILS, shapes)
        chosen = everything.select(np.abs(everything.k) < K_BOXES)
        boxes = shoeboxes(still, chosen, everything) if len(chosen) else None
        if boxes is None or not len(boxes):
            raise BadInput(f"{still.name}: the model predicts no reflection on trusted pixels: check cell, detector and mask")
        objective = objective_for(still, map, boxes, model_error)
        last = number > 0 and found is not None and _same_boxes(found, objective) > 0.98
        solution = minimise(
            StillProblem(objective),
            x,
            settings.max_iterations,
            CONVERGED_ESDS if last or number == MAX_ROUNDS - 1 else ROUGH_ESDS,
            _printer(f"all predicted, round {number + 1}", objective, report),
        )
        moved = np.max(np.abs(solution.x - x) * np.sqrt(np.diag(solution.matrix)))
        x, found = solution.x, Round(objective, solution, chosen)
        if settings.model_error is None:
            model_error, previous = fitted_model_error(still, found), model_error
        else:
            previous = model_error
        if last and moved < 0.5 and abs(np.log(model_error / previous)) < 0.2:
            break
    assert found is not None
    return found


def fitted_model_error(still: Still, found: Round) -> float:
    """The relative error of F² that the free intensities of this round make most likely."""
    solved = _solved(found)
    value, variance = free_intensities(solved)
    reflections = found.objective.boxes.reflections[found.objective.boxes.node[:, 0].numpy()]
    return estimate_model_error(value, variance, still.amplitudes, reflections)


def _solved(found: Round) -> Solved:
    covariance = curvature(found.solution.matrix, found.objective.map).covariance
    return Solved(found.objective, torch.as_tensor(found.solution.x), covariance, found.state.variance, found.state.local)


def _same_boxes(found: Round, objective: Objective) -> float:
    """Fraction of boxes that two rounds share."""

    def names(of: Objective) -> set[tuple[int, ...]]:
        return {tuple(h) for h in of.hkl[of.boxes.node[:, 0]].tolist()}

    before, now = names(found.objective), names(objective)
    return len(before & now) / max(len(before | now), 1)


def _printer(stage: str, objective: Objective, report: Progress) -> Callable[[Step, State], None]:
    """Turns the solver's steps into iterations for the reader."""
    pixels = float(objective.boxes.used.sum())

    def show(step: Step, state: State) -> None:
        report(
            Iteration(
                stage, step.number, state.local.chi2 / pixels, step.merit, step.damping, step.step_in_esds, step.accepted
            )
        )

    return show


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def conclude(still: Still, settings: Settings, final: Round, found: Search | None, history: list[Iteration]) -> Refined:
    """Esds, tables, figures, what the data ask for, and the verdict."""
    map, x = final.objective.map, torch.as_tensor(final.solution.x)
    bend = curvature(final.solution.matrix, map)
    solved = Solved(final.objective, x, bend.covariance, final.state.variance, final.state.local)
    weight = torch.ones(len(final.objective.boxes), dtype=torch.float64)
    table = box_table(solved, still, weight)
    figures = figures_of_merit(solved, table)
    freedom = figures["pixels"] - 3 * figures["boxes"] - len(map) - _effective_intensities(solved)
    reduced = figures["chi2_per_pixel"] * figures["pixels"] / max(freedom, 1.0)
    inflation = float(np.sqrt(max(1.0, reduced)))
    figures |= {
        "chi2_reduced": reduced,
        "esd_inflation": inflation,
        "condition_number": bend.condition_number,
        "relative_model_error": fitted_model_error(still, final) if settings.model_error is None else settings.model_error,
        "d_min_A": resolution_limit(still, settings),
        "search_median_px_before": found.median_px_before if found else float("nan"),
        "search_median_px_after": found.median_px_after if found else float("nan"),
        "explained_spots": found.explained if found else float("nan"),
    }
    wanted = unmet_demands(solved, settings, inflation)
    crystal, beam = plain(map, x)
    return Refined(
        still=still,
        crystal=crystal,
        detector=map.detector_at(x),
        beam=beam,
        estimates=estimates(map, x, bend.covariance, inflation),
        covariance=bend.covariance * inflation**2,
        boxes=table,
        pixels=pixel_table(solved),
        figures=figures,
        left_out=still.left_out | final.objective.boxes.left_out,
        history=tuple(history),
        verdict=judge(final.solution.converged, figures, wanted, bend, map),
        seconds={},
        worst_direction=bend.worst_direction,
    )


def _effective_intensities(solved: Solved) -> float:
    """How many of the intensities the data rather than the prior determine."""
    _, variance = free_intensities(solved)
    sd = solved.objective.prior.sd[solved.objective.boxes.node[:, 0]].numpy()
    share = sd**2 / (sd**2 + variance)
    return float(np.nansum(share))


def plain(map: Parametrisation, x: Tensor):  # type: ignore[no-untyped-def]
    """The refined crystal and beam as plain numbers: the misset moves into U."""
    from nanobrag_torch.lattice import orientation

    models = map.models(x)
    crystal = models.crystal
    values = {name: float(getattr(crystal, name)) for name in (*CELL, "mosaicity_deg", "b_factor_A2")}
    size = float(crystal.domain_size_A)
    U = orientation(crystal, x)
    crystal = replace(
        crystal,
        **values,
        U=tuple(tuple(row) for row in U.tolist()),
        misset_deg=(0.0, 0.0, 0.0),
        domain_size_A=size,
        N_cells=tuple(size / values[name] for name in CELL[:3]),
    )
    beam = models.beam
    direction = beam.direction.tolist() if isinstance(beam.direction, Tensor) else beam.direction
    beam = replace(
        beam, wavelength_A=float(beam.wavelength_A), direction=tuple(direction), bandwidth=float(beam.bandwidth)
    )
    return crystal, beam


def estimates(map: Parametrisation, x: Tensor, covariance: Floats, inflation: float) -> tuple[ParameterEstimate, ...]:
    """Each free number before and after, with its esds, in the unit it is reported in."""
    zero = torch.zeros_like(x)
    result = []
    for i, parameter in enumerate(map.parameters):
        step = 1e-6
        nudged = x.clone()
        nudged[i] += step
        slope = abs(map.value(parameter.name, nudged) - map.value(parameter.name, x)) / step
        formal = slope * float(np.sqrt(covariance[i, i]))
        result.append(
            ParameterEstimate(
                parameter.name,
                parameter.group,
                parameter.unit,
                map.value(parameter.name, zero),
                map.value(parameter.name, x),
                formal,
                formal * inflation,
            )
        )
    return tuple(result)


def unmet_demands(solved: Solved, settings: Settings, inflation: float) -> list[Demand]:
    """What the groups that were held would do, were they free."""
    map = solved.objective.map
    detector = tuple(g for g in ("distance", "shift", "tilt") if g not in settings.detector)
    if not detector:
        return []
    wider = parametrisation(
        map.crystal, map.detector, map.beam, _cell_of(map), (), detector, (), map.ln_scale
    )
    both = replace(map, parameters=map.parameters + wider.parameters)
    x = torch.cat([solved.x, torch.zeros(len(wider), dtype=solved.x.dtype)])
    asked = replace(solved.objective, map=both).prepared()
    normal = asked.normal_equations(x, solved.variance, solved.local)
    return demands(normal.matrix, normal.gradient, len(map), both, inflation)


def _cell_of(map: Parametrisation) -> tuple[tuple[str, ...], Floats]:
    return tuple(p.name for p in map.parameters if p.group == "cell"), map.cell_map
