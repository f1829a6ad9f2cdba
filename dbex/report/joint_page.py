"""The page of a joint refinement: what all stills share, how each of them agrees, what was merged."""

import math
from typing import Any

import numpy as np

from dbex.report.looks import AFTER, GREEN, HEADED, ORANGE, QUIET, VERMILION, axis, layout, level, resolution_axis
from dbex.report.page import Chart, Page, Section, Table, Text
from dbex.report.solution_charts import correlation_chart
from dbex.report.summary import SIGNS, known, rounded

#: The stills that the table has one by one.
MOST_ROWS = 3000


def joint_page(content: dict[str, Any]) -> Page:
    """The page, from the content of joint.json."""
    stills, left_out = content["stills"], content["left_out"]
    outliers = [still for still in stills if still["outlier"]]
    whole = "incomplete" if left_out else "good"
    state = whole if content["converged"] else "not converged"
    names = [estimate["name"] for estimate in content["shared"]]
    covariance = np.array(content["covariance"], dtype=float).reshape(len(names), len(names))
    correlation = correlation_chart(names, covariance)
    return Page(
        title=f"DBEX: {len(stills)} stills jointly",
        state=state,
        badge="converged" if content["converged"] else "not converged",
        lead=lead(content, len(outliers)),
        sections=(
            Section("What all stills share", (shared_table(content["shared"]),
                                              *((correlation,) if correlation else ()))),
            Section("Merged intensities", merging(content["merging"])),
            Section("The stills", (pull_chart(stills), stills_table(stills, set(names), content["outlier_rule"]))),
            Section("What was left out", (left_out_table(left_out),)),
            Section("Course of the refinement", tuple(c for c in (steps_chart(content["steps"]),) if c)),
            Section("Provenance", (provenance(content),)),
        ),
        foot=f"dbex {content['versions']['dbex']}, {content['started']}. The numbers are in joint.json.",
    )  # fmt: skip


def lead(content: dict[str, Any], outliers: int) -> tuple[str, ...]:
    """What happened, in sentences."""
    stills, left_out = len(content["stills"]), len(content["left_out"])
    ended = (
        "The solution has converged: what is shared can be used, with the esds that are quoted."
        if content["converged"]
        else f"The solution has not converged ({content['message']}): the numbers are those of the way, not of the end."
    )
    took = f"{stills} stills took part; {outliers} of them pull much harder than the others and were held back"
    lines = [
        ended,
        f"{took}; {left_out} {'was' if left_out == 1 else 'were'} left out."
        if left_out
        else f"{took}; none was left out.",
    ]
    if content["merging"]["shells"]:
        whole = content["merging"]["shells"][-1]
        lines.append(
            f"Merged to {whole['d_min_A']:.2f} Å: CC½ {number(whole['cc_half'], 3)}, R of random halves "
            f"{number(whole['r_half'], 3)} over {whole['reflections']} reflections, seen {whole['multiplicity']:.1f} "
            "times."
        )
    return tuple(lines)


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals, a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def shared_table(shared: list[dict[str, Any]]) -> Table:
    """Every shared number before and after, with its esds."""
    rows = []
    for e in shared:
        esd = math.nan if e["esd"] is None else e["esd"]
        moved = f"{abs(e['after'] - e['before']) / esd:.1f}" if known(esd) else "–"
        esds = [f"{e[kind]:.2g}" if e[kind] is not None else "–" for kind in ("esd_formal", "esd_scatter", "esd")]
        unit = SIGNS.get(e["unit"], e["unit"])
        rows.append((e["name"], rounded(e["before"], esd), rounded(e["after"], esd), *esds, unit, moved))
    return Table(
        ("parameter", "before", "after", "esd, noise", "esd, scatter", "esd", "unit", "moved by (esds)"),
        tuple(rows),
        "What is the same for all stills. The esd of the noise is that of the normal matrix; that of the scatter, how "
        "much the stills disagree about the number; quoted is the latter where it is clearly larger: then stills "
        "differ by more than noise, and something that is not in the model limits the parameter.",
        numeric=(1, 2, 3, 4, 5, 7),
    )


def merging(found: dict[str, Any]) -> tuple[Chart | Table | Text, ...]:
    """CC½ and R of random halves by resolution."""
    *shells, whole = found["shells"] or [None]
    if whole is None:
        return (Text(("No reflection was seen twice: there is nothing to compare.",)),)
    rows = [(f"{s['d_max_A']:.2f} to {s['d_min_A']:.2f}", str(s["reflections"]), f"{s['multiplicity']:.1f}",
             number(s["cc_half"], 3), number(s["r_half"], 3), number(s["cc_F2"], 3))
            for s in (*shells, whole)]  # fmt: skip
    table = Table(
        ("resolution (Å)", "reflections", "seen (times)", "CC½", "R of halves", "CC with F²"),
        tuple(rows),
        "Agreement of random halves of the observations by shells, all together last. The relative error that the "
        f"model adds to each full intensity is {100 * found['relative_model_error']:.1f} %. CC with F² is the "
        "correlation of the means with the squares of the structure factors that were given.",
        numeric=(0, 1, 2, 3, 4, 5),
    )
    if not shells:
        return (table,)
    x = np.array([(s["d_max_A"] ** -2 + s["d_min_A"] ** -2) / 2 for s in shells])
    traces = [
        {"type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": [s[key] for s in shells],
         "marker": {"color": colour, "size": 7}, "line": {"color": colour},
         "hovertemplate": name + " %{y:.3f}<extra></extra>"}
        for key, name, colour in (("cc_half", "CC½", AFTER), ("r_half", "R of halves", VERMILION),
                                  ("cc_F2", "CC with F²", ORANGE))
    ]  # fmt: skip
    chart = Chart(
        "shells",
        "CC½ and R of random halves by resolution",
        "CC½ (blue) near 1 and R (red) near 0 mean that two halves of the stills agree; the resolution of the data "
        "ends where CC½ falls below about 0.3. CC with F² (orange) compares with the structure factors that the "
        "refinement was given: it is not independent of them where spots are weak.",
        tuple(traces),
        layout("", "", xaxis=resolution_axis(x), yaxis=axis("", range=[-0.05, 1.05])),
        320,
    )
    return (chart, table)


def pull_chart(stills: list[dict[str, Any]]) -> Chart:
    """How hard each still pulls, and its χ²."""
    traces: list[dict[str, Any]] = []
    for held_back, name, colour, symbol in ((False, "full weight", AFTER, "circle"),
                                            (True, "held back", VERMILION, "x")):  # fmt: skip
        mine = [still for still in stills if bool(still["outlier"]) == held_back]
        if not mine:
            continue
        values = {
            "": [still["pull"] for still in mine],
            "2": [still["figures"].get("chi2_per_pixel") for still in mine],
        }
        for place, y in values.items():
            traces.append(
                {"type": "scatter", "mode": "markers", "name": name, "legendgroup": name, "showlegend": place == "",
                 "x": [still["id"] for still in mine], "y": y, "text": [still["still"] for still in mine],
                 "marker": {"color": colour, "size": 7, "symbol": symbol}, "xaxis": f"x{place}", "yaxis": f"y{place}",
                 "hovertemplate": "still %{x}: %{text}<br>%{y:.3f}<extra></extra>"}
            )  # fmt: skip
    ids = np.array([float(still["id"]) for still in stills])
    traces.append(level(ids, 1.0, "noise alone", xaxis="x2", yaxis="y2", line={"color": GREEN, "dash": "dash"}))
    return Chart(
        "pulls",
        "How hard each still pulls, and how well it fits",
        "The pull (left) is the distance between the shared numbers and those that the still would choose alone, in "
        "its own esds: about 1 where noise is all; several on real stills. What stands out by much more than the "
        "others was held back (crosses). χ² per pixel (right) is that of the still with the shared numbers; 1 is "
        "noise alone.",
        tuple(traces),
        layout("", "", margin=HEADED, xaxis=axis("still", domain=[0, 0.45]),
               xaxis2=axis("still", domain=[0.55, 1], anchor="y2"), yaxis=axis("pull (esds)", rangemode="tozero"),
               yaxis2=axis("χ² per pixel", anchor="x2")),
        340,
    )  # fmt: skip


def stills_table(stills: list[dict[str, Any]], shared: set[str], rule: str) -> Table:
    """A row for every still that took part, with numbers of its own."""
    names = list(dict.fromkeys(e["name"] for still in stills for e in still["estimates"] if e["name"] not in shared))
    own = [name for name in names if name.startswith("cell_") or name in ("mosaicity", "domain_size", "scale")]
    rows = []
    for still in stills[:MOST_ROWS]:
        of = {e["name"]: e for e in still["estimates"]}
        figures = still["figures"]
        rows.append(
            (str(still["id"]), still["still"], f"{still['weight']:.2f}", number(still["pull"], 1),
             "yes" if still["converged"] else "no", number(figures.get("chi2_per_pixel"), 3),
             number(figures.get("median_cc"), 3), *(told(of.get(name)) for name in own))
        )  # fmt: skip
    headings = ("still", "name", "weight", "pull", "converged", "χ²/px", "CC", *own)
    return Table(
        headings,
        tuple(rows),
        f"Every still that took part; a click on a heading sorts. {rule}. joint.json has all numbers of every still.",
        numeric=(0, 2, 3, *range(5, len(headings))),
        sortable=True,
    )


def told(estimate: dict[str, Any] | None) -> str:
    """An estimate to the second digit of its esd."""
    if estimate is None:
        return "–"
    return rounded(estimate["after"], math.nan if estimate["esd"] is None else estimate["esd"])


def left_out_table(left_out: list[dict[str, Any]]) -> Table | Text:
    """The stills that did not take part, and why."""
    if not left_out:
        return Text(("Every still took part.",))
    rows = tuple((str(still["index"]), still["still"], still["reason"]) for still in left_out)
    return Table(
        ("place in the .expt", "name", "reason"), rows, "The stills that were left out, and why.", numeric=(0,)
    )


def steps_chart(steps: list[dict[str, Any]]) -> Chart | None:
    """The largest step of each iteration in esds; None where there was none."""
    if not steps:
        return None
    rounds = [step["round"] for step in steps]
    colours = [QUIET if accepted is False else AFTER for accepted in (step.get("accepted") for step in steps)]
    trace = {"type": "scatter", "mode": "lines+markers", "x": list(range(1, len(steps) + 1)), "name": "step",
             "y": [step["step_in_esds"] for step in steps], "text": [f"round {number}" for number in rounds],
             "marker": {"color": colours, "size": 7}, "line": {"color": AFTER},
             "hovertemplate": "%{text}, step %{x}: %{y:.3g} esds<extra></extra>"}  # fmt: skip
    return Chart(
        "steps",
        f"{len(steps)} steps in {len(set(rounds))} rounds",
        "The largest move of a shared number in its esds, step by step; a round builds the boxes anew and begins "
        "again. It has converged where the last steps lie far below one esd (dashed). Grey steps were refused.",
        (trace, level([1.0, float(len(steps))], 1.0, "one esd")),
        layout("", "", xaxis=axis("step"), yaxis=axis("largest move (esds)", type="log", exponentformat="power")),
        300,
    )


def provenance(content: dict[str, Any]) -> Table:
    """How to do it again."""
    rows = (
        ("command", content["command"]),
        ("parameters changed", " ".join(content["modified_parameters"].split()) or "none"),
        ("started", content["started"]),
        ("peak memory", f"{content['peak_memory_MB']:.0f} MB"),
        ("versions", ", ".join(f"{name} {version}" for name, version in content["versions"].items())),
    )
    return Table(("", ""), rows, "How this run was started and with what.")
