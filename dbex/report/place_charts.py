"""Figures of where spots are: offsets as arrows on the detector, along and across the radius, and χ² on a map."""

from typing import Any

import numpy as np

from dbex.report.looks import AFTER, BEFORE, HEADED, QUIET, axis, layout, level, resolution_axis, side_by_side
from dbex.report.page import Chart
from dbex.scoring import Offsets, lab_mm, offsets, resolution_A, seen_along_beam
from dbex.still import Floats, StillResult

#: The arrow that nine tenths do not reach is drawn this long, of the width of the detector.
ARROW_PART = 0.05
#: Arrows are drawn no longer than so many times that.
LONGEST = 2.5
#: χ² per pixel from here on has the last colour of the map.
CHI2_LIMITS = (0.5, 2.0)
#: The part of the page that the map has, and the bar of its colours beside it.
MAP_PART = 0.5
#: The margin of a map about the panels.
MARGIN_PART = 0.06


def place_charts(result: StillResult) -> tuple[Chart, ...]:
    """The arrows before and after, their parts along and across the radius, and the map of χ²."""
    boxes, detector, direction = result.boxes, result.detector, result.beam_direction
    before, after = (offsets(boxes, xy, detector, direction) for xy in (boxes.xy_before_px, boxes.xy_px))
    return arrows_chart(result, before, after), parts_chart(result, before, after), chi2_map(result)


def arrows_chart(result: StillResult, before: Offsets, after: Offsets) -> Chart:
    """Predicted minus observed centroids, before and after, side by side."""
    outline, where = panel_outlines(result), positions(result)
    width = float(np.ptp(where, axis=0).max()) if len(where) else 1.0
    traces, headings = [], []
    for name, found, colour, place in (("before", before, BEFORE, ""), ("after", after, AFTER, "2")):
        typical = float(np.quantile(found.length, 0.9)) if len(found.box) else 1.0
        size = rounded_down(ARROW_PART * width / max(typical, 1e-6))
        median = float(np.median(found.length)) if len(found.box) else float("nan")
        headings.append(f"{name}: median {median:.2f} px; 1 px is drawn {size:.3g} mm long")
        longest = LONGEST * ARROW_PART * width
        shown = found.on_plane * size
        shown *= np.minimum(1, longest / np.maximum(np.linalg.norm(shown, axis=1, keepdims=True), 1e-9))
        x, y = arrows(where[found.box], shown)
        on = {"xaxis": f"x{place}", "yaxis": f"y{place}"}
        traces.append(outline | on)
        traces.append(
            {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": {"color": colour, "width": 1.2},
             "hoverinfo": "skip", **on}
        )  # fmt: skip
        traces.append(spot_marks(result, found, where, colour) | on)
        traces.append(beam_mark() | on)
    return Chart(
        "offsets",
        "Predicted minus observed centroids on the detector",
        "Each arrow begins at an observed spot and points to where the model puts it, before the refinement (left) and "
        "after it (right), magnified as the headings say: mind that the two magnifications differ. Seen along the "
        "beam, its place is the cross. Arrows that all point the same way are a shift of the detector or the beam; "
        "all outward or inward, a wrong distance or cell; a swirl, a rotation about the beam; what is left should "
        "point anywhere. Very long ones are cut short. A click shows the spot.",
        tuple(traces),
        two_maps(result, headings),
        520,
        picks=True,
    )


def parts_chart(result: StillResult, before: Offsets, after: Offsets) -> Chart:
    """Radial and tangential offsets against resolution."""
    inverse_square = 1 / resolution_A(result.boxes, result.beam_direction) ** 2
    traces: list[dict[str, Any]] = []
    for part, place in (("radial", ""), ("tangential", "2")):
        for name, found, colour in (("before", before, BEFORE), ("after", after, AFTER)):
            traces.append(
                {"type": "scatter", "mode": "markers", "name": name, "showlegend": place == "", "legendgroup": name,
                 "x": inverse_square[found.box], "y": getattr(found, part), "customdata": found.box,
                 "text": spot_names(result, found.box), "xaxis": f"x{place}", "yaxis": f"y{place}",
                 "marker": {"color": colour, "size": 5, "opacity": 0.7,
                            "symbol": "circle-open" if name == "before" else "circle"},
                 "hovertemplate": "%{text}<br>" + part + " %{y:.2f} px<extra></extra>"}
            )  # fmt: skip
        traces.append(
            level(inverse_square, 0, "", xaxis=f"x{place}", yaxis=f"y{place}", showlegend=False, line={"color": QUIET})
        )
    return Chart(
        "offset-parts",
        "Offsets along and across the radius, against resolution",
        "The same offsets, predicted minus observed, along the line from the beam to the spot (left; positive: "
        "predicted too far out) and across it (right), open before and filled after. A radial slope is a wrong "
        "distance, cell or wavelength; scatter that stays is the precision of the observed centroids. Low resolution "
        "is on the left.",
        tuple(traces),
        layout("", "", annotations=side_by_side("radial", "tangential"), margin=HEADED,
               legend={"orientation": "h", "x": 0.5, "xanchor": "center", "y": 1.0, "yanchor": "bottom"},
               xaxis=resolution_axis(inverse_square, domain=[0, 0.45]),
               xaxis2=resolution_axis(inverse_square, domain=[0.55, 1], anchor="y2"),
               yaxis=axis("radial offset (px)"), yaxis2=axis("tangential offset (px)", anchor="x2")),
        picks=True,
    )  # fmt: skip


def chi2_map(result: StillResult) -> Chart:
    """Where on the detector model and pixels agree."""
    where, shown = positions(result), np.flatnonzero(result.boxes.pixels > 0)
    chi2 = result.boxes.chi2_per_pixel[shown]
    low, high = CHI2_LIMITS
    marks = {
        "type": "scatter", "mode": "markers", "x": where[shown, 0], "y": where[shown, 1], "customdata": shown,
        "text": spot_names(result, shown), "meta": "", "name": "spots",
        "marker": {
            "color": np.log10(np.clip(chi2, low, high)), "cmin": np.log10(low), "cmax": np.log10(high),
            "colorscale": "Viridis", "size": 7, "line": {"width": 0.5, "color": "#ffffff"},
            "colorbar": {"title": {"text": "χ²/px", "side": "right"}, "thickness": 12, "x": MAP_PART,
                         "tickvals": np.log10([0.5, 0.7, 1, 1.4, 2]),
                         "ticktext": ["≤ 0.5", "0.7", "1", "1.4", "≥ 2"]},
        },
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    shape = layout("mm, right", "mm, up", showlegend=False)
    frame(shape, result)
    shape["yaxis"] |= {"scaleanchor": "x", "constrain": "domain"}
    shape["xaxis"] |= {"constrain": "domain", "constraintoward": "left", "domain": [0, MAP_PART]}
    return Chart(
        "chi2-map",
        "χ² per pixel of every spot, on the detector",
        "Every spot at its place, seen along the beam (the cross), coloured by the mean Z² of its pixels: green is "
        "noise alone, yellow misfit. Yellow in one place is a part of the detector, yellow along an arc or a "
        "direction is the crystal's mosaicity, yellow everywhere the noise. A click shows the spot.",
        (panel_outlines(result), marks, beam_mark()),
        shape,
        560,
        picks=True,
    )


def frame(shape: dict[str, Any], result: StillResult) -> None:
    """Let the axes of a map hold the whole detector, with a margin."""
    outline = panel_outlines(result)
    for name, key in (("xaxis", "x"), ("yaxis", "y")):
        low, high = float(np.nanmin(outline[key])), float(np.nanmax(outline[key]))
        shape[name] |= {"range": [low - MARGIN_PART * (high - low), high + MARGIN_PART * (high - low)]}


def two_maps(result: StillResult, headings: list[str]) -> dict[str, Any]:
    """The layout of two maps of the detector."""
    shape = layout("mm, right", "mm, up", showlegend=False, annotations=side_by_side(*headings), margin=HEADED)
    frame(shape, result)
    shape["xaxis"] |= {"domain": [0, 0.46], "constrain": "domain"}
    shape["yaxis"] |= {"scaleanchor": "x", "constrain": "domain"}
    shape["xaxis2"] = axis("mm, right", domain=[0.54, 1], anchor="y2", matches="x", constrain="domain")
    shape["yaxis2"] = axis("", anchor="x2", matches="y", constrain="domain")
    return shape


def positions(result: StillResult) -> Floats:
    """Where the refined model puts the boxes (n, 2), mm, seen along the beam."""
    boxes = result.boxes
    return seen_along_beam(lab_mm(result.detector, boxes.panel, boxes.xy_px), result.beam_direction)


def panel_outlines(result: StillResult) -> dict[str, Any]:
    """The edges of all panels as one trace."""
    corners = np.array([[(0, 0), (p.shape[1], 0), p.shape[::-1], (0, p.shape[0]), (0, 0)] for p in result.detector])
    panel = np.repeat(np.arange(len(corners)), 5)
    flat = lab_mm(result.detector, panel, corners.reshape(-1, 2).astype(float))
    seen = seen_along_beam(flat, result.beam_direction).reshape(-1, 5, 2)
    gapped = np.concatenate([seen, np.full((len(seen), 1, 2), np.nan)], axis=1).reshape(-1, 2)
    return {"type": "scatter", "mode": "lines", "x": gapped[:, 0], "y": gapped[:, 1], "hoverinfo": "skip",
            "line": {"color": QUIET, "width": 0.8}, "name": "panels"}  # fmt: skip


def spot_marks(result: StillResult, found: Offsets, where: Floats, colour: str) -> dict[str, Any]:
    """The spots that arrows begin at."""
    text = [
        f"{name}<br>offset {length:.2f} px"
        for name, length in zip(spot_names(result, found.box), found.length, strict=True)
    ]
    return {"type": "scatter", "mode": "markers", "x": where[found.box, 0], "y": where[found.box, 1], "text": text,
            "customdata": found.box, "marker": {"size": 4, "color": colour},
            "hovertemplate": "%{text}<extra></extra>"}  # fmt: skip


def spot_names(result: StillResult, box: np.ndarray) -> list[str]:
    """What a spot is called on a map."""
    boxes = result.boxes
    many = len(result.detector) > 1
    return [
        f"hkl {h} {k} {l}" + (f", panel {panel}" if many else "") + f", χ²/px {chi2:.2f}, CC {cc:.3f}"
        for (h, k, l), panel, chi2, cc in zip(
            boxes.hkl[box], boxes.panel[box], boxes.chi2_per_pixel[box], boxes.cc[box], strict=True
        )
    ]


def beam_mark() -> dict[str, Any]:
    """Where the beam is."""
    return {"type": "scatter", "mode": "markers", "x": [0.0], "y": [0.0], "hovertemplate": "beam<extra></extra>",
            "marker": {"symbol": "cross-thin-open", "size": 12, "color": "#1d2530"}, "name": "beam"}  # fmt: skip


def arrows(start: Floats, by: Floats) -> tuple[Floats, Floats]:
    """Arrows (n) from `start` by `by` (n, 2), each with its head, as one broken line."""
    end = start + by
    across = np.stack([-by[:, 1], by[:, 0]], axis=1)
    barbs = [end - 0.3 * by + side * 0.18 * across for side in (1, -1)]
    gap = np.full_like(start, np.nan)
    path = np.stack([start, end, barbs[0], end, barbs[1], gap], axis=1).reshape(-1, 2)
    return path[:, 0], path[:, 1]


def rounded_down(value: float) -> float:
    """The largest of 1, 2, 5, 10, … that is not above a positive number."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * max(step for step in (1, 2, 5) if step * power <= value * (1 + 1e-9)))
