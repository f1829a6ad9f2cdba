"""`python -m benchmarks.scaling`: what a still costs a sweep and a joint refinement, measured on this machine, and from
that what 10⁴ to 10⁶ stills cost: a simulated queue with the measured distribution of task times and workers that fail.
"""

import argparse
import json
import pickle
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.still import ROOT
from benchmarks.task_queue import simulated
from dbex.batch.executors import local_processes
from dbex.batch.ledger import Ledger, Outcome, State, Task
from dbex.batch.visiting import Visiting
from dbex.data_load import Shared, StillFiles
from dbex.joint.conclude import conclude
from dbex.joint.shared import Common, Sharing, Units
from dbex.joint.solve import beginning
from dbex.joint.visits import Visitor
from dbex.refinement.detector_motion import unit_frame
from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings
from nanobrag_torch.config import override
from nanobrag_torch.panel import stack_panels

SERIAL = ROOT.parent / "shared" / "data" / "serial20"
STILLS, WORKERS = (10_000, 100_000, 1_000_000), (16, 256, 4096)
#: Visits of a joint refinement to each still: begin, three rounds of boxes, six steps of trial and renewal, the end.
VISITS = {"begin": 1, "lay_out": 3, "trial": 6, "renew": 6, "ended": 1}
SETTINGS = Settings(detector=("distance", "shift", "tilt"), terms=())


def timed(work, times):
    """The result, its CPU seconds appended to `times`."""
    began = time.process_time()
    result = work()
    times.append(time.process_time() - began)
    return result


def measured_stills(files, count, folder):
    """CPU seconds of every kind of visit to the first stills, and bytes of what is kept and sent."""
    stills = files.stills()
    detector, beam = stills.bench(0)
    visitor = Visitor(files.read, SETTINGS, Sharing(SETTINGS.detector, (), True), detector, folder)
    seconds = {name: [] for name in ("sweep", *VISITS)}
    for index in range(count):
        timed(lambda index=index: refine_still(files.read(index), SETTINGS), seconds["sweep"])
    begun = [timed(lambda index=index: visitor.begin(index), seconds["begin"]) for index in range(count)]
    common = beginning(visitor, begun, beam)
    g = np.median([b.shared for b in begun], axis=0)
    g[[i for i, p in enumerate(common.parameters) if p.group == "cell"]] = 0.0
    for index in range(count):
        task = (index, common, g)
        for name in ("lay_out", "trial", "renew"):
            told = timed(lambda name=name, task=task: getattr(visitor, name)(task), seconds[name])
        together = count * visitor.said(index).matrix

        def end(index=index, together=together):
            still, final = visitor.ended((index, common, together))
            return conclude(still, SETTINGS, final)

        timed(end, seconds["ended"])
    parts = ("boxes", "standing", "said")
    kept = {part: int(np.mean([p.stat().st_size for p in folder.glob(f"*[0-9].{part}")])) for part in parts}
    sent = {"task": len(pickle.dumps((visitor.renew, (0, common, g)))), "result": len(pickle.dumps(told))}
    return seconds, kept, sent, common


def many_panels(common, count=256):
    """Bytes of a task and of a still's word where so many panels move by themselves."""
    panel = common.detector[0]
    detector = tuple(override(panel, {"origin_fast_mm": panel.origin_fast_mm + i}) for i in range(count))
    panels = stack_panels(detector, torch.zeros((), dtype=torch.float64))
    units = Units(tuple((i,) for i in range(count)), tuple(str(i) for i in range(count)))
    frame = unit_frame(panels, detector, units.panels)
    wide = Common(detector, panels, frame, common.cell, units.parameters(frame, SETTINGS.detector))
    g = np.zeros(len(wide.parameters))
    return {"task": len(pickle.dumps((wide, g))), "word": 8 * len(g) ** 2}


def driver_seconds(folder):
    """Seconds of the process that hands out: for a still of a sweep in its ledger, and for a visit."""
    with closing(Ledger(folder)) as ledger:
        tasks = [Task(f"{i:064d}", (i,), "a.expt", "a.refl", (i,), 100) for i in range(2000)]
        ledger.enlist(tasks)
        began = time.perf_counter()
        for _ in range(200):
            for task in ledger.take(10):
                ledger.end(task, [Outcome(State.REFINED, "still", "good", "", {"chi2": 1.0}, 1.0, 500.0)])
        in_ledger = (time.perf_counter() - began) / 2000
    with local_processes(2) as engine:
        visits = Visiting(engine, 1)
        list(visits(abs, range(4)))
        began = time.perf_counter()
        list(visits(abs, range(150)))
        return in_ledger, (time.perf_counter() - began) / 150


def main():
    """Measure, simulate, print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stills", nargs="?", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared = Shared(str(ROOT / "scaled.mtz"), str(SERIAL / "mask.pkl"))
    files = StillFiles(str(SERIAL / "serial20.expt"), str(SERIAL / "serial20.refl"), shared)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        (folder := Path(name) / "spool").mkdir()
        seconds, kept, sent, common = measured_stills(files, options.stills, folder)
        ledger_s, visit_s = driver_seconds(Path(name))
    visits_s = {name: float(np.mean(seconds[name])) for name in VISITS}
    joint_s = sum(VISITS[name] * visits_s[name] for name in VISITS)
    all_visits = np.concatenate([np.repeat(seconds[name], VISITS[name]) for name in VISITS])
    content = {
        "cpu_seconds": {name: [round(s, 3) for s in values] for name, values in seconds.items()},
        "joint_cpu_seconds_a_still": round(joint_s, 2),
        "bytes_kept": kept,
        "bytes_sent": sent,
        "bytes_256_panels": many_panels(common),
        "driver_seconds": {"sweep": ledger_s + visit_s, "ledger": ledger_s, "visit": visit_s},
        "saturates_at_workers": {
            "sweep": round(float(np.mean(seconds["sweep"])) / (ledger_s + visit_s)),
            "joint": round(float(np.mean(all_visits)) / visit_s),
        },
        "simulated": [
            {
                "what": what,
                "stills": stills,
                "workers": workers,
                "hours": round(run.seconds / 3600, 2),
                "working": round(run.working, 3),
                "driver": round(run.driver, 3),
            }
            for what, times, driver_s, each in (
                ("sweep", seconds["sweep"], ledger_s + visit_s, 1),
                ("joint", all_visits, visit_s, sum(VISITS.values())),
            )
            for stills in STILLS
            for workers in WORKERS
            for run in (of_stills(stills, workers, times, driver_s, each),)
        ],
    }
    print(json.dumps(content, indent=1))


def of_stills(stills, workers, times, driver_s, each, most=200_000):
    """A simulated run of so many stills with `each` tasks; beyond `most` that many, and the rest in proportion."""
    tasks = stills * each
    drawn = min(tasks, most)
    run = simulated(drawn, workers, times, driver_s)
    return replace(run, seconds=run.seconds * tasks / drawn)


if __name__ == "__main__":
    main()
