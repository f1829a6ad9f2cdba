"""Which terms the model of a crystal and its beam needs, chosen by the data: each is tried and kept when it pays.

Two descriptions are compared on the same boxes by -2 ln likelihood, Σ (Z² + ln V) with the priors. The richer one must
lower it by more than ln(pixels) for each further parameter (Schwarz 1978), after χ² is scaled to the noise that the
poorer one leaves: misfit counts as noise until something explains it.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from dbex.refinement.demands import Promises, promises
from dbex.refinement.lit import LEFT_OUT, light_left_out, lit_anew
from dbex.refinement.parameters import Parametrisation, parametrisation
from dbex.refinement.problem import StillProblem
from dbex.refinement.rounds import ROUGH_ESDS, SOLVE, Progress, Round, as_minimised, cell_of, printer
from dbex.refinement.settings import Settings
from dbex.refinement.square_blocks import OUTLINE
from dbex.refinement.width_tensors import isotropic_widths
from dbex.still import SAME_ON_ONE_STILL, Floats, Trial
from nanobrag_torch.config import override
from nanobrag_torch.lattice import reciprocal_basis
from nanobrag_torch.spread import GAUSS_VARIANCE, node_covariance
from nanobrag_torch.units import RADIANS_PER_DEGREE

#: A second component begins this many rms rotations away along the axis about which the crystal is broadest, with
#: this logit of its share.
FIRST_OFFSET, FIRST_LOGIT = 1.5, -1.0
#: Steps of a trial: it has to show whether its term pays, not to end.
TRIAL_ITERATIONS = 9
#: A term is tried where its beginning promises this part of its cost.
HOPE = 0.5
#: A beginning whose merit is so many times that of the model is not the foot of a parabola that leads below it.
FAR_OFF = 3.0
#: Fringes show only where the size of the blocks makes up this part of a node's variance; elsewhere they are blurred.
LEAST_SIZE_SHARE = 0.1
#: What flat faces stand in for: whichever of them was tried first, the better description stays.
SQUARE_REPLACES = {"size", "size_tensor", "component"}
#: Terms that are widths of the beam, the detector or the crystal: where they are freed, and their parameters.
WIDTH_TERMS = {
    "bandwidth": ("beam", ("bandwidth",)),
    "cell_spread": ("crystal", ("cell_spread",)),
    "divergence": ("beam", ("divergence_h", "divergence_v")),
    "point_spread": ("detector", ("point_spread",)),
}
#: A width that is freed begins within this factor of its first value, wherever the score test puts it.
WIDTH_RANGE = 5.0
#: The simple group that each tensor replaces, and the field of the crystal that it starts from.
REPLACES = {"mosaic_tensor": ("mosaicity", "mosaicity_deg"), "size_tensor": ("size", "domain_size_A")}


def choose_terms(found: Round, settings: Settings, report: Progress) -> tuple[Round, list[Trial]]:
    """The round with the terms that pay, on the boxes of `found`, and what was tried."""
    if not settings.terms:
        return found, []
    trials: dict[str, Trial] = {}
    beside: dict[str, Round] = {}
    told = Told(found)
    elsewhere = told.promises.geometry / told.noise_squared
    # widths are asked again beside what was kept after them: their promises cost next to nothing
    for term in (*settings.terms, *(term for term in settings.terms if term in WIDTH_TERMS)):
        if beside.get(term) is found:
            continue
        beside[term] = found
        told = told if told.found is found else Told(found)
        hopes = hopes_of(told, term, settings)
        if not hopes:
            continue
        cost = (len(hopes[0][1]) - len(found.objective.map)) * float(np.log(found.pixels))
        # a term that promises less than what is held of the geometry would make up for it
        dearest = cost if term in WIDTH_TERMS else max(cost, elsewhere)
        trial, richer = Trial(term, hopes[0][0], dearest), found
        for hope, map, x in hopes:
            if hope < HOPE * dearest:
                break
            richer = solved_with(found, map, x, settings, term, report)
            trial = Trial(term, hope, cost, gain(found, richer))
            if trial.kept:
                break
        trials[term] = trial
        if trial.kept:
            found = richer
    return found, list(trials.values())


@dataclass(frozen=True)
class Told:
    """What the score test of a round tells, asked when it is wanted and once."""

    found: Round

    @cached_property
    def promises(self) -> Promises:
        """Of the geometry and of widths."""
        return promises(as_minimised(self.found))

    @property
    def noise_squared(self) -> float:
        """What is left of χ² a pixel."""
        return self.found.problem.noise(self.found.state) ** 2


Hope = tuple[float, Parametrisation, Floats]


def hopes_of(told: Told, term: str, settings: Settings) -> list[Hope]:
    """By how much -2 ln likelihood would fall with one more term, its parametrisation and where it begins; the most
    promising beginning first, since the others lead to the same minimum or to none; none where it does not apply."""
    found = told.found
    if term in WIDTH_TERMS:
        return hope_of_width(told, term, settings)
    hopes = [
        (promised(found, in_outline(map) if term == "square" else map, x), map, x)
        for map, x in beginnings(found, term, settings)
    ]
    return sorted(hopes, key=lambda hope: -hope[0])


def hope_of_width(told: Told, term: str, settings: Settings) -> list[Hope]:
    """The same of a width, by the score test, as if what is held of the geometry had moved: not in its stead."""
    found, (kind, names) = told.found, WIDTH_TERMS[term]
    map, x = found.objective.map, found.solution.x
    groups = {kind: list(map.free_groups(kind)) for kind in ("crystal", "detector", "beam")}
    free = {group for some in groups.values() for group in some}
    imitated = {term, SAME_ON_ONE_STILL.get(term), "size_tensor" if term == "divergence" else None}
    if free & imitated or not {"size", "mosaicity"} <= set(settings.crystal):
        return []
    # on a still a spread of the cell promises what a bandwidth does
    asked = ("bandwidth",) if term in SAME_ON_ONE_STILL else names
    promise = told.promises.of(asked)
    groups[kind].append(term)
    wider, start = widened(map, x, groups["crystal"], tuple(groups["beam"]), tuple(groups["detector"]))
    for name, of in zip(names, asked, strict=True):
        grown = promise.widths.get(of, 0.0) / wider.value(name, torch.zeros(len(wider), dtype=torch.float64))
        start[wider.place(name)] = np.log(np.clip(grown, 1 / WIDTH_RANGE, WIDTH_RANGE))
    return [(promise.fall / told.noise_squared, wider, start)]


def gain(found: Round, richer: Round) -> float:
    """By how much -2 ln likelihood falls, in units of the noise that the poorer model leaves."""
    fall = minus_two_ln_likelihood(found) - minus_two_ln_likelihood(richer)
    return fall / found.problem.noise(found.state) ** 2


def promised(found: Round, map: Parametrisation, x: Floats) -> float:
    """By how much -2 ln likelihood would fall if the merit were the parabola that it seems to be where x is; nothing is
    hoped for from a beginning that is far off."""
    problem = StillProblem(replace(found.objective, map=map).prepared(torch.as_tensor(x)))
    state = problem.trial(x, found.state)
    fall = found.state.local.merit - state.local.merit
    if state.local.merit < FAR_OFF * found.state.local.merit:
        matrix, gradient = problem.normal(x, state)
        fall += float(gradient @ np.linalg.solve(matrix, gradient))
    return fall / found.problem.noise(found.state) ** 2


def in_outline(map: Parametrisation) -> Parametrisation:
    """The map with nodes of square blocks without their fringes, which tell the promise at a tenth of the cost."""
    return replace(map, square_peaks=OUTLINE)


def solved_with(
    found: Round, map: Parametrisation, x: Floats, settings: Settings, term: str, report: Progress
) -> Round:
    """The boxes of `found` solved with another parametrisation, roughly; again where its light reaches farther."""
    objective = replace(found.objective, map=map).prepared(torch.as_tensor(x))
    most, solve = min(settings.max_iterations, TRIAL_ITERATIONS), SOLVE[settings.solver]
    solution = solve(StillProblem(objective), x, most, ROUGH_ESDS, printer(f"trying {term}", objective, report))
    at, state = torch.as_tensor(solution.x), solution.state
    if light_left_out(objective, at, state.local.intensity, state.variance) > LEFT_OUT:
        objective = lit_anew(objective, at)
        show = printer(f"trying {term} further out", objective, report)
        solution = solve(StillProblem(objective), solution.x, most, ROUGH_ESDS, show)
    # the boxes' neighbours and sampling are those of the other model
    return replace(found, objective=objective, solution=solution, still=None)


def minus_two_ln_likelihood(found: Round) -> float:
    """Σ (Z² + ln V) over used pixels, and the priors' terms."""
    used = found.objective.boxes.used
    return found.state.local.merit + float(torch.log(found.state.variance[used]).sum())


def beginnings(found: Round, term: str, settings: Settings) -> list[tuple[Parametrisation, Floats]]:
    """Parametrisations with one more term and where each begins; none where the term does not apply."""
    map, x = found.objective.map, found.solution.x
    crystal_groups = list(map.free_groups("crystal"))
    if term == "square":
        if not set(crystal_groups) & SQUARE_REPLACES or size_share(found) < LEAST_SIZE_SHARE:
            return []
        size, _ = isotropic_widths(map.models(torch.as_tensor(x)).crystal)
        groups = [group for group in crystal_groups if group not in SQUARE_REPLACES] + ["square"]
        return [widened(replace(map, square_size_A=size), x, groups, map.free_groups("beam"))]
    if term == "component":
        if "mosaicity" not in settings.crystal or map.component_count > 1:
            return []
        return second_components(map, x, crystal_groups)
    simple, field = REPLACES[term]
    # one still cannot tell a divergence from a part of the tensor of sizes
    if simple not in crystal_groups or (term == "size_tensor" and "divergence" in map.free_groups("beam")):
        return []
    models = map.models(torch.as_tensor(x))
    crystal = override(map.crystal, {field: float(getattr(models.crystal, field))})
    groups = [term if group == simple else group for group in crystal_groups]
    return [widened(replace(map, crystal=crystal), x, groups, map.free_groups("beam"))]


def size_share(found: Round) -> float:
    """The part of the variance of a node in the middle of the list that comes from the size of the blocks."""
    models = found.objective.map.models(torch.as_tensor(found.solution.x))
    hkl = found.objective.hkl[found.objective.boxes.node[:, 0]].double()
    q = hkl @ reciprocal_basis(models.crystal, hkl).T
    size, _ = isotropic_widths(models.crystal)
    total = torch.diagonal(node_covariance(models.crystal, models.beam, q), dim1=1, dim2=2).sum(1)
    return float(3 * GAUSS_VARIANCE / size**2 / total.median())


def second_components(map: Parametrisation, x: Floats, groups: list[str]) -> list[tuple[Parametrisation, Floats]]:
    """A second component to either side of the first, about the axis of the crystal's broadest rotations."""
    crystal = map.models(torch.as_tensor(x)).crystal
    _, width = isotropic_widths(crystal)
    axis, rms = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), width
    if crystal.mosaic_covariance_deg2 is not None:
        values, vectors = torch.linalg.eigh(torch.as_tensor(crystal.mosaic_covariance_deg2))
        axis, rms = vectors[:, -1], float(values[-1] ** 0.5)
    result = []
    for side in (1.0, -1.0):
        wider, start = widened(replace(map, second_width_deg=width), x, [*groups, "component"], map.free_groups("beam"))
        start[wider.place("second_share")] = FIRST_LOGIT
        turn = side * FIRST_OFFSET * rms * RADIANS_PER_DEGREE * axis
        for name, value in zip(("second_x", "second_y", "second_z"), turn.tolist(), strict=True):
            start[wider.place(name)] = value
        result.append((wider, start))
    return result


def widened(
    map: Parametrisation,
    x: Floats,
    crystal_groups: list[str],
    beam_groups: tuple[str, ...],
    detector_groups: tuple[str, ...] | None = None,
) -> tuple[Parametrisation, Floats]:
    """The parametrisation with these groups free, of the detector those that are where none are named; what both have
    keeps its value."""
    wider = parametrisation(
        map.crystal,
        map.detector,
        map.beam,
        cell_of(map),
        crystal_groups,
        map.free_groups("detector") if detector_groups is None else detector_groups,
        beam_groups,
        map.ln_scale,
    )
    priors = {p.name: p for p in map.parameters}
    wider = replace(wider, parameters=tuple(priors.get(p.name, p) for p in wider.parameters))
    wider = replace(wider, second_width_deg=map.second_width_deg, square_size_A=map.square_size_A)
    known = {p.name: value for p, value in zip(map.parameters, x, strict=True)}
    return wider, np.array([known.get(p.name, 0.0) for p in wider.parameters])
