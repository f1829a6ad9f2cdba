"""Figures of the solution: correlations of the parameters, the rocking curve, the solver's history."""

from itertools import groupby

import numpy as np

from dbex.report.looks import AFTER, BEFORE, DIVERGING, GREEN, HEADED, ORANGE, PURPLE, QUIET, axis, layout, level
from dbex.report.page import Chart
from dbex.report.place_charts import spot_names
from dbex.scoring import correlations, means, rocking_curve, worst_pair
from dbex.still import Floats, StillResult

#: Spots whose expected full intensity exceeds its esd so many times show something of the curve.
LEAST_SNR = 3.0
#: The correlations of this size and more are written into their fields, in matrices of up to this many parameters.
WRITTEN_FROM, MOST_WRITTEN = 0.3, 24
#: So many fields of the matrix fill the page from side to side.
MOST_ABREAST = 36
#: The matrix of many parameters is drawn no higher than this, px.
HIGHEST = 1100
#: The angles that are shown: all but these parts at either end.
CUT_PARTS = (0.01, 0.99)


def correlation_chart(names: list[str], covariance: Floats) -> Chart | None:
    """The correlation matrix with the worst pair named; None where there are no two parameters."""
    found = correlations(covariance)
    pair = worst_pair(found)
    if pair is None:
        return None
    shown = np.round(found, 3)
    first, second = (names[i] for i in pair)
    worst = found[pair]
    scale = [[i / (len(DIVERGING) - 1), colour] for i, colour in enumerate(DIVERGING)]
    part = min(1.0, len(names) / MOST_ABREAST)
    heat = {"type": "heatmap", "x": names, "y": names, "z": shown, "zmin": -1, "zmax": 1, "colorscale": scale,
            "xgap": 1, "ygap": 1, "hovertemplate": "%{y} with %{x}: %{z:.3f}<extra></extra>",
            "colorbar": {"title": {"text": "correlation", "side": "right"}, "thickness": 12, "x": part}}  # fmt: skip
    notes = [
        {"x": names[j], "y": names[i], "text": in_field(shown[i, j]), "showarrow": False,
         "font": {"size": 10, "color": "#ffffff" if abs(shown[i, j]) > 0.55 else "#1d2530"}}
        for i in range(len(names)) for j in range(len(names))
        if i != j and abs(shown[i, j]) >= WRITTEN_FROM and len(names) <= MOST_WRITTEN
    ]  # fmt: skip
    height = min(190 + 24 * len(names), HIGHEST)
    return Chart(
        "correlations",
        f"Correlations of the parameters: the worst pair is {first} and {second}, {worst:+.2f}",
        "Orange: a rise of one is made up for by a rise of the other; purple: by a fall. Near ±1 the data determine "
        "only a combination of the two, and neither esd tells much alone: hold one of them, or use data that part "
        "them. Below 0.9 there is nothing to worry about.",
        (heat,),
        layout("", "", annotations=notes, margin={"l": 120, "r": 16, "t": 16, "b": 100},
               xaxis={"tickangle": -55, "showgrid": False, "domain": [0, part]},
               yaxis={"autorange": "reversed", "showgrid": False}),
        height,
    )  # fmt: skip


def in_field(correlation: float) -> str:
    """A correlation with one digit, near ±1 with two."""
    return f"{correlation:.{2 if abs(correlation) >= 0.95 else 1}f}".replace("0.", ".")


def rocking_chart(result: StillResult) -> Chart:
    """How much of each spot is seen against the angle from the Ewald sphere, and against the model's widths."""
    boxes = result.boxes
    found = rocking_curve(boxes, LEAST_SNR)
    delta_deg, k = np.degrees(boxes.delpsi_rad[found.box]), boxes.excitation[found.box]
    text = spot_names(result, found.box)
    spots = {"type": "scatter", "mode": "markers", "name": "spots", "y": found.observed, "customdata": found.box,
             "text": text, "marker": {"color": AFTER, "size": 5, "opacity": 0.55},
             "hovertemplate": "%{text}<br>%{y:.2f}<extra></extra>"}  # fmt: skip
    model = {"type": "scatter", "mode": "markers", "name": "model", "x": delta_deg, "y": boxes.partiality[found.box],
             "marker": {"color": ORANGE, "size": 4, "symbol": "diamond"}, "hoverinfo": "skip"}  # fmt: skip
    curve = np.linspace(min(-3.0, float(k.min(initial=0))), max(3.0, float(k.max(initial=0))), 121)
    line = {"type": "scatter", "mode": "lines", "name": "model", "x": curve, "y": np.exp(-0.5 * curve**2),
            "line": {"color": ORANGE, "width": 2.5}, "xaxis": "x2", "yaxis": "y2", "showlegend": False,
            "hoverinfo": "skip"}  # fmt: skip
    binned = means(k, found.observed, 14)
    mean = {"type": "scatter", "mode": "markers", "name": "mean of spots", "x": binned.x, "y": binned.mean,
            "error_y": {"type": "data", "array": binned.esd, "color": "#1d2530", "thickness": 1.5},
            "marker": {"color": "#1d2530", "size": 7, "symbol": "square"}, "xaxis": "x2", "yaxis": "y2",
            "hovertemplate": "k %{x:.2f}: %{y:.2f}<extra></extra>"}  # fmt: skip
    ends = np.quantile(delta_deg, CUT_PARTS) if len(delta_deg) else np.array([-0.1, 0.1])
    angles = [float(ends[0] - 0.1 * np.ptp(ends)), float(ends[1] + 0.1 * np.ptp(ends))]
    top = max(1.6, min(3.0, float(np.quantile(found.observed, 0.98)))) if len(found.box) else 1.6
    return Chart(
        "rocking",
        f"Rocking curve of {len(found.box)} spots",
        "How much each spot shows of the intensity that its structure factor promises, against Δψ, the rotation that "
        "would bring its node onto the Ewald sphere (left), and against the same in widths of the node, where the "
        "model is one bell for all (right; squares are means over spots). On the left the model's width differs from "
        "spot to spot. Blue above orange at the flanks: the crystal is broader than the model, in mosaicity, size or "
        "bandwidth; an offset of the middle: the orientation; scatter about a good bell: the structure factors. "
        "Values beyond the axis are cut.",
        (spots | {"x": delta_deg, "xaxis": "x", "yaxis": "y"}, model,
         spots | {"x": k, "xaxis": "x2", "yaxis": "y2", "showlegend": False}, line, mean),
        layout("", "", xaxis=axis("Δψ (°)", domain=[0, 0.45], range=angles),
               xaxis2=axis("excitation error (widths of the node)", domain=[0.55, 1], anchor="y2"),
               yaxis=axis("observed part of full intensity", range=[-0.3, top]),
               yaxis2=axis("", anchor="x2", range=[-0.3, top])),
        picks=True,
    )  # fmt: skip


def history_chart(result: StillResult) -> Chart | None:
    """χ² and the size of the steps over the solver's iterations, stage by stage; None where there are none."""
    steps = result.content["history"]
    if not steps:
        return None
    colours, traces, at = (BEFORE, AFTER, GREEN, PURPLE, ORANGE), [], 1
    for place, (stage, members) in enumerate(groupby(steps, key=lambda step: step["stage"])):
        each = list(members)
        x = list(range(at, at + len(each)))
        at += len(each)
        colour = QUIET if stage.startswith("trying") else colours[place % len(colours)]
        for key, axes in (("chi2_per_pixel", ""), ("step_in_esds", "2")):
            traces.append(
                {"type": "scatter", "mode": "lines+markers", "name": stage, "legendgroup": str(place), "x": x,
                 "y": [step[key] for step in each], "showlegend": axes == "", "xaxis": f"x{axes}", "yaxis": f"y{axes}",
                 "marker": {"color": colour, "size": 6,
                            "symbol": ["circle" if step["accepted"] else "x" for step in each]},
                 "line": {"color": colour, "width": 1.5},
                 "hovertemplate": stage + "<br>step %{x}: %{y:.4g}<extra></extra>"}
            )  # fmt: skip
    traces.append(level([1, at - 1], 1, "one esd", xaxis="x2", yaxis="y2", showlegend=False))
    return Chart(
        "history",
        f"{len(steps)} steps of the solver",
        "χ² per pixel (left) and the largest move of a parameter in its esds (right), step by step; a new colour is a "
        "new stage, with boxes of its own, so that χ² may jump there; grey stages tried a term of the model. It has "
        "converged where the last steps lie far below one esd (dashed). Crosses are steps that were refused.",
        tuple(traces),
        layout("", "", margin=HEADED, xaxis=axis("step", domain=[0, 0.45]),
               xaxis2=axis("step", domain=[0.55, 1], anchor="y2"), yaxis=axis("χ² per pixel"),
               yaxis2=axis("largest move (esds)", type="log", anchor="x2", exponentformat="power"),
               legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}),
        380,
    )  # fmt: skip
