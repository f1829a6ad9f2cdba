"""The page of many stills: how many ended how, what is wrong with the others, and how their numbers scatter."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dbex.report.overview_charts import cell_chart, fit_chart, orientation_chart, turn_chart
from dbex.report.page import Chart, Link, Page, Section, Table, Text
from dbex.report.summary import SIGNS, rounded
from dbex.scatter import OUTLIER_WIDTHS, distance_in_widths, outlying, spread
from dbex.still import Floats

#: What can be used, and what each class of outcome means.
USABLE = "refined"
CLASSES = {
    "refined": "model and pixels agree; the verdict is good, fair or incomplete",
    "poor fit": "there is a result, but the model does not explain the pixels: do not use it",
    "not converged": "there is a result, but the solver had not ended: do not use it",
    "bad input": "the still cannot be read or makes no sense; the reason says what to do",
    "lost": "its workers died, or the program failed; the next run tries it again",
    "waiting": "not refined yet",
    "running": "being refined",
}
#: The rows of the table of all stills: those beyond are in the file that is named.
MOST_ROWS = 3000
#: Stills that are told one by one, of those that failed and of the outliers.
MOST_TOLD = 300
#: Figures of the table by their names, with the digits that they are shown with.
SHOWN = (("chi2_per_pixel", "χ²/px", 3), ("chi2_core", "χ² core", 2), ("median_cc", "CC", 3), ("boxes_cc", "bright", 0),
         ("sigma_z", "σ-Z", 3))  # fmt: skip


@dataclass(frozen=True)
class StillRow:
    """One of many stills: its number, what became of it (a key of CLASSES), the verdict and the reason in words,
    figures and estimates (value, esd, unit) by name, U (3, 3) where there is one, and the address of its page."""

    number: int
    name: str
    outcome: str
    verdict: str = ""
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, tuple[float, float, str]] = field(default_factory=dict)
    U: Floats | None = None
    address: str | None = None

    @property
    def usable(self) -> bool:
        """Whether its numbers count."""
        return self.outcome == USABLE


def overview_page(title: str, rows: Sequence[StillRow], table_file: str, pages: str, foot: str = "") -> Page:
    """The page; `table_file` has all rows, and `pages` says in a sentence how a still gets a page of its own."""
    good = [row for row in rows if row.usable]
    counts = Counter(row.outcome for row in rows)
    failed = len(rows) - len(good)
    state = "good" if not failed else "failed" if not good else "incomplete"
    others = ", ".join(f"{count} {name}" for name, count in counts.most_common() if name != USABLE)
    # where nothing can be used, the doubtful ones may show why
    counted = good or [row for row in rows if row.estimates]
    warning = () if good else (Text(("No still can be used: what follows is of those whose fit is doubtful.",)),)
    lead = f"{len(good)} of {len(rows)} stills were refined and can be used" + (f"; {others}." if others else ".")
    return Page(
        title=title,
        state=state,
        badge=f"{len(good)} of {len(rows)}",
        lead=(lead, pages),
        sections=(
            Section("What became of them", (classes_table(counts, len(rows)), *failures(rows))),
            Section("Numbers of all stills", (*warning, spreads_table(counted), outliers_table(counted))),
            Section("Cell and orientation", (*warning, *distributions(counted))),
            Section("Quality of the fits", tuple(chart for chart in (fit_chart(rows_for_fit(rows)),) if chart)),
            Section("All stills", (stills_table(rows, table_file),)),
        ),
        foot=foot,
    )


def classes_table(counts: Counter[str], total: int) -> Table:
    """How many ended how."""
    rows = [(name, str(counts[name]), f"{100 * counts[name] / max(total, 1):.1f} %", meaning)
            for name, meaning in CLASSES.items() if counts[name]]  # fmt: skip
    return Table(("outcome", "stills", "", "what it means"), tuple(rows), "All stills by what became of them.", (1, 2))


def failures(rows: Sequence[StillRow]) -> tuple[Table | Text, ...]:
    """Those that cannot be used, by class, each with its reason."""
    failed = sorted((row for row in rows if not row.usable), key=lambda row: (list(CLASSES).index(row.outcome),
                                                                              row.number))  # fmt: skip
    if not failed:
        return (Text(("None failed.",)),)
    more = f" The first {MOST_TOLD} of {len(failed)}." if len(failed) > MOST_TOLD else ""
    return (
        Table(
            ("still", "name", "outcome", "reason"),
            tuple((str(row.number), named(row), row.outcome, row.reason) for row in failed[:MOST_TOLD]),
            f"The stills that cannot be used, by class, and why.{more}",
            numeric=(0,),
            sortable=True,
        ),
    )


def named(row: StillRow) -> str | Link:
    """A still's name, as a link to its page where it has one."""
    name = row.name or "–"
    return Link(name, row.address) if row.address else name


def estimate_names(rows: Sequence[StillRow]) -> list[str]:
    """The parameters that any still has, in the order in which they are met."""
    return list(dict.fromkeys(name for row in rows for name in row.estimates))


def column(rows: Sequence[StillRow], name: str) -> tuple[Floats, Floats]:
    """Values and esds of a parameter, NaN where a still has none."""
    nothing = (math.nan, math.nan, "")
    found = [row.estimates.get(name, nothing)[:2] for row in rows]
    values = np.array(found, dtype=float).reshape(-1, 2)
    return values[:, 0], values[:, 1]


def unit(rows: Sequence[StillRow], name: str) -> str:
    """The unit of a parameter as a person writes it."""
    found = next((row.estimates[name][2] for row in rows if name in row.estimates), "")
    return SIGNS.get(found, found)


def spreads_table(rows: Sequence[StillRow]) -> Table:
    """The median and the width of every parameter over the stills, beside the median esd."""
    cells = []
    for name in estimate_names(rows):
        found = spread(*column(rows, name))
        ratio = found.width / found.esd if found.esd > 0 else math.nan
        cells.append((name, str(found.stills), rounded(found.median, found.width), f"{found.width:.2g}",
                      f"{found.esd:.2g}", f"{ratio:.1f}" if math.isfinite(ratio) else "–",
                      unit(rows, name)))  # fmt: skip
    return Table(
        ("parameter", "stills", "median", "scatter", "median esd", "scatter / esd", "unit"),
        tuple(cells),
        "Every parameter over these stills. The scatter is robust: 1.48 times the median distance from "
        "the median. Scatter over esd is 1 where stills differ by noise alone; much more where crystals differ (cell, "
        "size, mosaicity, scale), where each was turned by an amount of its own (misset), or where something that all "
        "share, such as the detector, is wrong and each still makes up for it: dbex.refine_joint finds that out.",
        numeric=(1, 2, 3, 4, 5),
    )


def outliers_table(rows: Sequence[StillRow]) -> Table | Text:
    """Stills with a parameter or a χ² far from those of the others."""
    found: list[tuple[float, tuple[str | Link, ...]]] = []
    columns_of = {name: column(rows, name) for name in estimate_names(rows) if not name.startswith("misset")}
    turned = turns(rows)
    columns_of["turn (°)"] = (turned, np.full(len(turned), math.nan))
    chi2 = np.array([row.figures.get("chi2_per_pixel", math.nan) for row in rows])
    columns_of["χ² per pixel"] = (chi2, np.full(len(chi2), math.nan))
    for name, (values, esds) in columns_of.items():
        widths, all_of_them = distance_in_widths(values, esds), spread(values, esds)
        for i in np.flatnonzero(outlying(values, esds)):
            cells = (str(rows[i].number), named(rows[i]), name, rounded(float(values[i]), float(esds[i])),
                     rounded(all_of_them.median, all_of_them.width), f"{widths[i]:.1f}")  # fmt: skip
            found.append((float(widths[i]), cells))
    if not found:
        return Text((f"No still is an outlier: no number is further than {OUTLIER_WIDTHS:g} widths from the median.",))
    found.sort(key=lambda each: -each[0])
    return Table(
        ("still", "name", "number", "value", "median of all", "off by (widths)"),
        tuple(cells for _, cells in found[:MOST_TOLD]),
        f"Outliers: further from the median than {OUTLIER_WIDTHS:g} widths, the scatter of all and the still's own esd "
        "together. An odd cell is often a wrong indexing or another crystal form; an odd scale or size, a small "
        "crystal or one that was hit at its edge.",
        numeric=(0, 3, 4, 5),
        sortable=True,
    )


def distributions(rows: Sequence[StillRow]) -> tuple[Chart | Text, ...]:
    """Histograms of the cell, where crystals point, and by how much the refinement turned them."""
    names = [name for name in estimate_names(rows) if name.startswith("cell_")]
    cells = {name: column(rows, name) for name in names}
    charts: list[Chart | Text] = []
    if names:
        charts.append(cell_chart(cells, {name: unit(rows, name) for name in names}))
    oriented = [row.U for row in rows if row.U is not None]
    if oriented:
        charts.append(orientation_chart(np.array(oriented)))
    turned = turns(rows)
    if np.isfinite(turned).any():
        charts.append(turn_chart(turned))
    return tuple(charts) or (Text(("No still has a cell or an orientation that moved.",)),)


def turns(rows: Sequence[StillRow]) -> Floats:
    """By how many degrees each crystal was turned; NaN where its orientation was held."""
    return np.asarray(np.linalg.norm([column(rows, f"misset_{axis}")[0] for axis in "xyz"], axis=0))


def rows_for_fit(rows: Sequence[StillRow]) -> list[tuple[int, str, str, float, float]]:
    """Number, name, outcome, χ² and CC of the stills that have a fit."""
    return [
        (row.number, row.name, row.outcome, row.figures["chi2_per_pixel"], row.figures.get("median_cc", math.nan))
        for row in rows
        if "chi2_per_pixel" in row.figures
    ]


def stills_table(rows: Sequence[StillRow], table_file: str) -> Table:
    """A row for every still."""
    names = [name for name in estimate_names(rows) if name.startswith("cell_")]
    names += [name for name in ("mosaicity", "domain_size", "scale") if name in estimate_names(rows)]
    headings = ("still", "name", "outcome", "verdict", *(title for _, title, _ in SHOWN), *names)
    cells = []
    for row in rows[:MOST_ROWS]:
        figures = [f"{row.figures[key]:.{digits}f}" if key in row.figures else "–" for key, _, digits in SHOWN]
        values = [rounded(*row.estimates[name][:2]) if name in row.estimates else "–" for name in names]
        cells.append((str(row.number), named(row), row.outcome, row.verdict, *figures, *values))
    more = f" The first {MOST_ROWS} of {len(rows)}." if len(rows) > MOST_ROWS else ""
    return Table(
        headings,
        tuple(cells),
        f"A click on a heading sorts, another one the other way round.{more} {table_file} has every number of every "
        "still.",
        numeric=(0, *range(4, len(headings))),
        sortable=True,
    )
