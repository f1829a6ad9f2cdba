"""What all figures of the pages have in common: colours that every kind of colour vision tells apart, axes, legends."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dbex.scoring import Bins
from dbex.still import Floats

#: Okabe and Ito (2008).
BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7"
BEFORE, AFTER, EXPECTED, QUIET = VERMILION, BLUE, "#1d2530", "#9aa4af"
#: ColorBrewer's PuOr, dark at both ends; viridis is plotly's own.
DIVERGING = ("#2d004b", "#542788", "#8073ac", "#b2abd2", "#f7f7f7", "#fdb863", "#e08214", "#b35806", "#7f3b08")
#: Margins where headings and a legend stand above the axes.
HEADED = {"l": 64, "r": 16, "t": 56, "b": 48}
FONT = {"family": "system-ui, DejaVu Sans, Arial, sans-serif", "size": 12.5, "color": "#1d2530"}
#: The resolutions at which an axis of 1/d² has its ticks, Å.
TICKS_A = (50, 20, 10, 7, 5, 4, 3.5, 3, 2.7, 2.5, 2.2, 2, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1, 0.9, 0.8)
#: How close two ticks may be, of the whole axis.
TICK_SPACING = 0.055


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """The layout of one pair of axes with these titles; anything else is taken over."""
    return {
        "margin": {"l": 64, "r": 16, "t": 28, "b": 48},
        "font": FONT,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "xaxis": axis(x),
        "yaxis": axis(y),
    } | more


def axis(title: str, **more: Any) -> dict[str, Any]:
    """One axis."""
    style = {"gridcolor": "#e6eaee", "zerolinecolor": "#b8c0c8", "linecolor": "#9aa4af", "ticks": "outside"}
    return {"title": {"text": title, "standoff": 8}, "showline": True, **style, **more}


def resolution_axis(inverse_square: Floats, **more: Any) -> dict[str, Any]:
    """An axis of 1/d² that is labelled by d."""
    known = inverse_square[np.isfinite(inverse_square)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    margin = 0.03 * max(high - low, 1e-6)
    low, high = low - margin, high + margin
    ticks: list[float] = []
    for d in TICKS_A:
        at = 1 / d**2
        if low <= at <= high and (not ticks or at - 1 / ticks[-1] ** 2 > TICK_SPACING * (high - low)):
            ticks.append(d)
    values = [1 / d**2 for d in ticks]
    return axis(
        "resolution d (Å), even in 1/d²",
        range=[low, high],
        tickvals=values,
        ticktext=[f"{d:g}" for d in ticks],
        **more,
    )


def side_by_side(*titles: str) -> tuple[dict[str, Any], ...]:
    """The domains of two panels and their headings as annotations."""
    return tuple(
        {
            "text": text,
            "x": x,
            "y": 1.0,
            "xref": "paper",
            "yref": "paper",
            "xanchor": "center",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 13},
        }
        for text, x in zip(titles, (0.225, 0.775), strict=True)
    )


def points(bins: Bins, name: str, colour: str, hover: str, **more: Any) -> dict[str, Any]:
    """Means with their esds as a trace; `hover` says what x is."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": bins.x,
        "y": bins.mean,
        "error_y": {"type": "data", "array": bins.esd, "thickness": 1, "width": 2},
        "customdata": bins.count,
        "marker": {"color": colour, "size": 6},
        "line": {"color": colour, "width": 1.5},
        "hovertemplate": f"{hover}<br>%{{y:.3f}} over %{{customdata}}<extra></extra>",
        **more,
    }


def level(x: Sequence[float] | Floats, y: float, name: str, **more: Any) -> dict[str, Any]:
    """A horizontal line at what is expected."""
    ends = [float(np.min(x)), float(np.max(x))] if len(x) else [0.0, 1.0]
    line = {"color": EXPECTED, "width": 1.2, "dash": "dash"}
    return {"type": "scatter", "mode": "lines", "name": name, "x": ends, "y": [y, y], "line": line,
            "hoverinfo": "skip"} | more  # fmt: skip
