"""`make bench`: every figure of docs/performance.md, measured in one run on one thread of this machine."""

import argparse
import re
from pathlib import Path

import torch

from benchmarks import passes, still, sums
from benchmarks.timing import machine
from nanobrag_torch.profile import Quadrature

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARK = re.compile(r"(<!-- measured: .*?-->\n).*?(<!-- end -->)", re.DOTALL)


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def measured(stills):
    """The tables, one after the other as they are there."""
    about = machine()
    yield table(["machine", ""], about)
    copy, flops, exponential = (float(re.match(r"[\d.]+", about[i][1]).group()) for i in (3, 4, 5))
    value = {}
    for rule, kind in ((Quadrature(oversample=1), "pixels taken whole"), (Quadrature(), "four samples a pixel")):
        cells = []
        for name, plain, compiled, faster, difference in passes.passes(rule):
            least = max(passes.roofline(name, rule.samples, copy, flops, exponential))
            share = f"{least / compiled:.0%}"
            told = passes.PASSES[name][0]
            cells.append([told, f"{plain:.0f}", f"{compiled:.0f}", f"{faster:.0f}", share, f"{difference:.0e}"])
            if name in ("ray_pass", "profile_pass"):
                value[kind] = value.get(kind, 0.0) + compiled
        head = [f"pass, {kind}, one node a box, float64", "plain, ns/pixel", "compiled", "ratio"]
        yield table([*head, "of the roofline", "difference"], cells)
    step, steps, closed = sums.closed_against_sampled()
    yield table(
        ["one image of 40 x 40 pixels", "ns"],
        [
            [f"sampled sum, a pixel-step ({steps} steps a pixel)", f"{step:.0f}"],
            ["sampled sum, a pixel", f"{step * steps:.0f}"],
            ["readable closed form, a pixel", f"{closed:.0f}"],
            *([f"compiled closed form, {kind}", f"{spent:.0f}"] for kind, spent in value.items()),
        ],
    )
    pixels, found = still.normal_equations()
    first = sum(found[0][1:])
    yield table(
        [f"parameters, shipped still, {pixels} pixels", "value, ns/pixel", "normal equations", "sum", "over the first"],
        [[n, f"{v:.0f}", f"{m:.0f}", f"{v + m:.0f}", f"{(v + m) / first:.2f}"] for n, v, m in found],
    )
    runs = [still.command() for _ in range(3)]
    total, memory, seconds = sorted(runs, key=lambda run: run[0])[1]
    yield table(
        ["the command, shipped still", "CPU s"],
        [["all", f"{total:.1f}"], *([name, f"{spent:.2f}"] for name, spent in seconds.items())],
    )
    many_total, many_memory, _ = still.command(stills)
    yield table(
        ["stills in one run", "CPU s", "peak memory, MB"],
        [[1, f"{total:.1f}", f"{memory:.0f}"], [stills, f"{many_total:.1f}", f"{many_memory:.0f}"]],
    )


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--stills", type=int, default=100, help="stills of the run that shows memory (100)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = []
    for text in measured(options.stills):
        print(text, flush=True)
        tables.append(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(MARK.sub(lambda m: m.group(1) + "\n" + "\n".join(tables) + "\n" + m.group(2), page))


if __name__ == "__main__":
    main()
