"""The rounds of a refinement: from widths that reach the spots to all predicted reflections, solved anew until the
boxes stay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from dbex.errors import BadInput
from dbex.models import free_cell_parameters
from dbex.refinement.groups import in_tiles
from dbex.refinement.lit import LEFT_OUT, light_left_out, lit_anew, lit_boxes
from dbex.refinement.objective import Objective
from dbex.refinement.parameters import Parameter, Parametrisation, parametrisation
from dbex.refinement.predictions import Predictions, observed_predictions, predict
from dbex.refinement.prior import ModelError, intensity_prior
from dbex.refinement.problem import State, StillProblem, huber_weight
from dbex.refinement.search import Search
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import Shoeboxes, shoeboxes, whole_pixels
from dbex.refinement.solvers import lbfgs, levenberg_marquardt
from dbex.refinement.solvers.solution import Solution, Step
from dbex.refinement.tables import Solved, free_intensities, likely_model_error
from dbex.refinement.uncertainty import curvature
from dbex.still import Bools, Floats, Ints, Iteration, Still
from nanobrag_torch.profile import Quadrature

Progress = Callable[[Iteration], None]

#: Reflections within this many widths of the Ewald sphere have boxes; those within the second send tails into them.
K_BOXES, K_TAILS = 3.0, 4.0
#: The part of the indexed spots whose resolution is their reach, and how far beyond it is looked before pixels tell.
REACHING, BEYOND_SPOTS = 0.95, 0.85
#: Relative error of F² while the scale and the widths are still rough.
ROUGH_MODEL_ERROR = ModelError(1.0)
#: A solution is one where the next step is below this fraction of every esd; rough stages stop earlier.
CONVERGED_ESDS, ROUGH_ESDS = 0.02, 1.0
#: Boxes stay where this part of the reflections that would be chosen has them, no farther off than so many pixels and
#: of a size that differs by no more in ln; and the relative error of F² by no more than this in ln.
SAME_BOXES, STAYED_PX, STAYED_LN_SIZE, STAYED_LN_ERROR = 0.98, 0.1, 0.05, 0.2
#: Rounds but the last end where the next step is below so many esds.
ROUGHLY_ESDS = 0.5
#: So many boxes are enough to choose a model by.
ENOUGH_BOXES = 800
#: Rounds of predicting the boxes anew: before richer models are tried, and until they stay.
FIRST_ROUNDS, MAX_ROUNDS = 2, 6
#: The solvers by name: one interface.
SOLVE = {"levenberg_marquardt": levenberg_marquardt.minimise, "lbfgs": lbfgs.minimise}
#: Start widths: no narrower than what the search finds, no wider than a degree.
MOSAICITY_RANGE_DEG, DOMAIN_RANGE_A = (0.01, 1.0), (150.0, 3000.0)


@dataclass(frozen=True)
class Round:
    """A solved round: the objective, the solution, the predictions that it was built on, the error of F² that it took
    for granted, and the still and model that its boxes were laid out for, None where they were for another model."""

    objective: Objective
    solution: Solution
    predictions: Predictions
    model_error: ModelError
    still: Still | None = None

    @property
    def state(self) -> State:
        """Variances and linear optimum at the solution."""
        found: State = self.solution.state
        return found

    @property
    def pixels(self) -> float:
        """Number of used pixels."""
        return float(self.objective.boxes.used.sum())

    @property
    def problem(self) -> StillProblem:
        """What the solver solved."""
        return StillProblem(self.objective)


def start(still: Still, settings: Settings) -> Parametrisation:
    """What moves, from the models that were read."""
    free_cell = free_cell_parameters(still.experiment.crystal.get_space_group())
    crystal = still.crystal
    if crystal.domain_size_A is None:
        raise BadInput(f"{still.name}: the crystal has no domain size: expected one from the experiment or the spots")
    crystal = replace(crystal, domain_size_A=float(np.clip(float(crystal.domain_size_A), *DOMAIN_RANGE_A)))
    groups = (settings.crystal, settings.detector, settings.beam)
    map = parametrisation(crystal, still.detector, still.beam, free_cell, *groups)
    return with_priors(map, settings.priors)


def with_priors(map: Parametrisation, priors: Mapping[str, float]) -> Parametrisation:
    """The map with the priors that were asked for. Raises BadInput for a parameter that is not free."""
    names = [p.name for p in map.parameters]
    for name in priors:
        if name not in names:
            raise BadInput(f"a prior is given for {name!r}: expected a free parameter, one of {', '.join(names)}")
    zero = torch.zeros(len(map), dtype=torch.float64)

    def narrowed(i: int, parameter: Parameter) -> Parameter:
        if parameter.name not in priors:
            return parameter
        step = torch.zeros_like(zero)
        step[i] = 1e-6
        slope = (map.value(parameter.name, step) - map.value(parameter.name, -step)) / 2e-6
        return replace(parameter, prior=priors[parameter.name] / abs(slope))

    return replace(map, parameters=tuple(narrowed(i, p) for i, p in enumerate(map.parameters)))


def with_widths(map: Parametrisation, found: Search | None) -> Parametrisation:
    """A mosaicity to begin with that reaches the spots which were seen."""
    seen = found.excitation_deg if found is not None else 0.0
    mosaicity = float(np.clip(max(float(map.crystal.mosaicity_deg), seen), *MOSAICITY_RANGE_DEG))
    if "mosaicity" not in [p.name for p in map.parameters]:
        return map
    return replace(map, crystal=replace(map.crystal, mosaicity_deg=mosaicity))


def resolution_limit(still: Still, settings: Settings) -> float:
    """d_min: as asked, else as the pixels showed, else a little beyond the indexed spots; never beyond the
    amplitudes."""
    wanted = settings.d_min or still.d_min_A or BEYOND_SPOTS * reach_of_spots(still)
    return max(wanted, still.finest_A)


def reach_of_spots(still: Still) -> float:
    """The spacing (Å) that `REACHING` of the indexed spots reach."""
    return 1 / float(np.quantile(np.linalg.norm(still.q_as_read(still.observed.hkl), axis=1), REACHING))


def objective_for(
    still: Still, map: Parametrisation, boxes: Shoeboxes, model_error: ModelError, x: Floats | None = None
) -> Objective:
    """The objective of some boxes, whose model is about x (0 where it is not given)."""
    at = torch.zeros(len(map), dtype=torch.float64) if x is None else torch.as_tensor(x)
    hkl = torch.as_tensor(still.amplitudes.hkl[boxes.reflections])
    whole = whole_pixels(map.models(at), hkl[boxes.node[:, 0]], boxes)
    boxes = in_tiles(boxes, whole)
    prior = intensity_prior(still.amplitudes, boxes.reflections, model_error)
    return Objective(boxes, hkl, map, prior, Quadrature(), torch.ones_like(boxes.data), whole).prepared(at)


def where_lit(still: Still, objective: Objective, model_error: ModelError, x: Floats) -> Objective:
    """The objective at x with the nodes that are seen in its boxes, and each pixel with those that light it."""
    return objective_for(still, objective.map, lit_boxes(objective, torch.as_tensor(x)), model_error, x)


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
    objective = objective_for(still, map, boxes, ROUGH_MODEL_ERROR, x)
    map = with_scale(objective, x)
    objective = replace(objective, map=map)
    solution = SOLVE[settings.solver](
        StillProblem(objective), x, settings.max_iterations, ROUGH_ESDS, printer("strong spots", objective, report)
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
    still: Still,
    map: Parametrisation,
    x: Floats,
    settings: Settings,
    report: Progress,
    rounds: int = MAX_ROUNDS,
    tolerance_esds: float = CONVERGED_ESDS,
    before: Round | None = None,
) -> Round:
    """All reflections that the model predicts, predicted anew until the boxes stay and the model with them.

    `before` is a round that ended at x, whose boxes and model error are those to begin with. Rounds are as rough as
    what still moves between them; the last one goes on until steps are below `tolerance_esds`.
    """
    model_error = ROUGH_MODEL_ERROR if settings.model_error is None else ModelError(settings.model_error)
    if before is not None and settings.model_error is None:
        model_error = fitted_model_error(still, before)
    found, rough = before, max(tolerance_esds, ROUGHLY_ESDS)
    solve = SOLVE[settings.solver]
    for number in range(rounds):
        everything, chosen = predicted(still, map, x, settings)
        if found is not None and _stays(found, still, chosen, model_error):
            break
        objective = objective_of(still, map, x, (everything, chosen), model_error)
        show = printer(f"all predicted, round {number + 1}", objective, report)
        solution = solve(StillProblem(objective), x, settings.max_iterations, rough, show)
        at, state = torch.as_tensor(solution.x), solution.state
        if light_left_out(objective, at, state.local.intensity, state.variance) > LEFT_OUT:
            objective = lit_anew(objective, at)
            solution = solve(StillProblem(objective), solution.x, settings.max_iterations, rough, show)
        x, found = solution.x, Round(objective, solution, chosen, model_error, still)
        if settings.model_error is None:
            model_error = fitted_model_error(still, found)
    if found is None:
        raise AssertionError("at least one round")
    if tolerance_esds >= rough:
        return found
    prior = intensity_prior(still.amplitudes, found.objective.boxes.reflections, model_error)
    objective = replace(found.objective, prior=prior)
    problem, show = StillProblem(objective), printer("all predicted, to the end", objective, report)
    state = problem.renewed(x, found.state)
    solution = solve(problem, x, settings.max_iterations, tolerance_esds, show, state)
    return Round(objective, solution, found.predictions, model_error, still)


def predicted(still: Still, map: Parametrisation, x: Floats, settings: Settings) -> tuple[Predictions, Predictions]:
    """All reflections that the model at x predicts, and those of them that get boxes."""
    shapes = [panel.shape for panel in still.detector]
    d_min = resolution_limit(still, settings)
    everything = predict(map.models(torch.as_tensor(x)), still.amplitudes, d_min, K_TAILS, shapes)
    return everything, everything.select(with_boxes(still, everything))


def predicted_objective(
    still: Still, map: Parametrisation, x: Floats, settings: Settings, model_error: ModelError
) -> tuple[Objective, Predictions]:
    """The objective of all reflections that the model at x predicts, and these. Raises BadInput for none."""
    found = predicted(still, map, x, settings)
    return objective_of(still, map, x, found, model_error), found[1]


def objective_of(
    still: Still,
    map: Parametrisation,
    x: Floats,
    predictions: tuple[Predictions, Predictions],
    model_error: ModelError,
) -> Objective:
    """The objective of what `predicted` found. Raises BadInput for nothing."""
    everything, chosen = predictions
    boxes = shoeboxes(still, chosen, everything) if len(chosen) else None
    if boxes is None or not len(boxes):
        raise BadInput(
            f"{still.name}: the model predicts no reflection on trusted pixels: check cell, detector and mask"
        )
    objective = objective_for(still, map, boxes, model_error, x)
    return where_lit(still, objective, model_error, x)


def with_boxes(still: Still, everything: Predictions, k_max: float = K_BOXES) -> Bools:
    """Which predictions (n,) get a box: those that are near enough to the Ewald sphere and not held out."""
    near = np.abs(everything.k) < k_max
    return near if still.held_out is None else near & ~still.held_out[everything.index]


def esds(solution: Solution, objective: Objective) -> Floats:
    """Esds (n,) of the coordinates, with the noise that the model leaves."""
    return np.sqrt(np.diag(np.linalg.inv(solution.matrix))) * StillProblem(objective).noise(solution.state)


def fitted_model_error(still: Still, found: Round) -> ModelError:
    """The relative error of F² that the free intensities of this round make most likely."""
    return likely_model_error(solved_round(found), still.amplitudes)


def solved_round(found: Round) -> Solved:
    """A round with its covariance; variances are those of the model, robust weights stand apart from them."""
    covariance = curvature(found.solution.matrix, found.objective.map).covariance
    local = found.state.local
    variance = found.objective.variance(local)
    weight = huber_weight(found.objective.boxes.data - local.background - local.bragg, variance)
    objective = replace(found.objective, weight=weight)
    return Solved(objective, torch.as_tensor(found.solution.x), covariance, variance, local)


def _stays(found: Round, still: Still, chosen: Predictions, model_error: ModelError) -> bool:
    """Whether the boxes of a round are those of a still that would be chosen now, and the relative error of F² is about
    what it was; one that was given, even 0, always is."""
    before, names = found.still, ("images_photons", "trusted", "others", "held_out")
    if before is None or any(getattr(before, name) is not getattr(still, name) for name in names):
        return False
    was = found.predictions
    shared, old, new = np.intersect1d(was.index, chosen.index, return_indices=True)
    moved = np.abs(chosen.xy_px[new] - was.xy_px[old]).max(1, initial=0)
    grown = np.abs(np.log(chosen.sigma_px[new] / was.sigma_px[old])).max(1, initial=0)
    same = int(((moved < STAYED_PX) & (grown < STAYED_LN_SIZE)).sum())
    all_of_both = len(was) + len(chosen) - len(shared)
    error, now = found.model_error, model_error
    same_error = now == error or bool(abs(np.log(now.relative / error.relative)) < STAYED_LN_ERROR)
    return same > SAME_BOXES * all_of_both and same_error


def as_minimised(found: Round) -> Solved:
    """The same with the weights that were minimised with, robust ones in the variances: only with them is the gradient
    0."""
    return replace(solved_round(found), objective=found.objective, variance=found.state.variance)


def same_boxes(found: Objective, objective: Objective) -> float:
    """Fraction of boxes that two objectives of a still share."""

    def reflections(of: Objective) -> Ints:
        return of.boxes.reflections[of.boxes.node[:, 0].numpy()]

    before, now = reflections(found), reflections(objective)
    return len(np.intersect1d(before, now)) / max(len(np.union1d(before, now)), 1)


def thinned(still: Still, map: Parametrisation, x: Floats, settings: Settings) -> Still:
    """The still with a part of its reflections kept out, at random but the same each time, where there are many more
    than the choice of a model needs."""
    shapes, d_min = [panel.shape for panel in still.detector], resolution_limit(still, settings)
    count = len(predict(map.models(torch.as_tensor(x)), still.amplitudes, d_min, K_BOXES, shapes))
    if count < 2 * ENOUGH_BOXES:
        return still
    out = np.random.default_rng(0).random(len(still.amplitudes.hkl)) > ENOUGH_BOXES / count
    return replace(still, held_out=out if still.held_out is None else out | still.held_out)


def printer(stage: str, objective: Objective, report: Progress) -> Callable[[Step, State], None]:
    """Turns the solver's steps into iterations for the reader."""
    pixels = float(objective.boxes.used.sum())

    def show(step: Step, state: State) -> None:
        report(
            Iteration(
                stage,
                step.number,
                state.local.chi2 / pixels,
                step.merit,
                step.damping,
                step.step_in_esds,
                step.accepted,
            )
        )

    return show


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def cell_of(map: Parametrisation) -> tuple[tuple[str, ...], Floats]:
    """The free cell parameters of a parametrisation and their map to the six."""
    return tuple(p.name for p in map.parameters if p.group == "cell"), map.cell_map
