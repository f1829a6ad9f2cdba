"""The page of one still: whether its fit is good, what moved, what the pixels say, and how it was made."""

import math
from typing import Any

import numpy as np

from dbex.report.fit_charts import background_by_panel, fit_charts
from dbex.report.page import Chart, Page, Section, Table, Text
from dbex.report.place_charts import place_charts
from dbex.report.solution_charts import correlation_chart, history_chart, rocking_chart
from dbex.report.spots import MOST_PIXELS, gallery
from dbex.report.summary import SIGNS, known, rounded
from dbex.still import ParameterEstimate, StillResult

STATES = {
    "good": "Model and pixels agree within the noise. Parameters, esds and intensities can be used as they are.",
    "fair": "The crystal is more than the model, as real ones are: only the noise of the brightest spots is not "
    "reached. Intensities can be used; esds allow for the misfit.",
    "incomplete": "Model and pixels agree, but something that was held is wrong, and what moved makes up for it: do "
    "not trust the numbers before it is refined too. What to do is said below.",
    "poor": "The fit cannot be used: pixels or intensities contradict the model. Do not use parameters or intensities "
    "before the reason is found; it is named below, and the worst spots may show it.",
    "not converged": "The solver stopped before it had an answer: numbers and esds are those of the way, not of the "
    "end.",
}
FIGURES = (
    ("chi2_per_pixel", "χ² per pixel", ".3f", "1 is noise alone; good up to 2"),
    ("chi2_core", "χ² per core pixel", ".3f", "the bright part of each spot, where shape is tested; good up to 2"),
    ("median_cc", "median correlation of bright spots", ".3f", "data with model in a box; good above 0.8"),
    ("intensity_cc", "rank correlation of intensities with F²", ".3f",
     "near 0 for the structure factors of another crystal; good above 0.3"),
    ("relative_model_error", "error of F² found in the data", ".1%", "beyond the file's sigma; 100 % is no agreement"),
    ("sigma_z", "σ-Z of the background", ".3f", "1 where gain and read-out noise are right; within 3 %"),
    ("boxes", "spots with a box", ".0f", "indexed or predicted, and on trusted pixels"),
    ("boxes_cc", "of them bright", ".0f", "above 10 sigma; fewer than 10 prove nothing"),
    ("pixels", "pixels used", ".0f", ""),
    ("d_min_A", "resolution (Å)", ".2f", "the finest that was asked for or seen"),
    ("search_median_px_before", "median offset of spots before (px)", ".2f", "predicted minus observed, as read"),
    ("search_median_px_after", "after the search (px)", ".2f", "precision of the observed centroids is 0.1 to 0.3"),
    ("condition_number", "condition number", ".3g", "above 1e8 a combination of parameters is undetermined"),
    ("lattices", "lattices on this image", ".0f", "refined in turns; the light of the others is background here"),
)  # fmt: skip
QUOTED = {
    "formal": "noise of the pixels",
    "jackknife": "leaving out groups of spots",
    "drift": "other sizes of boxes",
}
MEANING = {
    "bandwidth": "a spread of wavelengths",
    "square": "mosaic blocks with flat faces",
    "mosaic_tensor": "mosaicity that differs with direction",
    "size_tensor": "block size that differs with direction",
    "component": "a second orientation",
    "divergence": "directions of the beam",
    "point_spread": "light that the detector spreads",
    "cell_spread": "a spread of cell sizes",
}


def still_page(result: StillResult, most_pixels: int | None = MOST_PIXELS) -> Page:
    """The page; spots beyond so many pixels have no picture there."""
    content = result.content
    state = content["verdict"]["state"]
    names = [estimate["name"] for estimate in content["estimates"]]
    covariance = np.array(content["covariance"], dtype=float).reshape(len(names), len(names))
    correlation, history = correlation_chart(names, covariance), history_chart(result)
    solved = (history,) if history else ()
    return Page(
        title=f"DBEX: {content['still']}",
        state=state,
        lead=(STATES.get(state, "; ".join(content["verdict"]["reasons"])), *lead(content)),
        sections=(
            Section("Quality of the fit", (quality(content),)),
            Section("What moved", (moved(content), *((correlation,) if correlation else ()), least(content))),
            Section("Spots", (gallery(result, most_pixels),)),
            Section("Residuals", fit_charts(result)),
            Section("Where spots are", place_charts(result)),
            Section("Rocking curve", (rocking_chart(result),)),
            Section("Background", (background_table(content["sigma_z"]), *background_charts(content["sigma_z"]))),
            Section("Course of the refinement", (*solved, *terms(content))),
            Section("What was left out", left_out(content)),
            Section("Provenance", provenance(content)),
        ),
        foot=foot(content),
    )


def lead(content: dict[str, Any]) -> tuple[str, ...]:
    """Reasons and advice as sentences."""
    verdict = content["verdict"]
    told = verdict["reasons"] and verdict["state"] != "good"
    reasons = [sentence("Why", verdict["reasons"])] if told else []
    advice = [sentence("What to do", verdict["advice"])] if verdict["advice"] else []
    return (*reasons, *advice)


def sentence(beginning: str, parts: list[str]) -> str:
    """Parts as one sentence."""
    text = f"{beginning}: {'; '.join(parts)}"
    return text if text.endswith(("?", ".")) else f"{text}."


def quality(content: dict[str, Any]) -> Table:
    """Figures of merit, with what they should be."""
    figures = content["figures"]
    rows = [
        (name, format(figures[key], form), meaning)
        for key, name, form, meaning in FIGURES
        if figures.get(key) is not None
    ]
    caption = "Figures of merit and what they should be. The verdict at the top rests on them."
    return Table(("figure", "value", "how to read it"), tuple(rows), caption, numeric=(1,))


def moved(content: dict[str, Any]) -> Table:
    """Every parameter before and after, with its esd and where that comes from."""
    rows = []
    for entry in content["estimates"]:
        known_fields: dict[str, Any] = {name: math.nan if value is None else value for name, value in entry.items()}
        e = ParameterEstimate(**known_fields)
        esds = f"{abs(e.after - e.before) / e.esd:.1f}" if known(e.esd) else "–"
        unit = SIGNS.get(e.unit, e.unit)
        rows.append((e.name, rounded(e.before, e.esd), rounded(e.after, e.esd), rounded(e.esd, e.esd) if known(e.esd)
                     else "–", unit, esds, esd_source(e)))  # fmt: skip
    return Table(
        ("parameter", "before", "after", "esd", "unit", "moved by (esds)", "the esd is that of"),
        tuple(rows),
        "What was refined. A move of less than about 3 esds is not significant: the data were content with the value "
        "that was read. The esd is the largest of three: the noise of the pixels, scaled to the misfit; the scatter "
        "when groups of spots are left out; and the change with the size of the boxes. Where it is not the noise, "
        "something that is not in the model limits the parameter.",
        numeric=(1, 2, 3, 5),
    )


def esd_source(e: ParameterEstimate) -> str:
    """Which of the esds is quoted."""
    if not known(e.esd):
        return "–"
    if math.isclose(e.esd, abs(e.drift), rel_tol=1e-6):
        return QUOTED["drift"]
    return QUOTED["jackknife" if math.isclose(e.esd, e.esd_jackknife, rel_tol=1e-6) else "formal"]


def least(content: dict[str, Any]) -> Text:
    """The combination that the still determines least."""
    return Text((f"Least determined combination of parameters: {content['worst_direction']}.",))


def background_table(check: dict[str, Any]) -> Table:
    """σ-Z of the background by intensity."""
    rows = [("all together", *scatter(check["together"]))]
    rows += [(f"mean of {part['intensity']:.3g} photons", *scatter(part)) for part in check["by_intensity"]]
    return Table(
        ("background pixels", "number", "σ-Z", "esd"),
        tuple(rows),
        "How much pixels without Bragg scattering vary about their background, over what gain and read-out noise "
        "predict: 1 is right. More: the gain is too small or the read-out noise underestimated (dbex.estimate_noise "
        "measures both); less: the reverse. A trend with intensity is a wrong gain, a constant excess a wrong "
        "read-out noise.",
        numeric=(1, 2, 3),
    )


def background_charts(check: dict[str, Any]) -> tuple[Chart, ...]:
    """σ-Z of the background by panel, where there are several."""
    parts = [(int(panel), part["rms"], part["esd"]) for panel, part in check["by_panel"].items() if part["rms"]]
    if len(parts) < 2:
        return ()
    panel, rms, esd = (np.array(column, dtype=float) for column in zip(*parts, strict=True))
    return (background_by_panel(panel, rms, esd),)


def scatter(part: dict[str, Any]) -> tuple[str, str, str]:
    """Number, σ-Z and esd as text."""
    if part["rms"] is None:
        return str(part["pixels"]), "–", "–"
    return str(part["pixels"]), f"{part['rms']:.3f}", "–" if part["esd"] is None else f"{part['esd']:.3f}"


def terms(content: dict[str, Any]) -> tuple[Table | Text, ...]:
    """The terms that were tried, and what came of it."""
    asked, rows = {term["name"]: term for term in content["terms"]}, []
    for name in content["settings"]["terms"]:
        meaning, term = MEANING.get(name, ""), asked.get(name)
        if term is None:
            rows.append((name, meaning, "–", "–", "does not apply to what was refined"))
            continue
        gain, cost = term["gain"], f"{term['cost']:.1f}"
        if gain is None:
            rows.append((name, meaning, f"{term['promised']:.1f}", cost, "not tried: it promised too little"))
        else:
            outcome = "kept: the data pay for it" if term["kept"] else "tried and dropped: it does not pay"
            rows.append((name, meaning, f"{gain:.1f}", cost, outcome))
    if not rows:
        return (Text(("No further term of the model was to be tried (refine.terms=none).",)),)
    return (
        Table(
            ("term", "what it is", "gain", "cost", "outcome"),
            tuple(rows),
            "Terms of the model that were tried on this still (refine.terms). The gain is the fall of −2 ln "
            "likelihood, in units of the noise; where a term was not tried, what its beginning promised. The cost is "
            "ln(pixels) for each further parameter, or what is held of the geometry promises: a term is kept where "
            "the gain exceeds it.",
            numeric=(2, 3),
        ),
        *(
            Text((f"One still cannot tell {name} from {other}: what is found may be either.",))
            for name, other in content["same_on_one_still"].items()
        ),
    )


def left_out(content: dict[str, Any]) -> tuple[Table | Text, ...]:
    """What was not used, and the boxes that lost weight."""
    rows = tuple((reason, str(number)) for reason, number in content["left_out"].items() if number)
    parts: list[Table | Text] = []
    if rows:
        parts.append(Table(("reason", "number"), rows, "What was not used and why.", numeric=(1,)))
    else:
        parts.append(Text(("Nothing was left out.",)))
    robbed = content["down_weighted_boxes"]
    if robbed["boxes"]:
        parts.append(
            Table(
                ("hkl", "panel", "mean weight", "χ² per pixel"),
                tuple((" ".join(map(str, box["hkl"])), str(box["panel"]), f"{box['weight']:.2f}",
                       f"{box['chi2_per_pixel']:.2f}") for box in robbed["boxes"]),
                f"Spots whose pixels were held back, those that lost most first. The rule: {robbed['rule']}.",
                numeric=(1, 2, 3),
            )
        )  # fmt: skip
    return tuple(parts)


def provenance(content: dict[str, Any]) -> tuple[Table | Text, ...]:
    """How to do it again."""
    modified = " ".join(content["modified_parameters"].split())
    noise = content["noise"]
    rows = [
        ("command", content["command"]),
        ("parameters changed", modified or "none"),
        ("started", content["started"]),
        ("structure factors", "{dataset}, {space_group}".format(**content["structure_factors"])),
        ("gain", f"{noise['gain']:g} image units per photon"
                 + (" (mean of the panels)" if noise["panels"] else "")),
        ("read-out noise from", noise["provenance"].replace("_", " ")),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in content["seconds"].items())),
        ("peak memory", f"{content['peak_memory_MB']:.0f} MB"),
        ("versions", ", ".join(f"{name} {version}" for name, version in content["versions"].items())),
    ]  # fmt: skip
    files = [(kind, each["path"], each["sha256"] or "–") for kind, each in content["inputs"].items()]
    return (
        Table(("", ""), tuple(rows), "How this run was started and with what."),
        Table(("input", "file", "SHA-256"), tuple(files), "The files that were read, by the hash of their bytes."),
    )


def foot(content: dict[str, Any]) -> str:
    """The last line."""
    return f"dbex {content['versions']['dbex']}, {content['started']}. The numbers are in dbex.json and pixels.h5."
