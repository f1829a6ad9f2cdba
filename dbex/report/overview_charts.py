"""Figures of many stills: distributions of the cell and of orientations, and the quality of the fits."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dbex.report.looks import AFTER, GREEN, HEADED, ORANGE, PURPLE, QUIET, SKY, VERMILION, axis, layout, level
from dbex.report.page import Chart
from dbex.scatter import OUTLIER_WIDTHS, poles, spread
from dbex.still import Floats

#: Bins of a histogram: about the root of the number of stills, between these.
FEWEST_BINS, MOST_BINS = 8, 40
#: Histograms show the stills within so many widths; what is beyond is counted in the last bars.
SHOWN_WIDTHS = OUTLIER_WIDTHS + 1
ACROSS = 3
#: χ² above this is drawn on a logarithmic axis.
SPANS_DECADES = 10.0
COLOURS = {"refined": AFTER, "poor fit": VERMILION, "not converged": ORANGE}


def histogram(values: Floats, low: float, high: float) -> tuple[Floats, Floats, float]:
    """Middles, counts and width of the bins; what lies beyond is in the first and the last."""
    number = int(np.clip(round(math.sqrt(len(values)) * 1.5), FEWEST_BINS, MOST_BINS))
    if not high > low:
        low, high = low - 0.5 * max(abs(low) * 1e-3, 1e-9), high + 0.5 * max(abs(high) * 1e-3, 1e-9)
    edges = np.linspace(low, high, number + 1)
    count, _ = np.histogram(np.clip(values, low, high), edges)
    return (edges[1:] + edges[:-1]) / 2, count.astype(float), float(edges[1] - edges[0])


def cell_chart(columns: dict[str, tuple[Floats, Floats]], units: dict[str, str]) -> Chart:
    """Histograms of the cell's numbers, with the medians."""
    rows = -(-len(columns) // ACROSS)
    traces: list[dict[str, Any]] = []
    shape = layout("", "", showlegend=False, margin=HEADED | {"t": 16})
    del shape["xaxis"], shape["yaxis"]
    for place, (name, (values, esds)) in enumerate(columns.items()):
        known, found = values[np.isfinite(values)], spread(values, esds)
        reach = max(SHOWN_WIDTHS * found.width, SHOWN_WIDTHS * found.esd if math.isfinite(found.esd) else 0.0)
        low, high = max(known.min(), found.median - reach), min(known.max(), found.median + reach)
        middle, count, width = histogram(known, float(low), float(high))
        row, across = divmod(place, ACROSS)
        number = "" if place == 0 else str(place + 1)
        left, top = across / ACROSS + 0.02, 1 - row / rows
        on = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        traces.append({"type": "bar", "x": middle, "y": count, "width": width * 0.96, "marker": {"color": SKY},
                       "hovertemplate": "%{x:.5g}: %{y} stills<extra></extra>", "name": name, **on})  # fmt: skip
        traces.append({"type": "scatter", "mode": "lines", "x": [found.median] * 2, "y": [0, float(count.max())],
                       "line": {"color": VERMILION, "width": 2}, "hoverinfo": "skip", "name": "median",
                       **on})  # fmt: skip
        title = f"{name} ({units[name]})" if units[name] else name
        shape[f"xaxis{number}"] = axis(title, domain=[left, left + 1 / ACROSS - 0.06], anchor=f"y{number}", nticks=5)
        shape[f"yaxis{number}"] = axis("stills" if across == 0 else "", domain=[top - 1 / rows + 0.26 / rows, top],
                                       anchor=f"x{number}", rangemode="tozero")  # fmt: skip
    return Chart(
        "cells",
        "Distribution of the cell",
        "Each histogram is one free number of the cell over the stills that can be used, the line its median; what "
        "lies far off is in the first or last bar. One narrow peak is one crystal form. Two peaks are two forms, or "
        "two indexings; a wide one that moves with the distance of the detector is a wrong geometry that all stills "
        "share.",
        tuple(traces),
        shape,
        60 + 230 * rows,
    )


def orientation_chart(U: Floats) -> Chart:
    """Where the axes of the crystals point."""
    ring = np.linspace(0, 2 * np.pi, 181)
    traces: list[dict[str, Any]] = []
    shape = layout("", "", showlegend=False, margin=HEADED | {"b": 24})
    for place, (name, which) in enumerate((("a", 0), ("c*", 2))):
        at = poles(U, which)
        number = "" if place == 0 else "2"
        on = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        for radius in (1.0, math.sqrt(2) * math.sin(math.radians(22.5)), math.sqrt(2) * math.sin(math.radians(11.25))):
            traces.append({"type": "scatter", "mode": "lines", "x": radius * np.cos(ring), "y": radius * np.sin(ring),
                           "line": {"color": QUIET, "width": 0.8}, "hoverinfo": "skip", "name": "", **on})  # fmt: skip
        traces.append({"type": "scatter", "mode": "markers", "x": at[:, 0], "y": at[:, 1], "name": name,
                       "marker": {"color": AFTER, "size": 6, "opacity": max(0.15, min(0.8, 8 / math.sqrt(len(at))))},
                       "hoverinfo": "skip", **on})  # fmt: skip
        shape[f"xaxis{number}"] = {"visible": False, "domain": [0.54 * place, 0.46 + 0.54 * place],
                                   "anchor": f"y{number}",
                                   "range": [-1.05, 1.05], "constrain": "domain"}  # fmt: skip
        shape[f"yaxis{number}"] = {"visible": False, "scaleanchor": f"x{number}", "anchor": f"x{number}",
                                   "range": [-1.05, 1.05], "constrain": "domain"}  # fmt: skip
    shape["annotations"] = [
        {"text": f"directions of {name}", "x": x, "y": 1.0, "xref": "paper", "yref": "paper", "xanchor": "center",
         "yanchor": "bottom", "showarrow": False, "font": {"size": 13}}
        for name, x in (("a", 0.23), ("c*", 0.77))
    ]  # fmt: skip
    return Chart(
        "orientations",
        f"Orientations of {len(U)} crystals",
        "Where the crystals' a (left) and c* (right) point, or their opposites, seen along the beam: in the middle "
        "along the beam, on the rim across it; the inner circles are 45 and 22.5 degrees from the beam. The "
        "projection keeps areas: crystals without a preference fill the disc evenly. Clusters are plates or needles "
        "that lie down, or one crystal that was hit again and again.",
        tuple(traces),
        shape,
        430,
    )


def turn_chart(turned_deg: Floats) -> Chart:
    """By how much the refinement turned the crystals."""
    known = turned_deg[np.isfinite(turned_deg)]
    found = spread(known, np.full(len(known), math.nan))
    high = min(float(known.max()), found.median + SHOWN_WIDTHS * found.width) * 1.02
    middle, count, width = histogram(known, 0.0, high)
    bars = {"type": "bar", "x": middle, "y": count, "width": width * 0.96, "marker": {"color": SKY}, "name": "stills",
            "hovertemplate": "%{x:.3f}°: %{y} stills<extra></extra>"}  # fmt: skip
    return Chart(
        "turns",
        f"By how much crystals turned: median {np.median(known):.3f}°",
        "The angle between the orientation that was read and the refined one. Indexing is usually good to some "
        "hundredths of a degree; stills far to the right may have been indexed wrongly. The last bar holds all beyond.",
        (bars,),
        layout("turn (°)", "stills", showlegend=False),
        280,
    )


def fit_chart(rows: Sequence[tuple[int, str, str, float, float]]) -> Chart | None:
    """χ² and CC of every still over its number; None where no still has a fit."""
    if not rows:
        return None
    traces: list[dict[str, Any]] = []
    for outcome in dict.fromkeys(row[2] for row in rows):
        mine = [row for row in rows if row[2] == outcome]
        for which, number in ((3, ""), (4, "2")):
            traces.append(
                {"type": "scatter", "mode": "markers", "name": outcome, "legendgroup": outcome,
                 "showlegend": number == "",
                 "x": [row[0] for row in mine], "y": [row[which] for row in mine], "text": [row[1] for row in mine],
                 "xaxis": f"x{number}", "yaxis": f"y{number}",
                 "marker": {"color": COLOURS.get(outcome, PURPLE), "size": 7,
                            "symbol": "circle" if outcome == "refined" else "x"},
                 "hovertemplate": "still %{x}: %{text}<br>%{y:.3f}<extra></extra>"}
            )  # fmt: skip
    numbers = np.array([float(row[0]) for row in rows])
    traces.append(level(numbers, 1.0, "noise alone", line={"color": GREEN, "dash": "dash"}))
    chi2 = np.array([row[3] for row in rows])
    low, high = min(0.8, float(chi2.min()) - 0.1), max(1.2, float(chi2.max()) + 0.1)
    scale: dict[str, Any] = {"type": "log"} if high > SPANS_DECADES else {"range": [low, high]}
    return Chart(
        "fits",
        "χ² and correlation of every still",
        "χ² per pixel (left; 1 is noise alone) and the median correlation of data and model in bright spots (right; "
        "good above 0.8), in the order of the stills. A step or a drift is something that changed during the "
        "experiment; single ones are other crystals, a second lattice or a wrong indexing. Crosses cannot be used.",
        tuple(traces),
        layout("", "", margin=HEADED, xaxis=axis("still", domain=[0, 0.45]),
               xaxis2=axis("still", domain=[0.55, 1], anchor="y2"),
               yaxis=axis("χ² per pixel", **scale),
               yaxis2=axis("median CC", anchor="x2")),
    )  # fmt: skip
