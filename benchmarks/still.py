"""The shipped still: normal equations for any number of parameters, and the command as a user types it."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import cpu_seconds
from dbex.cli.parameters import interpret, settings_of
from dbex.data_load import read_stills
from dbex.refinement.parameters import Parameter
from dbex.refinement.predictions import predict
from dbex.refinement.prior import ModelError
from dbex.refinement.problem import StillProblem
from dbex.refinement.rounds import objective_for, start, where_lit
from dbex.refinement.shoeboxes import shoeboxes

ROOT = Path(__file__).parents[1]
#: Runs a command and prints its CPU seconds and peak memory, MB. A process of its own: a command's peak begins with
#: that of the process that starts it, which here would be the benchmarks'.
MEASURED = """
import json, resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
FILES = ["refGeom.expt", "refGeom.refl", "scaled.mtz", "mask=747_mask.pkl"]


def shipped_problem():
    """The shipped still as its last round sees it, from its start, and x = 0."""
    parameters, _ = interpret([str(ROOT / name) for name in FILES[:3]] + [f"mask={ROOT / '747_mask.pkl'}"])
    source = parameters.input
    still = next(iter(read_stills(source.experiments, source.reflections, source.structure_factors, parameters.mask)))
    map = start(still, settings_of(parameters))
    x = np.zeros(len(map))
    shapes = [panel.shape for panel in still.detector]
    everything = predict(map.models(torch.as_tensor(x)), still.amplitudes, 1.2, 4.0, shapes)
    boxes = shoeboxes(still, everything.select(np.abs(everything.k) < 3.0), everything)
    return where_lit(still, objective_for(still, map, boxes, ModelError(1.0), x), ModelError(1.0), x)


def with_parameters(objective, count):
    """The same with so many parameters: the crystal's and others that move nothing, which cost what any does."""
    more = [Parameter(f"idle_{i}", "scale", "", 1.0, 1.0) for i in range(count - len(objective.map))]
    return replace(objective, map=replace(objective.map, parameters=(*objective.map.parameters, *more))).prepared()


def normal_equations(counts=(15, 30, 60)):
    """Rows: parameters; ns a pixel of the value (profiles and linear optimum) and of the normal equations."""
    base = shipped_problem()
    pixels = int(base.boxes.real.sum())
    rows = []
    for count in counts:
        objective = with_parameters(base, count)
        x = torch.zeros(count, dtype=torch.float64)
        state = StillProblem(objective).start(x.numpy())
        value = cpu_seconds(partial(objective.solve_linear, x, state.variance))
        normal = cpu_seconds(partial(objective.normal_equations, x, state.variance, state.local))
        rows.append((count, value / pixels * 1e9, normal / pixels * 1e9))
    return pixels, rows


def command(stills=1):
    """CPU seconds of the command and its parts, and its peak memory in MB, for the shipped still so many times."""
    from dxtbx.model.experiment_list import ExperimentListFactory

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        names = list(FILES)
        if stills > 1:
            names[:2] = _repeated(stills, Path(folder), ExperimentListFactory)
        words = [sys.executable, "-m", "dbex.cli.refine", *names, "refine.detector=distance,shift"]
        words = [sys.executable, "-c", MEASURED, *words, f"output.directory={folder}/out"]
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        spent, memory = json.loads(done.stdout)
        record = json.loads((Path(folder) / "out" / "dbex.json").read_text(encoding="utf-8"))
    return spent, memory, record.get("seconds", {})


def _repeated(stills, folder, factory):
    """The shipped experiment and its reflections so many times, in files of their own, each with an image of its own:
    those that share one would be refined together, as lattices."""
    from dials.array_family import flex

    content = factory.from_json_file(str(ROOT / FILES[0]), check_format=False).to_dict()
    image = (ROOT / content["imageset"][0]["images"][0]).resolve()
    images = [folder / f"{i:04d}_{image.name}" for i in range(stills)]
    for link in images:
        link.symlink_to(image)
    content["imageset"] = [content["imageset"][0] | {"images": [str(link)]} for link in images]
    content["experiment"] = [content["experiment"][0] | {"identifier": str(i), "imageset": i} for i in range(stills)]
    many, tables = factory.from_dict(content, check_format=False), flex.reflection_table()
    reflections = flex.reflection_table.from_file(str(ROOT / FILES[1]))
    for key in list(reflections.experiment_identifiers().keys()):
        del reflections.experiment_identifiers()[key]
    for i in range(stills):
        reflections["id"] = flex.int(len(reflections), i)
        reflections.experiment_identifiers()[i] = str(i)
        tables.extend(reflections)
        del reflections.experiment_identifiers()[i]
    many.as_file(str(folder / "many.expt"))
    tables.as_file(str(folder / "many.refl"))
    return [str(folder / "many.expt"), str(folder / "many.refl")]
