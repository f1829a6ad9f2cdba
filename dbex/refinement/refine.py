"""One still from start to verdict: search, widths, all predicted reflections, and what the data say of the result."""

import time
from dataclasses import dataclass, replace

import numpy as np

from dbex.refinement.conclude import conclude
from dbex.refinement.hot_pixels import without_hot_pixels
from dbex.refinement.rounds import (
    FIRST_ROUNDS,
    ROUGH_ESDS,
    Progress,
    Round,
    all_predicted,
    start,
    strong_stage,
    with_widths,
)
from dbex.refinement.search import Search, search
from dbex.refinement.settings import Settings
from dbex.refinement.terms import Trial, choose_terms
from dbex.still import Iteration, Refined, Still


@dataclass(frozen=True)
class Fitted:
    """The still without its hot pixels, its last round, the search before it, the terms that were tried, and the
    seconds of each part."""

    still: Still
    final: Round
    found: Search | None
    trials: list[Trial]
    seconds: dict[str, float]


def refine_still(still: Still, settings: Settings, progress: Progress | None = None) -> Refined:
    """Refine one still. Raises BadInput where nothing can be refined: no indexed spot among the amplitudes, no box."""
    history: list[Iteration] = []

    def report(iteration: Iteration) -> None:
        history.append(iteration)
        if progress is not None:
            progress(iteration)

    fitted = fit_still(still, settings, report)
    began = time.perf_counter()
    refined = conclude(fitted.still, settings, fitted.final, fitted.found, fitted.trials, history)
    seconds = fitted.seconds | {"conclusion": time.perf_counter() - began}
    return replace(refined, seconds=seconds | {"total": sum(seconds.values())})


def fit_still(still: Still, settings: Settings, report: Progress) -> Fitted:
    """The rounds of `refine_still`, without what follows from them."""
    clock = [time.perf_counter()]
    map = start(still, settings)
    found = search(still, map, np.zeros(len(map))) if settings.start != "near" else None
    x = np.zeros(len(map)) if found is None else found.x
    map = with_widths(map, found)
    clock.append(time.perf_counter())
    x, map = strong_stage(still, map, x, settings, report)
    clock.append(time.perf_counter())
    simple = all_predicted(still, map, x, settings, report, FIRST_ROUNDS, ROUGH_ESDS)
    clock.append(time.perf_counter())
    chosen, trials = choose_terms(simple, settings, report)
    still = without_hot_pixels(still, chosen)
    final = all_predicted(still, chosen.objective.map, chosen.solution.x, settings, report, before=chosen)
    again = without_hot_pixels(still, final)
    if again is not still:
        still = again
        final = all_predicted(still, final.objective.map, final.solution.x, settings, report, before=final)
    clock.append(time.perf_counter())
    names = ("search", "strong_spots", "all_predicted", "terms")
    seconds = {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
    return Fitted(still, final, found, trials, seconds)
