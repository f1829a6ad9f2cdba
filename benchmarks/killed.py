"""`python -m benchmarks.killed FOLDER`: a sweep over copies of twenty stills with new noise, killed again and again.

Each copy has a Poisson number of every count of its still: spots and background with another seed of noise. One run is
left alone; the other is killed with all its processes at random moments and started again. Their results have to be
the same bytes, with every still done and none twice.
"""

import argparse
import base64
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from dials.array_family import flex
from dxtbx.ext import compress, uncompress
from dxtbx.model.experiment_list import ExperimentList

from benchmarks.still import ROOT
from dbex.batch.ledger import FILE, Ledger

SERIAL = ROOT.parent / "shared" / "data" / "serial20"
#: A refinement that is quick but has every stage.
QUICK = ("refine.detector=distance,shift,tilt", "refine.terms=none", "refine.start=near")
START, KILLS = b"\x0c\x1a\x04\xd5", 5


def with_new_noise(image, target, seed):
    """Write a CBF image whose counts are drawn about those of another; negative ones, which are no counts, stay."""
    content = image.read_bytes()
    place = content.index(START)
    head = content[:place].decode("latin-1")
    slow, fast = (int(re.search(f"X-Binary-Size-{name}-Dimension: (\\d+)", head)[1]) for name in ("Second", "Fastest"))
    size = int(re.search(r"X-Binary-Size: (\d+)", head)[1])
    packed = content[place + len(START) : place + len(START) + size]
    counts = uncompress(packed=packed, fast=fast, slow=slow).as_numpy_array()
    drawn = np.where(counts > 0, np.random.default_rng(seed).poisson(np.maximum(counts, 0)), counts)
    again = bytes(compress(flex.int(np.ascontiguousarray(drawn, dtype=np.int32))))
    digest = base64.b64encode(hashlib.md5(again).digest()).decode()
    head = re.sub(r"X-Binary-Size: \d+", f"X-Binary-Size: {len(again)}", head)
    head = re.sub(r"Content-MD5: \S+", f"Content-MD5: {digest}", head)
    target.write_bytes(head.encode("latin-1") + START + again + content[place + len(START) + size :])


def copies(folder, count):
    """Write so many stills, the twenty again and again, and give their .expt and .refl."""
    known = ExperimentList.from_file(str(SERIAL / "serial20.expt"), check_format=False)
    spots = flex.reflection_table.from_file(str(SERIAL / "serial20.refl"))
    stills, table = [], flex.reflection_table()
    for number in range(count):
        index = number % len(known)
        image = folder / f"copy_{number:05d}.cbf"
        with_new_noise(Path(known[index].imageset.paths()[0]), image, number)
        one = folder / "one.expt"
        known[index : index + 1].as_file(str(one))
        one.write_text(one.read_text().replace(known[index].imageset.paths()[0], str(image)))
        (still,) = ExperimentList.from_file(str(one), check_format=False)
        still.identifier = ""
        stills.append(still)
        rows = spots.select(spots["id"] == index)
        for name in list(rows.experiment_identifiers().keys()):
            del rows.experiment_identifiers()[name]
        rows["id"] = flex.int(len(rows), number)
        table.extend(rows)
    ExperimentList(stills).as_file(str(folder / "copies.expt"))
    table.as_file(str(folder / "copies.refl"))
    return str(folder / "copies.expt"), str(folder / "copies.refl")


def started(files, run, options):
    """A sweep in processes of its own group."""
    words = [
        sys.executable,
        "-m",
        "dbex.cli.refine_many",
        *files,
        str(ROOT / "scaled.mtz"),
        f"mask={SERIAL / 'mask.pkl'}",
    ]
    words += [*QUICK, f"d_min={options.d_min}", f"nproc={options.nproc}", f"output.directory={run}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def ended(run):
    """How many stills the ledger of a run says have ended."""
    if not (run / FILE).exists():
        return 0
    with closing(Ledger(run)) as ledger:
        return ledger.pace().total - ledger.pace().left


def killed_and_resumed(files, run, options):
    """Kill the run when random numbers of stills have ended; for each kill how many had."""
    rng, moments = random.Random(options.seed), []
    goals = sorted(rng.sample(range(1, options.stills), KILLS))
    for goal in goals:
        process = started(files, run, options)
        while process.poll() is None and ended(run) < goal:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            moments.append(ended(run))
    started(files, run, options).wait()
    return moments


def results(run):
    """The SHA-256 of every result by name."""
    files = sorted(path for path in run.iterdir() if path.suffix in (".expt", ".refl", ".csv"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main():
    """Make the copies, sweep them undisturbed and killed, compare; 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new, for images and runs")
    parser.add_argument("--stills", type=int, default=400)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--d_min", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True)
    files = copies(folder, options.stills)
    began = time.perf_counter()
    started(files, folder / "undisturbed", options).wait()
    print(f"undisturbed: {time.perf_counter() - began:.0f} s", flush=True)
    moments = killed_and_resumed(files, folder / "killed", options)
    print(f"killed when {', '.join(map(str, moments))} of {options.stills} stills had ended")
    with closing(Ledger(folder / "killed")) as ledger:
        states = {state.value: count for state, count in ledger.pace().counts.items()}
    whole = sum(states.values()) == options.stills and ledger_keys(folder / "killed") == options.stills
    same = results(folder / "undisturbed") == results(folder / "killed")
    print(f"states {states}; every still once: {whole}; same bytes: {same}")
    return 0 if same and whole and len(moments) == KILLS else 1


def ledger_keys(run):
    """How many different results a run has in its spool and failures in its ledger."""
    with closing(Ledger(run)) as ledger:
        failed = sum(entry.outcome.state.value in ("bad input", "lost") for entry in ledger.entries())
    return failed + len(list((run / "spool").glob("*/*.zip")))


if __name__ == "__main__":
    sys.exit(main())
