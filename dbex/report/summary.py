"""What a refinement found, in words and in a table."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dbex.refinement.settings import CRYSTAL_CHOICES
from dbex.still import ParameterEstimate, Refined, SigmaZCheck

#: How a person writes the units of the estimates.
SIGNS = {"A": "Å", "A^2": "Å²", "deg": "°", "1": ""}
#: Numbers that would need more decimals are written with an exponent.
MOST_DECIMALS = 6
#: Said when the data are content with what was held.
NOTHING_ASKED = "nothing of detector or beam that is held asks to move"
HEADINGS = ("parameter", "before", "after", "esd", "unit", "moved by")


def summary(refined: Refined, folder: Path | str) -> tuple[str, ...]:
    """Five lines: whether the fit is good; what moved of the crystal; of its cell; of detector and beam; what to do
    next, and where the results are."""
    crystal = [group for group in CRYSTAL_CHOICES if group not in ("orientation", "cell")]
    moved = {name: moves(refined, [name]) for name in ("detector", "beam")}
    held = [name for name, text in moved.items() if not text]
    bench = [f"{name}: {text}" for name, text in moved.items() if text]
    return (
        verdict_line(refined),
        "; ".join(filter(None, (orientation(refined), moves(refined, crystal)))) or "crystal held",
        f"cell: {moves(refined, ['cell']) or 'held'}",
        "; ".join([*bench, *([f"{' and '.join(held)} held"] if held else [])]),
        f"{'; '.join(refined.verdict.advice) or NOTHING_ASKED}; results in {folder}",
    )


def verdict_line(refined: Refined) -> str:
    """The verdict with the figures that it rests on."""
    figures, state = refined.figures, refined.verdict.state
    fit = (
        f"{state if ' ' in state else f'{state} fit'}: χ²/pixel {figure(figures, 'chi2_per_pixel')} "
        f"over {count(figures, 'pixels')} pixels, {figure(figures, 'chi2_core')} over {count(figures, 'core_pixels')} "
        f"core pixels; median CC {figure(figures, 'median_cc')} of {count(figures, 'boxes_cc')} bright spots"
    )
    lattices = [f"{count(figures, 'lattices')} lattices on this image"] if "lattices" in figures else []
    return "; ".join([fit, *lattices, *refined.verdict.reasons])


def figure(figures: dict[str, float], name: str) -> str:
    """A figure of merit to three decimals, a dash where there is none."""
    value = figures.get(name, math.nan)
    return f"{value:.3f}" if math.isfinite(value) else "-"


def count(figures: dict[str, float], name: str) -> str:
    """A number of things, a dash where it is not known."""
    value = figures.get(name, math.nan)
    return f"{value:.0f}" if math.isfinite(value) else "-"


def orientation(refined: Refined) -> str:
    """The angle by which the crystal turned, with the esd of a turn about that axis; empty where it was held."""
    places = [i for i, estimate in enumerate(refined.estimates) if estimate.group == "orientation"]
    if not places:
        return ""
    turned = [refined.estimates[i] for i in places]
    move = np.array([estimate.after - estimate.before for estimate in turned])
    angle = float(np.linalg.norm(move))
    covariance = refined.quoted_covariance()[np.ix_(places, places)]
    if not np.isfinite(covariance).all():
        return f"orientation turned by {rounded(angle, math.nan)}{sign(turned[0])} (no esd)"
    if angle == 0:
        esd = float(np.linalg.eigvalsh(covariance)[-1]) ** 0.5
    else:
        esd = float(move @ covariance @ move) ** 0.5 / angle
    moved = f"{angle / esd:.1f} esds" if known(esd) else "no esd"
    return f"orientation turned by {rounded(angle, esd)} ± {rounded(esd, esd)}{sign(turned[0])} ({moved})"


def abs_moves(estimates: Iterable[ParameterEstimate]) -> list[float]:
    """How far each parameter moved, in esds; 0 where it has no esd."""
    return [abs(e.after - e.before) / e.esd if known(e.esd) else 0.0 for e in estimates]


def known(esd: float) -> bool:
    """Whether an esd is a number that something can be measured in."""
    return math.isfinite(esd) and esd > 0


def moves(refined: Refined, groups: Iterable[str]) -> str:
    """Before, after, esd and the move in esds of the parameters of some groups; empty where none is free."""
    wanted = [estimate for estimate in refined.estimates if estimate.group in tuple(groups)]
    return ", ".join(
        f"{e.name} {rounded(e.before, e.esd)} → {rounded(e.after, e.esd)}"
        + (f" ± {rounded(e.esd, e.esd)}{sign(e)} ({moved:.1f} esds)" if known(e.esd) else f"{sign(e)} (no esd)")
        for e, moved in zip(wanted, abs_moves(wanted), strict=True)
    )


def sign(estimate: ParameterEstimate) -> str:
    """The unit as it follows a number."""
    unit = SIGNS.get(estimate.unit, estimate.unit)
    return unit if unit in ("", "°") else f" {unit}"


def rounded(value: float, esd: float) -> str:
    """A number to the second digit of its esd, to six digits where it has none."""
    if not (math.isfinite(value) and known(esd)):
        return f"{value:.6g}"
    decimals = 1 - math.floor(math.log10(esd))
    return f"{value:.{decimals}f}" if 0 <= decimals <= MOST_DECIMALS else f"{value:.4g}"


def table(refined: Refined) -> str:
    """Every refined parameter, before and after, as lines of aligned columns."""
    rows = [
        (e.name, rounded(e.before, e.esd), rounded(e.after, e.esd), rounded(e.esd, e.esd), e.unit, f"{moved:.1f} esds")
        for e, moved in zip(refined.estimates, abs_moves(refined.estimates), strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in (0, 4) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (HEADINGS, *rows)
    )


def terms(refined: Refined) -> str:
    """The terms of the model that the data were asked about, and what of two names of one covariance is meant."""
    parts = [
        f"{trial.name.replace('_', ' ')} {'kept' if trial.kept else 'not kept'} "
        + (
            f"(promised {max(trial.promised, 0.0):.0f} of {trial.cost:.0f}, not tried)"
            if trial.gain is None
            else f"(gain {trial.gain:.0f}, cost {trial.cost:.0f})"
        )
        for trial in refined.terms
    ]
    text = f"terms, by how much -2 ln likelihood fell: {', '.join(parts)}" if parts else "no terms were tried"
    for name, other in refined.same_on_one_still().items():
        text += f"; {name} is what it is called, and on one still it could as well be {other}"
    return text


def left_out(counts: dict[str, int]) -> str:
    """What was not used and why, in a sentence."""
    kept = [f"{number} {reason}" for reason, number in counts.items() if number]
    return f"left out: {', '.join(kept)}" if kept else "nothing was left out"


def background(check: SigmaZCheck) -> str:
    """σ-Z of the background, by intensity and the range over panels, in a line."""
    together = check.together
    if not together.pixels:
        return "σ-Z of the background: no pixel without Bragg scattering"
    parts = ", ".join(f"{part.rms:.3f} at {part.intensity:.3g}" for part in check.by_intensity)
    text = f"σ-Z of {together.pixels} background pixels: {together.rms:.3f} ± {together.esd:.3f}; by photons: {parts}"
    if len(check.by_panel) < 2:
        return text
    ordered = sorted(check.by_panel.items(), key=lambda item: item[1].rms)
    (dull, low), (lively, high) = ordered[0], ordered[-1]
    return f"{text}; by panel: {low.rms:.3f} (panel {dull}) to {high.rms:.3f} (panel {lively})"
