"""dbex.trace: one pixel from the source to its weighted residual, as a table and as JSON.

What takes time to import is imported where it is used, so that help and complaints come at once.
"""

import json
import math
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libtbx.phil

from dbex.cli.console import started
from dbex.cli.parameters import NumericConverter, WholeConverter, fetched
from dbex.errors import BadInput

if TYPE_CHECKING:
    from dbex.tracing.chain import Quantity, Trace
    from dbex.tracing.still import TraceFiles

COMMAND = "dbex.trace"
USAGE = f"{COMMAND} still.expt structure.mtz panel,slow,fast [still.refl] [mask=mask.pkl] [key=value ...]"
HELP = f"""\
usage: {USAGE}

Traces a pixel, counted from 0, in the order in which light travels: source, crystal, pixel, scattering vector, indices,
nodes, profile, solid angle, polarisation, sensor, scale, background, data, variance, weighted residual. Every number is
what the model's own functions return; beside it stands the derivative of the pixel's Bragg photons by it. A pixel that
is not trusted is traced too, and told.

parameters:
  mask=FILE              trusted pixels, as for dbex.refine
  mtz_columns, gain, sigma_readout, sigma_map, noise   as for dbex.refine
  index=0                which experiment of the list, counted from 0
  scale=NUMBER           multiplies the model; None fits it to the pixels around
  background=NUMBER      photons; None fits a plane to the pixels around, those of spots of the .refl, or of the model,
                         left out
  output.json=trace.json everything as JSON: each sub-pixel, each node, each derivative

options:
  -h, --help        show this
  --version         show the version

exit status: 0, or 1 for bad input.
"""
PHIL = """
pixel = None
  .type = str
mask = None
  .type = path
mtz_columns = None
  .type = str
gain = None
  .type = numeric(above=0)
sigma_readout = None
  .type = numeric(above=0)
sigma_map = None
  .type = path
noise = None
  .type = path
index = 0
  .type = whole(minimum=0)
scale = None
  .type = numeric(minimum=0)
background = None
  .type = numeric(minimum=0)
input {
  experiments = None
    .type = path
  reflections = None
    .type = path
  structure_factors = None
    .type = path
}
output {
  json = trace.json
    .type = path
}
"""
PIXEL = re.compile(r"[+-]?\d+(,[+-]?\d+)*")
#: Nodes that send less than this part of a pixel's photons are counted in the table, not listed; JSON has them all.
LISTED_PART = 1e-3


def run() -> int:
    """The console script."""
    return started(COMMAND, main)


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say; raises BadInput and OSError for what cannot be read or written."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    if "--version" in arguments:
        print(f"{COMMAND} {metadata.version('dbex')}")
        return 0
    registry = libtbx.phil.extended_converter_registry([NumericConverter, WholeConverter])
    named = [f"pixel={word}" if PIXEL.fullmatch(word) else word for word in arguments]
    parameters, _ = fetched(libtbx.phil.parse(PHIL, converter_registry=registry), named)
    for extension, name in ((".expt", "experiments"), (".mtz", "structure_factors")):
        if getattr(parameters.input, name) is None:
            raise BadInput(f"no {extension} file is given: expected {USAGE}")
    if parameters.pixel is None or not PIXEL.fullmatch(parameters.pixel):
        found = "no pixel is given" if parameters.pixel is None else f"the pixel is {parameters.pixel!r}"
        raise BadInput(f"{found}: expected panel,slow,fast, whole numbers counted from 0")
    output = Path(parameters.output.json or "trace.json")
    if not output.resolve().parent.is_dir() or output.is_dir():
        raise BadInput(f"output.json={output}: expected a file in a folder that exists")
    return traced(parameters, output, arguments)


def traced(parameters: Any, output: Path, arguments: Sequence[str]) -> int:
    """Trace, print and write."""
    from torch import set_num_threads

    from dbex.tracing.still import TraceFiles, trace_of_still

    set_num_threads(1)
    files = TraceFiles(
        **{name: getattr(parameters.input, name) for name in ("experiments", "structure_factors", "reflections")},
        **{
            name: getattr(parameters, name)
            for name in ("mask", "mtz_columns", "gain", "sigma_readout", "sigma_map", "noise", "index")
        },
    )
    pixel = [int(number) for number in parameters.pixel.split(",")]
    trace = trace_of_still(files, pixel, parameters.scale, parameters.background)
    write_json(trace, files, output, arguments)
    print("\n".join(table(trace)))
    print(f"everything, each derivative too, is in {output}")
    return 0


def table(trace: "Trace") -> Iterator[str]:
    """The chain in lines, a section after the other; many-valued quantities a line a value."""
    counts = trace.counts
    yield "pixel: panel {}, slow {}, fast {}".format(*trace.pixel)
    if not counts.trusted:
        yield "this pixel is not trusted: no fit looks at it"
    yield f"background: {counts.background_from}; scale: {counts.scale_from}"
    listed = nodes_listed(trace)
    section = ""
    for quantity in trace.chain:
        if quantity.section != section:
            section = quantity.section
            yield f"\n{section:<46} {'unit':<8} {'value':<44} derivative of I"
        yield from lines(quantity, listed)
    hidden = len(trace.value("Bragg photons of each node")) - len(listed)
    if hidden:
        yield f"\n{hidden} more nodes send less than {LISTED_PART:g} of the photons each"
    yield f"\n{'numbers of the models':<46} {'unit':<8} {'value':<44} derivative of I"
    for number in trace.parameters:
        yield row(f"{number.section} {number.name}", number.unit, number.value, number.derivative)


def nodes_listed(trace: "Trace") -> list[int]:
    """The nodes that the table lists, the brightest first; at least one."""
    photons = trace.value("Bragg photons of each node")
    order = sorted(range(len(photons)), key=lambda node: -photons[node])
    return [node for node in order if photons[node] >= LISTED_PART * sum(photons)] or order[:1]


def lines(quantity: "Quantity", listed: Sequence[int]) -> Iterator[str]:
    """One quantity: a line, or one for each sub-pixel and each node of those listed."""
    name = f"{quantity.name}  {quantity.symbol}"
    slopes = quantity.derivative
    if quantity.section == "sub-pixels":
        for i, value in enumerate(quantity.value):
            yield row(f"{name} [{i}]" if len(quantity.value) > 1 else name, quantity.unit, value, slopes and slopes[i])
    elif quantity.section == "sub-pixels × nodes":
        for node in listed:
            for i, value in enumerate(quantity.value):
                slope = slopes and slopes[i][node]
                yield row(f"{name} [{i}] node {node}", quantity.unit, value[node], slope)
    elif quantity.symbol == "S":
        for layer, covariances in enumerate(quantity.value):
            for node in listed:
                for k, values in enumerate(covariances[node]):
                    slope = slopes and slopes[layer][node][k]
                    yield row(f"{name}, row {k} node {node}", quantity.unit, values, slope)
    elif quantity.section == "nodes" or quantity.symbol == "I_hkl":
        for node in listed:
            yield row(f"{name} node {node}", quantity.unit, quantity.value[node], slopes and slopes[node])
    elif quantity.symbol == "A":
        for k, values in enumerate(quantity.value):
            yield row(f"{name}, row {k}", quantity.unit, values, None)
    else:
        yield row(name, quantity.unit, quantity.value, slopes)


def row(name: str, unit: str, value: Any, slope: Any) -> str:
    """One line."""
    return f"{name:<46} {unit:<8} {shown(value):<44} {'' if slope is None else shown(slope)}".rstrip()


def shown(value: Any) -> str:
    """A number to eight digits, or several."""
    if isinstance(value, list):
        return " ".join(shown(item) for item in value)
    return f"{value:.8g}" if isinstance(value, float) and not math.isnan(value) else str(value)


def write_json(trace: "Trace", files: "TraceFiles", output: Path, arguments: Sequence[str]) -> None:
    """Write the trace as strict JSON, the file whole or not at all; raises OSError."""
    from dbex.io.atomic import write_whole
    from dbex.io.record import identity, versions
    from dbex.io.results import plain

    content = {
        "command": shlex.join([COMMAND, *arguments]),
        "versions": versions(),
        "inputs": {name: identity(path) for name, path in files.named().items()},
        **asdict(trace),
    }
    text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(output, text + "\n")


if __name__ == "__main__":
    sys.exit(run())
