"""dbex.estimate_noise: gain, read-out noise and pedestal of a still, from its own background.

What takes time to import is imported where it is used, so that help and complaints come at once.
"""

import json
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libtbx.phil

from dbex.cli.console import started
from dbex.cli.parameters import WholeConverter, fetched
from dbex.errors import BadInput

if TYPE_CHECKING:
    from dbex.measured_noise import MeasuredNoise

COMMAND = "dbex.estimate_noise"
USAGE = f"{COMMAND} still.expt [still.refl] mask=mask.pkl [key=value ...]"
HELP = f"""\
usage: {USAGE}

Measures gain (image units per photon), read-out noise and pedestal of a still from its own background, panel by panel
and over all panels, with esds, and says when the data do not determine them. Spots of the .refl, if it is given, are
left out with their tails; what else is too bright or too dark for noise is clipped.

parameters:
  mask=FILE         trusted pixels, as for dbex.refine
  index=0           which experiment of the list, counted from 0
  output.json=FILE  write everything that was found as JSON too

options:
  -h, --help        show this
  --version         show the version

exit status: 0, also when the data do not determine the noise (the last lines say so), 1 for bad input.
"""
PHIL = """
mask = None
  .type = path
index = 0
  .type = whole(minimum=0)
input {
  experiments = None
    .type = path
  reflections = None
    .type = path
}
output {
  json = None
    .type = path
}
"""

#: Times as many esds as chance may bring: what a remark is made for.
NOTABLE = 4.0
#: Panels' gains that differ by less (rms, relative) can be taken as one.
GAINS_ALIKE = 0.02
#: Correlations below this change the variance of sums by a few percent only.
CORRELATED = 0.02
#: A gain told by the skewness, so many times the line's, is another one.
ANOTHER_GAIN = 1.25


def run() -> int:
    """The console script: exit status 0 when measured or not measurable, 1 for bad input, 130 when interrupted."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError for what cannot be read or written."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    if "--version" in arguments:
        print(f"{COMMAND} {metadata.version('dbex')}")
        return 0
    registry = libtbx.phil.extended_converter_registry([WholeConverter])
    parameters, _ = fetched(libtbx.phil.parse(PHIL, converter_registry=registry), arguments)
    if parameters.input.experiments is None:
        raise BadInput(f"no .expt file is given: expected {USAGE}")
    if parameters.output.json and not Path(parameters.output.json).resolve().parent.is_dir():
        raise BadInput(f"output.json={parameters.output.json}: expected a file in a folder that exists")

    from dbex.measured_noise import measure_noise

    files = parameters.input
    found = measure_noise(files.experiments, files.reflections, parameters.mask, parameters.index)
    lines = [*table(found), "", *sigma_z_lines(found), *remarks(found), *line_through_panels(found)]
    lines.append(recommendation(found))
    print("\n".join(lines))
    if parameters.output.json:
        write_json(found, lines, arguments, Path(parameters.output.json))
    return 0


def table(found: "MeasuredNoise") -> Iterator[str]:
    """The records of all panels together and of each, a line each."""
    yield f"{found.trusted_pixels} trusted pixels, {found.spot_pixels} of them in spots and left out"
    yield (
        f"{'panel':>5} {'tiles':>6} {'means of tiles':>16} {'gain':>16} {'σ at value 0':>16} {'read-out noise':>16} "
        f"{'pedestal':>16} {'scatter':>7}"
    )
    records = found.measurement.panels if len(found.measurement.panels) > 1 else ()
    for record in (found.measurement.together, *records):
        low, high = record.mean_range
        columns = (
            number(record.gain) + (" " if record.own_gain or not known(record.gain) else "*"),
            root(record.variance_at_zero),
            number(record.sigma_readout),
            number(record.pedestal),
        )
        name = "all" if record.panel is None else str(record.panel)
        means = f"{low:.4g} … {high:.4g}" if math.isfinite(low) else "–"
        scatter = f"{record.misfit:7.2f}" if math.isfinite(record.misfit) else f"{'–':>7}"
        yield f"{name:>5} {record.tiles:6d} {means:>16} " + " ".join(f"{c:>16}" for c in columns) + f" {scatter}"
    if records:
        yield "* the gain of all panels: this one alone does not determine its own"


def known(estimate: Any) -> bool:
    """Whether there is a number."""
    return math.isfinite(estimate.value)


def number(estimate: Any) -> str:
    """An estimate with its esd, a dash where there is none."""
    return with_esd(estimate.value, estimate.esd) if known(estimate) else "–"


def with_esd(value: float, esd: float) -> str:
    """A value to the second digit of its esd."""
    digits = max(1 - math.floor(math.log10(esd)), 0) if esd > 0 else 4
    return f"{value:.{digits}f} ± {esd:.{digits}f}"


def root(square: Any) -> str:
    """σ of a variance that may be below zero: a bound where it is not told apart from zero."""
    if not known(square):
        return "–"
    if square.value <= -NOTABLE * square.esd:
        return "0"
    return f"{math.sqrt(square.value):.3g}" if square.value > square.esd else f"< {math.sqrt(2 * square.esd):.2g}"


def sigma_z_lines(found: "MeasuredNoise") -> Iterator[str]:
    """σ-Z of the background by intensity and by panel."""
    if found.check is None:
        return
    check = found.check
    yield f"σ-Z of {check.together.pixels} background pixels: {check.together.rms:.3f} ± {check.together.esd:.3f}"
    yield "  by mean value: " + ", ".join(f"{part.rms:.3f} at {part.intensity:.3g}" for part in check.by_intensity)
    if len(check.by_panel) > 1:
        ordered = sorted(check.by_panel.items(), key=lambda item: item[1].rms)
        lowest, highest = ordered[0], ordered[-1]
        yield f"  by panel: from {lowest[1].rms:.3f} (panel {lowest[0]}) to {highest[1].rms:.3f} (panel {highest[0]})"


def remarks(found: "MeasuredNoise") -> Iterator[str]:
    """What has to be known beside the numbers, a sentence each."""
    measurement, together = found.measurement, found.measurement.together
    if together.words:
        yield f"Gain and read-out noise are not determined: {'; '.join(together.words)}."
        return
    if not measurement.uniform:
        yield (
            "The detector is not uniform: tiles of one mean differ in variance more than chance explains, as where "
            "panels differ in pedestal or gain; the gain is that of one line through all panels, which weighs pixels."
        )
        if not measurement.resolved and together.skewness.value > ANOTHER_GAIN * together.gain.value:
            yield (
                f"The background's skewness says about {together.skewness.value:.3g} a photon and not "
                f"{together.gain.value:.3g}: bright pixels scatter more than the line says; subtract each panel's "
                "pedestal for weights that hold for them too."
            )
    if measurement.gain_scatter > GAINS_ALIKE:
        yield f"Gains of panels differ by {100 * measurement.gain_scatter:.1f} % rms beyond their esds."
    if measurement.resolved:
        yield photon_remark(found)
    else:
        yield from pedestal_remarks(found)
    if abs(together.correlation.value) > max(NOTABLE * together.correlation.esd, CORRELATED):
        yield (
            f"Neighbouring pixels correlate by {together.correlation.value:.3f} ± {together.correlation.esd:.3f}: "
            "light spreads over pixels, so that sums of pixels vary more than single ones say."
        )


def photon_remark(found: "MeasuredNoise") -> str:
    """What the peaks of single photons say, and how to use it."""
    panels = [record for record in found.measurement.panels if record.own_gain]
    ranges = [
        f"{name} {min(values):.3g} … {max(values):.3g}"
        for name, values in (
            ("gain", [record.gain.value for record in panels]),
            ("read-out noise", [record.sigma_readout.value for record in panels]),
            ("pedestal", [record.pedestal.value for record in panels]),
        )
    ]
    return (
        f"Single photons are told apart on {found.measurement.resolved} of {len(found.measurement.panels)} panels: "
        f"{', '.join(ranges)}. dbex.refine takes them panel by panel from noise=, the file of output.json=; gain= and "
        "sigma_readout= below are for values from which no pedestal is taken off."
    )


def pedestal_remarks(found: "MeasuredNoise") -> Iterator[str]:
    """What is known of the pedestal."""
    together = found.measurement.together
    if not known(together.pedestal):
        yield "The pedestal is not determined and taken as zero."
    elif abs(together.pedestal.value) > NOTABLE * together.pedestal.esd:
        yield (
            f"The background's skewness says that the image carries a pedestal of {number(together.pedestal)}, if the "
            f"read-out noise is symmetric; with it subtracted: gain={together.gain.value:.4g} "
            f"sigma_readout={max(together.sigma_readout.value, together.sigma_readout.esd):.3g}"
        )
    else:
        yield f"A pedestal of zero agrees with the background's skewness ({number(together.pedestal)})."


def line_through_panels(found: "MeasuredNoise") -> Iterator[str]:
    """The straight line that many quote, to compare with what is recommended."""
    line = found.measurement.panel_line
    if line is None:
        return
    slope, at_zero = with_esd(line.gain, line.gain_esd), with_esd(line.variance_at_zero, line.variance_at_zero_esd)
    yield (
        f"To compare: one straight line through the (mean, variance) of {line.panels} panels has the slope {slope} and "
        f"the variance {at_zero} at value 0."
    )


def recommendation(found: "MeasuredNoise") -> str:
    """The last line: what to give to dbex.refine."""
    if found.measurement.recommended is None:
        if found.measurement.determined:
            return (
                "No recommendation: with this gain nothing is left of the variance at value zero; subtract the pedestal"
            )
        return "No recommendation: give dbex.refine the gain= and sigma_readout= of the detector's makers"
    gain, sigma = found.measurement.recommended
    line = f"gain={gain:.4g} sigma_readout={sigma:.3g}"
    if found.counting:
        return f"{line} (the detector counts photons: dbex.refine needs neither)"
    return line


def write_json(found: "MeasuredNoise", lines: Sequence[str], arguments: Sequence[str], path: Path) -> None:
    """Write everything that was found as strict JSON, the file whole or not at all; raises OSError."""
    from dbex.io.atomic import write_whole
    from dbex.io.results import plain

    measurement = found.measurement
    recommended = measurement.recommended
    content = {
        "command": shlex.join([COMMAND, *arguments]),
        "version": metadata.version("dbex"),
        "inputs": found.files,
        "determined": measurement.determined,
        "uniform": measurement.uniform,
        "recommended": recommended and {"gain": recommended[0], "sigma_readout": recommended[1]},
        "counts_photons": found.counting,
        "trusted_pixels": found.trusted_pixels,
        "spot_pixels": found.spot_pixels,
        "line_through_panels": measurement.panel_line and asdict(measurement.panel_line),
        "together": asdict(measurement.together),
        "panels": [asdict(record) for record in measurement.panels],
        "gain_scatter": measurement.gain_scatter,
        "resolved": measurement.resolved,
        "sigma_z": found.check and asdict(found.check),
        "told": list(lines),
    }
    text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, text + "\n")


if __name__ == "__main__":
    sys.exit(run())
