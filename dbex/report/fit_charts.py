"""Figures of how well model and pixels agree: Z and χ² by all that they might depend on."""

from typing import Any

import numpy as np

from dbex.report.looks import AFTER, EXPECTED, QUIET, SKY, axis, layout, level, points, resolution_axis
from dbex.report.page import Chart
from dbex.scoring import Bins, means, means_by_number, normal_density, percentiles, resolution_A, z_scores
from dbex.still import Floats, StillResult

#: The histogram's range and bin, and how many bins of resolution and intensity there are.
Z_RANGE, Z_BIN, BINS = 6.0, 0.2, 16
#: What a normal deviate does as often as this is worth an axis: the lowest tick of a density.
LEAST_DENSITY = 1e-5


def fit_charts(result: StillResult) -> tuple[Chart, ...]:
    """Z against N(0, 1) and against resolution; χ² by resolution, intensity and panel."""
    used = result.pixels.used
    z = z_scores(result.pixels)[used]
    box = result.pixels.box[used]
    inverse_square = (1 / resolution_A(result.boxes, result.beam_direction) ** 2)[box]
    photons = (result.pixels.background + result.pixels.bragg)[used]
    charts = [z_histogram(z), z_against_resolution(inverse_square, z), chi2_by_resolution(inverse_square, z)]
    charts.append(chi2_by_intensity(photons, z))
    if len(result.detector) > 1:
        charts.append(chi2_by_panel(means_by_number(result.pixels.panel[used], z**2)))
    return tuple(charts)


def z_histogram(z: Floats) -> Chart:
    """How often each Z occurs, against a normal deviate."""
    edges = np.arange(-Z_RANGE, Z_RANGE + Z_BIN / 2, Z_BIN)
    count, _ = np.histogram(np.clip(z, -Z_RANGE, Z_RANGE), edges)
    density = count / max(len(z), 1) / Z_BIN
    middle = (edges[1:] + edges[:-1]) / 2
    beyond = float((np.abs(z) > 3).mean()) if len(z) else float("nan")
    sigma = float(z.std()) if len(z) else float("nan")
    mean = round(float(z.mean()), 3) + 0.0 if len(z) else float("nan")
    bars = {"type": "bar", "name": "pixels", "x": middle, "y": density, "width": Z_BIN, "marker": {"color": SKY},
            "customdata": count, "hovertemplate": "Z %{x:.1f}: %{customdata} pixels<extra></extra>"}  # fmt: skip
    line = {"type": "scatter", "mode": "lines", "name": "N(0, 1)", "x": middle, "y": normal_density(middle),
            "line": {"color": EXPECTED, "width": 2}, "hoverinfo": "skip"}  # fmt: skip
    return Chart(
        "z-histogram",
        f"Z of {len(z)} pixels: mean {mean:+.3f}, sigma {sigma:.3f}",
        "Bars are the pixels that were used, the line is a perfect fit with perfect noise, N(0, 1). Wider bars than "
        "the line: the model misses something, or the noise is underestimated; narrower: it is overestimated. Beyond "
        f"3 sigma lie {100 * beyond:.2f} % of the pixels; chance has 0.27 %. The scale of densities is logarithmic, "
        f"so that the wings show; what lies beyond ±{Z_RANGE:g} is in the last bars. Where pixels hold few photons "
        "the bars lean: a longer right wing is then that of Poisson's law.",
        (bars, line),
        layout("Z = (data − model)/σ", "density", bargap=0,
               yaxis=axis("density (logarithmic)", type="log", range=[np.log10(LEAST_DENSITY), 0],
                          exponentformat="power", dtick=1)),
    )  # fmt: skip


def z_against_resolution(inverse_square: Floats, z: Floats) -> Chart:
    """Percentiles of Z in shells of resolution, against those of a normal deviate."""
    found = percentiles(inverse_square, z, BINS)
    names = ("2.3 % lie below", "15.9 %", "median", "84.1 %", "97.7 %")
    styles: tuple[dict[str, Any], ...] = (
        {"width": 1, "dash": "dot"},
        {"width": 1.5},
        {"width": 2.5},
        {"width": 1.5},
        {"width": 1, "dash": "dot"},
    )
    traces: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": found.x, "y": found.values[:, i],
         "line": {"color": AFTER, **style}, "marker": {"size": 4, "color": AFTER}, "customdata": found.count,
         "hovertemplate": name + ": Z %{y:.2f} of %{customdata} pixels<extra></extra>"}
        for i, (name, style) in enumerate(zip(names, styles, strict=True))
    ]  # fmt: skip
    traces += [
        level(inverse_square, at, "a normal deviate", showlegend=at == -2, line={"color": QUIET, "dash": "dash"})
        for at in (-2.0, -1.0, 0.0, 1.0, 2.0)
    ]
    shown = layout("", "Z", xaxis=resolution_axis(inverse_square), yaxis=axis("Z", range=[-4, 4]))
    return Chart(
        "z-resolution",
        "Z against resolution",
        "Percentiles of Z in shells with equally many pixels, low resolution on the left. The lines should lie on the "
        "dashed ones at −2, −1, 0, 1 and 2. A median that leaves zero is a bias of the model there (scale, B factor, "
        "background); a band that widens is misfit, one that narrows an overestimated error of the structure factors.",
        tuple(traces),
        shown,
    )


def chi2_by_resolution(inverse_square: Floats, z: Floats) -> Chart:
    """χ² in shells of resolution."""
    found = means(inverse_square, z**2, BINS)
    return Chart(
        "chi2-resolution",
        "χ² per pixel by resolution",
        "The mean of Z² in shells with equally many pixels, with its esd; 1 is noise alone. A rise towards low "
        "resolution usually comes with the bright spots (see the next figure), one towards high resolution from the "
        "widths or the structure factors.",
        (points(found, "χ² per pixel", AFTER, ""), level(inverse_square, 1, "noise alone")),
        layout("", "", xaxis=resolution_axis(inverse_square), yaxis=chi2_axis(found)),
        300,
    )


def chi2_by_intensity(photons: Floats, z: Floats) -> Chart:
    """χ² in bins of what the model expects in a pixel."""
    found = means(np.log10(np.maximum(photons, 1e-3)), z**2, BINS)
    top = means(np.log10(np.maximum(photons, 1e-3))[photons > np.quantile(photons, 0.97)],
                z[photons > np.quantile(photons, 0.97)] ** 2, BINS // 2) if len(z) else found  # fmt: skip
    finer = Bins(found.edges, 10**found.x, found.count, found.mean, found.esd)
    bright = Bins(top.edges, 10**top.x, top.count, top.mean, top.esd)
    return Chart(
        "chi2-intensity",
        "χ² per pixel by intensity",
        "The mean of Z² by the photons that the model expects in a pixel, background included; 1 is noise alone. The "
        "second line divides the brightest 3 % further: there the shape of the spots is tested hardest. A rise only "
        "at the right end is what real crystals do that are more than the model, and esds allow for it; a level off 1 "
        "at the left end is a wrong gain or read-out noise.",
        (
            points(finer, "all pixels", AFTER, "%{x:.3g} photons"),
            points(bright, "the brightest 3 %", SKY, "%{x:.3g} photons"),
            level(np.concatenate([finer.x, bright.x]), 1, "noise alone"),
        ),
        layout("", "", xaxis=axis("expected photons in the pixel", type="log", dtick="D2"), yaxis=chi2_axis(bright)),
        300,
    )


def chi2_by_panel(found: Bins) -> Chart:
    """χ² of each panel."""
    return Chart(
        "chi2-panel",
        "χ² per pixel by panel",
        "The mean of Z² on each panel with its esd; 1 is noise alone. A panel that stands out has a gain, a pedestal "
        "or a place of its own: compare it with the map of offsets.",
        (
            points(found, "χ² per pixel", AFTER, "panel %{x}", mode="markers"),
            level(found.x, 1, "noise alone"),
        ),
        layout("", "", xaxis=axis("panel"), yaxis=chi2_axis(found)),
        300,
    )


def background_by_panel(panel: Floats, rms: Floats, esd: Floats) -> Chart:
    """σ-Z of the background of each panel, with its esd."""
    marks = {"type": "scatter", "mode": "markers", "name": "σ-Z", "x": panel, "y": rms,
             "error_y": {"type": "data", "array": esd, "thickness": 1, "width": 2},
             "marker": {"color": AFTER, "size": 6}, "hovertemplate": "panel %{x}: %{y:.3f}<extra></extra>"}  # fmt: skip
    return Chart(
        "background-panels",
        f"σ-Z of the background by panel: {rms.min():.2f} to {rms.max():.2f}",
        "The same for each panel, with its esd; 1 is right. Panels that differ by more than their esds have a gain, a "
        "pedestal or a read-out noise of their own: dbex.estimate_noise measures them, and noise= gives them to "
        "dbex.refine.",
        (marks, level(panel, 1, "right")),
        layout("", "", xaxis=axis("panel"), yaxis=axis("σ-Z")),
        300,
    )


def chi2_axis(found: Bins) -> dict[str, Any]:
    """With room about 1, and logarithmic where χ² spans decades."""
    if len(found) and found.mean.max() > 10:
        return axis("χ² per pixel (logarithmic)", type="log", dtick="D2")
    low, high = float((found.mean - found.esd).min(initial=1.0)), float((found.mean + found.esd).max(initial=1.0))
    return axis("χ² per pixel", range=[min(0.8, low - 0.1), max(1.2, high + 0.1)])
