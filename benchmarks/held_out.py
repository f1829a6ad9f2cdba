"""Intensities of reflections that the fit never saw, against structure factors and beside DIALS' sums.

python -m benchmarks.held_out still.expt still.refl structure.mtz integrated.refl [mask=... key=value as for
dbex.refine] [--splits 5] [--seed 1] [--json FILE]

Each split draws half of the Laue classes. Everything is fitted to their boxes and spots alone, terms included; the
others keep their place as neighbours. Then every reflection is measured with that model, a plane and a free intensity
each, and the other half's are compared with F².
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from dbex.cli.parameters import interpret, settings_of
from dbex.data_load import read_stills
from dbex.io.reflections import observed, read_table
from dbex.io.structure_factors import laue_classes
from dbex.refinement.predictions import keys, predict
from dbex.refinement.problem import StillProblem
from dbex.refinement.refine import fit_still
from dbex.refinement.rounds import (
    K_TAILS,
    Round,
    objective_for,
    resolution_limit,
    solved_round,
    with_boxes,
)
from dbex.refinement.shoeboxes import shoeboxes
from dbex.refinement.tables import box_table
from dbex.still import Floats, Ints, Observed
from nanobrag_torch.lattice import reciprocal_basis

#: The subsets that are compared: largest |k|, least intensity over its esd. A Gaussian's tail beyond 2.5 widths is a
#: guess, and the boxes there are for the fit.
SUBSETS = {"|k|<2.5": (2.5, -np.inf), "|k|<2, I/sig>3": (2.0, 3.0), "|k|<1": (1.0, -np.inf), "|k|<3": (3.0, -np.inf)}
#: Logarithms are compared for intensities above so many esds.
STRONG = 5.0


@dataclass(frozen=True)
class Compared:
    """Reflections that both programs measured (n,): the number of the Laue class, F², |k|, our intensity and its esd,
    DIALS' sums divided by the factor Ω P C and the B factor of our model, and the sums as they are."""

    laue: Ints
    square_F: Floats
    k: Floats
    ours: Floats
    esd: Floats
    corrected_sums: Floats
    sums: Floats


def read(arguments):
    """The first still that the arguments of dbex.refine name, and its settings."""
    parameters, _ = interpret(arguments)
    torch.set_num_threads(parameters.threads)
    source = parameters.input
    stills = read_stills(
        source.experiments,
        source.reflections,
        source.structure_factors,
        parameters.mask,
        mtz_columns=parameters.mtz_columns,
        gain=parameters.gain,
        sigma_readout=parameters.sigma_readout,
        sigma_map=parameters.sigma_map,
        trusted_max=parameters.trusted_max,
    )
    return next(iter(stills)), settings_of(parameters)


def drawn(still, generator):
    """Half of the Laue classes at random: whether each of the amplitudes (m,) is in it."""
    classes = laue_classes(still.amplitudes)
    order = generator.permutation(classes.max() + 1)
    return order[classes] < len(order) // 2


def without(still, held_out):
    """The still as a fit sees it that must not know some reflections: they have neither boxes nor spots."""
    hidden = np.isin(keys(still.observed.hkl), keys(still.amplitudes.hkl[held_out]))
    return replace(still, held_out=held_out, observed=rows_of(still.observed, ~hidden))


def rows_of(spots, chosen):
    """Some of the spots."""
    return Observed(**{name: values[chosen] for name, values in vars(spots).items()})


def measured(still, settings, fit):
    """All reflections, each with a plane and a free intensity, under the model of a fit that did not see all of them;
    and the squares of their scattering vectors' lengths, 1/Å²."""
    map, x = fit.objective.map, torch.as_tensor(fit.solution.x)
    shapes = [panel.shape for panel in still.detector]
    everything = predict(map.models(x), still.amplitudes, resolution_limit(still, settings), K_TAILS, shapes)
    chosen = everything.select(with_boxes(still, everything))
    objective = objective_for(still, map, shoeboxes(still, chosen, everything), fit.model_error, fit.solution.x)
    state = StillProblem(objective).start(fit.solution.x)
    solved = solved_round(Round(objective, replace(fit.solution, state=state), chosen, fit.model_error))
    table = box_table(solved, still, torch.ones(len(objective.boxes), dtype=torch.float64))
    crystal = map.models(x).crystal
    q = torch.as_tensor(table.hkl).double() @ reciprocal_basis(crystal, x).T
    return table, float(crystal.b_factor_A2), (q**2).sum(1).numpy()


def sums_of(path, still):
    """What DIALS integrated of this still by summation."""
    table = read_table(path)
    rows = np.flatnonzero(table.get_flags(table.flags.integrated_sum).as_numpy_array())
    return observed(table, rows, len(still.detector), path)


def compared(still, table, b_factor_A2, q_squared, sums):
    """The held out reflections of a table that DIALS integrated too."""
    theirs = places(sums, table.hkl, table.panel)
    both = (theirs >= 0) & np.isfinite(table.intensity) & np.isfinite(table.variance)
    both &= np.isin(keys(table.hkl), keys(still.amplitudes.hkl[still.held_out]))
    raw = sums.intensity[theirs[both]]
    known, sought = keys(still.amplitudes.hkl), keys(table.hkl[both])
    order = np.argsort(known)
    return Compared(
        laue_classes(still.amplitudes)[order[np.searchsorted(known, sought, sorter=order)]],
        table.prior_intensity[both],
        np.abs(table.excitation[both]),
        table.intensity[both],
        np.sqrt(table.variance[both]),
        raw / (table.lp[both] * np.exp(-b_factor_A2 * q_squared[both] / 2)),
        raw,
    )


def places(spots, hkl, panel):
    """Where reflections stand among spots, -1 where they do not."""
    known = {name: i for i, name in enumerate(zip(keys(spots.hkl).tolist(), spots.panel.tolist(), strict=True))}
    return np.array([known.get(name, -1) for name in zip(keys(hkl).tolist(), panel.tolist(), strict=True)])


def figures(found):
    """The figures of one split by name, each a list: ours, DIALS' sums corrected, the sums as they are; and counts."""
    columns = (found.ours, found.corrected_sums, found.sums)
    result, counts = {}, {}
    for name, (most_k, least) in SUBSETS.items():
        chosen = (found.k < most_k) & (found.ours / found.esd > least)
        counts[name] = int(chosen.sum())
        F2 = found.square_F[chosen]
        result[f"Pearson, {name}"] = [float(np.corrcoef(values[chosen], F2)[0, 1]) for values in columns]
        result[f"Spearman, {name}"] = [float(spearmanr(values[chosen], F2).statistic) for values in columns]
    strong = (found.ours / found.esd > STRONG) & (found.square_F > 0) & (found.k < SUBSETS["|k|<2.5"][0])
    for values in columns[1:]:
        strong &= values > 0  # the same reflections in each column
    name = f"rms ln(I/F2), I/sig>{STRONG:g}"
    counts[name] = int(strong.sum())
    result[name] = [float(np.std(np.log(values[strong] / found.square_F[strong]))) for values in columns]
    first, second = pairs(found.laue, strong & (found.k < 2.0))
    name = f"rms ln(I/I') of equivalents / sqrt 2, |k|<2, I/sig>{STRONG:g}"
    counts[name] = len(first)
    result[name] = [float(np.sqrt(np.mean(np.log(v[first] / v[second]) ** 2) / 2)) for v in columns if len(first)]
    result[name] = result[name] or [float("nan")] * len(columns)
    return result, counts


def pairs(laue, chosen):
    """Places (n,), (n,) of all pairs of chosen reflections that are equivalent."""
    rows = np.flatnonzero(chosen)
    same = np.triu(laue[rows][:, None] == laue[rows], 1)
    return tuple(rows[part] for part in np.nonzero(same))


def one_split(still, settings, sums, generator):
    """The figures of one split, what the fit to the other half was, and its terms."""
    hidden = without(still, drawn(still, generator))
    fitted = fit_still(hidden, settings, lambda iteration: None)
    fit = fitted.final
    seen = replace(fitted.still, held_out=None, observed=still.observed)
    found = compared(hidden, *measured(seen, settings, fit), sums)
    values, counts = figures(found)
    return {
        "figures": values,
        "counts": counts,
        "chi2_per_pixel": fit.state.local.chi2 / fit.pixels,
        "boxes": len(fit.objective.boxes),
        "converged": fit.solution.converged,
        "terms": [trial.name for trial in fitted.trials if trial.kept],
        "seconds": sum(fitted.seconds.values()),
    }


def table_of(splits):
    """Lines of a table in Markdown: each figure as DIALS' corrected sums, and ours, a column a split and the mean."""
    numbers = range(1, len(splits) + 1)
    yield "| figure, DIALS' sums -> ours | " + " | ".join([*(f"split {i}" for i in numbers), "mean"]) + " |"
    yield "| --- " * (len(splits) + 2) + "|"
    for name in splits[0]["figures"]:
        values = np.array([split["figures"][name] for split in splits])
        cells = [f"{dials:.3f} -> {ours:.3f}" for ours, dials, _ in [*values, values.mean(0)]]
        yield f"| {escaped(name)} | " + " | ".join(cells) + " |"
    for name in splits[0]["counts"]:
        yield f"| reflections, {escaped(name)} | " + " | ".join(str(split["counts"][name]) for split in splits) + " | |"
    fits = [f"{s['chi2_per_pixel']:.2f}, {s['boxes']} boxes, {' '.join(s['terms']) or 'no terms'}" for s in splits]
    yield "| chi2/px of the fit | " + " | ".join(fits) + " | |"


def escaped(name):
    """A name as a cell of a table in Markdown."""
    return name.replace("|", "\\|")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.held_out", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("files", nargs=4, metavar="FILE", help="still.expt still.refl structure.mtz integrated.refl")
    parser.add_argument("--splits", type=int, default=5, help="how many halves are drawn (5)")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (1)")
    parser.add_argument("--json", help="a file for all figures")
    options, parameters = parser.parse_known_args()
    still, settings = read([*options.files[:3], *parameters])
    sums, generator = sums_of(options.files[3], still), np.random.default_rng(options.seed)
    splits = []
    for number in range(options.splits):
        splits.append(one_split(still, settings, sums, generator))
        print(f"split {number + 1}: {splits[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    print("\n".join(table_of(splits)))
    if options.json:
        Path(options.json).write_text(json.dumps({"still": still.name, "splits": splits}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
