"""One still from start to verdict: search, widths, all predicted reflections, and what the data say of the result."""

import time
from dataclasses import replace

import numpy as np

from dbex.refinement.conclude import conclude
from dbex.refinement.hot_pixels import without_hot_pixels
from dbex.refinement.rounds import FIRST_ROUNDS, ROUGH_ESDS, Progress, all_predicted, start, strong_stage, with_widths
from dbex.refinement.search import search
from dbex.refinement.settings import Settings
from dbex.refinement.terms import choose_terms
from dbex.still import Iteration, Refined, Still


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
    refined = conclude(still, settings, final, found, trials, history)
    clock.append(time.perf_counter())
    names = ("search", "strong_spots", "all_predicted", "terms", "conclusion")
    seconds = {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
    return replace(refined, seconds=seconds | {"total": clock[-1] - clock[0]})
