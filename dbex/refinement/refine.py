"""One still from start to verdict: search, widths, all predicted reflections, and what the data say of the result."""

import time
from dataclasses import dataclass, field, replace

import numpy as np

from dbex.refinement.conclude import conclude
from dbex.refinement.hot_pixels import without_hot_pixels
from dbex.refinement.resolution import looked_for_limit
from dbex.refinement.rounds import (
    FIRST_ROUNDS,
    ROUGH_ESDS,
    Progress,
    Round,
    all_predicted,
    start,
    strong_stage,
    thinned,
    with_widths,
)
from dbex.refinement.search import Search, search
from dbex.refinement.settings import Settings
from dbex.refinement.terms import choose_terms
from dbex.still import Iteration, Refined, Still, Trial


@dataclass(frozen=True)
class Fitted:
    """The still without its hot pixels, its last round, the search before it, the terms that were tried, and the
    seconds of each part."""

    still: Still
    final: Round
    found: Search | None
    trials: list[Trial]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Reports:
    """Keeps every iteration, and passes it on with the name of what is refined before its stage."""

    progress: Progress | None
    prefix: str = ""
    history: list[Iteration] = field(default_factory=list)

    def __call__(self, iteration: Iteration) -> None:
        """One more."""
        self.history.append(iteration)
        if self.progress is not None:
            self.progress(replace(iteration, stage=self.prefix + iteration.stage))


def refine_still(still: Still, settings: Settings, progress: Progress | None = None) -> Refined:
    """Refine one still. Raises BadInput where nothing can be refined: no indexed spot among the amplitudes, no box."""
    report = Reports(progress)
    return concluded(fit_still(still, settings, report), settings, report)


def concluded(fitted: Fitted, settings: Settings, report: Reports) -> Refined:
    """What follows from the last round, with the seconds of everything."""
    began = time.perf_counter()
    refined = conclude(fitted.still, settings, fitted.final, fitted.found, fitted.trials, report.history)
    seconds = fitted.seconds | {"conclusion": time.perf_counter() - began}
    return replace(refined, seconds=seconds | {"total": sum(seconds.values())})


def fit_still(still: Still, settings: Settings, report: Progress) -> Fitted:
    """The rounds of `refine_still`, without what follows from them."""
    return with_terms(to_the_end(rough_fit(still, settings, report, thin=True), settings), settings, report)


def to_the_end(fitted: Fitted, settings: Settings) -> Fitted:
    """The fit with the resolution limit that the pixels show, for the rounds that follow."""
    began = time.perf_counter()
    still = looked_for_limit(fitted.still, settings, fitted.final)
    seconds = fitted.seconds | {"resolution": time.perf_counter() - began}
    return replace(fitted, still=still, seconds=seconds)


def rough_fit(still: Still, settings: Settings, report: Progress, thin: bool = False) -> Fitted:
    """Search, scale and widths, and the first rounds of all predicted reflections, with the simplest terms; with `thin`
    of as many as the choice of a model needs."""
    clock = [time.perf_counter()]
    map = start(still, settings)
    found = search(still, map, np.zeros(len(map))) if settings.start != "near" else None
    x = np.zeros(len(map)) if found is None else found.x
    map = with_widths(map, found)
    clock.append(time.perf_counter())
    x, map = strong_stage(still, map, x, settings, report)
    clock.append(time.perf_counter())
    enough = thinned(still, map, x, settings) if thin else still
    simple = all_predicted(enough, map, x, settings, report, FIRST_ROUNDS, ROUGH_ESDS)
    clock.append(time.perf_counter())
    names = ("search", "strong_spots", "all_predicted")
    seconds = {name: after - before for name, before, after in zip(names, clock, clock[1:], strict=False)}
    return Fitted(still, simple, found, [], seconds)


def with_terms(fitted: Fitted, settings: Settings, report: Progress) -> Fitted:
    """The terms that the data ask for, hot pixels left out, and rounds until the boxes stay."""
    began, still = time.perf_counter(), fitted.still
    chosen, trials = choose_terms(fitted.final, settings, report)
    still = without_hot_pixels(still, chosen)
    final = all_predicted(still, chosen.objective.map, chosen.solution.x, settings, report, before=chosen)
    again = without_hot_pixels(still, final)
    if again is not still:
        still = again
        final = all_predicted(still, final.objective.map, final.solution.x, settings, report, before=final)
    seconds = fitted.seconds | {"terms": time.perf_counter() - began}
    return replace(fitted, still=still, final=final, trials=trials, seconds=seconds)
