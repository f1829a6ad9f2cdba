"""Several crystals on one image: each lattice is refined with the light of the others as a known part of its pixels.

Boxes are shared and intensities summed: the model of a pixel is the plane of its box, the Bragg scattering of this
lattice, and that of the others as their own fits have it. Lattices take turns until none moves any more
(docs/physics.md, section 6).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ParamSpec, TypeVar

import numpy as np

from dbex.errors import BadInput
from dbex.refinement.light import bragg_light
from dbex.refinement.refine import Fitted, Reports, concluded, rough_fit, to_the_end, with_terms
from dbex.refinement.rounds import (
    CONVERGED_ESDS,
    FIRST_ROUNDS,
    MAX_ROUNDS,
    ROUGH_ESDS,
    Progress,
    all_predicted,
    esds,
    resolution_limit,
)
from dbex.refinement.settings import Settings
from dbex.still import Image, OtherLattices, Refined, Still

#: Lattices take turns so often, or until no number moves by more than this part of its esd.
TURNS, SETTLED_ESDS = 10, 0.1
#: One that still moves by more than this has not converged.
MOVED_ESDS = 0.5

P = ParamSpec("P")
T = TypeVar("T")
Light = tuple[Image, ...] | None


def refine_lattices(
    stills: Sequence[Still], settings: Settings, progress: Progress | None = None
) -> list[Refined | BadInput]:
    """Refine the lattices of one image, each a still with the same pixels; in the place of one that cannot be refined
    stands why, and the others go on without it."""
    reports = [Reports(progress, f"{still.name}: ") for still in stills]
    fits = [attempt(rough_fit, still, settings, report) for still, report in zip(stills, reports, strict=True)]
    lights = [light(fit, fits, settings) for fit in fits]
    # all see the others as they were alone: what is chosen does not depend on who comes first
    fits = [
        fit if isinstance(fit, BadInput) else attempt(enriched, fit, others(lights, i), settings, reports[i])
        for i, fit in enumerate(fits)
    ]
    lights = [light(fit, fits, settings) for fit in fits]
    moved = take_turns(fits, lights, settings, reports)
    refined: list[Refined | BadInput] = []
    for i, report in enumerate(reports):
        # nothing of a fit stays once it is concluded: its pixels are in the tables
        fit, fits[i] = fits[i], BadInput()
        if isinstance(fit, Fitted):
            fit = marked(fit, moved[i])
        refined.append(fit if isinstance(fit, BadInput) else attempt(concluded, fit, settings, report))
    return refined


def attempt(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | BadInput:
    """The result, or the complaint of one that cannot be refined."""
    try:
        return work(*args, **kwargs)
    except BadInput as error:
        # its traceback would keep the still
        return error.with_traceback(None)


def light(fit: Fitted | BadInput, fits: Sequence[Fitted | BadInput], settings: Settings) -> Light:
    """The Bragg light of a fit, to the finest resolution that any lattice is looked at; None where it failed."""
    if isinstance(fit, BadInput):
        return None
    limits = [resolution_limit(other.still, settings) for other in fits if isinstance(other, Fitted)]
    return bragg_light(fit.still, fit.final, min(limits))


def others(lights: Sequence[Light], i: int) -> OtherLattices | None:
    """What lattice i sees of the others."""
    rest = [found for j, found in enumerate(lights) if j != i and found is not None]
    if not rest:
        return None
    return OtherLattices(len(rest), tuple(np.sum(panel, axis=0) for panel in zip(*rest, strict=True)))


def enriched(fit: Fitted, beside: OtherLattices | None, settings: Settings, report: Progress) -> Fitted:
    """The terms that the data ask for once the other lattices are accounted for."""
    beside_others = turn(fit, beside, settings, report, FIRST_ROUNDS, ROUGH_ESDS)
    return with_terms(to_the_end(beside_others, settings), settings, report)


def turn(
    fit: Fitted,
    beside: OtherLattices | None,
    settings: Settings,
    report: Progress,
    rounds: int = MAX_ROUNDS,
    tolerance_esds: float = CONVERGED_ESDS,
) -> Fitted:
    """The fit solved anew from where it is, with its terms, beside the others as they are now."""
    began, before = time.perf_counter(), fit.final
    still = replace(fit.still, others=beside)
    final = all_predicted(
        still, before.objective.map, before.solution.x, settings, report, rounds, tolerance_esds, before
    )
    seconds = fit.seconds.get("lattices", 0.0) + time.perf_counter() - began
    return replace(fit, still=still, final=final, seconds=fit.seconds | {"lattices": seconds})


def take_turns(
    fits: list[Fitted | BadInput],
    lights: list[Light],
    settings: Settings,
    reports: Sequence[Progress],
) -> list[float]:
    """Solve one after the other, each beside the newest light of the others, in place; by how many esds each moved in
    its last turn."""
    moved = [0.0] * len(fits)
    for _ in range(TURNS):
        for i, fit in enumerate(fits):
            beside = others(lights, i)
            if isinstance(fit, BadInput) or beside is None:
                continue
            fits[i] = now = attempt(turn, fit, beside, settings, reports[i])
            lights[i] = light(now, fits, settings)
            moved[i] = 0.0 if isinstance(now, BadInput) else in_esds(fit, now)
        if max(moved) < SETTLED_ESDS:
            break
    return moved


def in_esds(before: Fitted, now: Fitted) -> float:
    """The largest move of a number, in its esds."""
    step = now.final.solution.x - before.final.solution.x
    return float(np.max(np.abs(step) / esds(now.final.solution, now.final.objective)))


def marked(fit: Fitted, moved: float) -> Fitted:
    """The fit, not converged where the lattices still moved one another."""
    if moved < MOVED_ESDS:
        return fit
    return replace(fit, final=replace(fit.final, solution=replace(fit.final.solution, converged=False)))
