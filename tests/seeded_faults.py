"""Ten faults, each put into a copy of the sources: does the acceptance profile notice?

    python tests/seeded_faults.py                 # each fault with the tests that should notice it
    python tests/seeded_faults.py --all           # each fault with the whole profile: hours
    python tests/seeded_faults.py transposed_U    # some of them

Ends with a table and exit status 0 when the untouched copy passes and every fault turns the test red that should.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Fault:
    """A change of one place in the sources: `before`, which must be there once, becomes `after`; `noticed_by` are the
    acceptance tests that must turn red."""

    name: str
    file: str
    before: str
    after: str
    noticed_by: tuple[str, ...]

    def apply(self, folder):
        """Change the file below `folder`; raises ValueError where the place is not found once."""
        path = Path(folder) / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.before) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has {text.count(self.before)} places with {self.before!r}: expected one; "
                "adapt the fault to the sources"
            )
        path.write_text(text.replace(self.before, self.after), encoding="utf-8")


FAULTS = (
    Fault(
        "solid_angle_twice_too_large",
        "nanobrag_torch/panel.py",
        "return panels.pixel_size[panel] ** 2 *",
        "return 2 * panels.pixel_size[panel] ** 2 *",
        ("001",),
    ),
    Fault(
        "transposed_U",
        "dbex/models.py",
        "U = np.asarray(crystal.get_U()).reshape(3, 3)",
        "U = np.asarray(crystal.get_U()).reshape(3, 3).T",
        ("026",),
    ),
    Fault(
        "detached_wavelength",
        "nanobrag_torch/profile.py",
        "(s1 - s0) / as_tensor(beam.wavelength_A, like)[..., None]",
        "(s1 - s0) / as_tensor(beam.wavelength_A, like).detach()[..., None]",
        ("010",),
    ),
    Fault(
        "mask_inverted",
        "dbex/io/masks.py",
        "arrays = tuple(panel.as_numpy_array() for panel in panels)",
        "arrays = tuple(~panel.as_numpy_array() for panel in panels)",
        ("021",),
    ),
    Fault(
        "variance_from_the_data",
        "dbex/refinement/objective.py",
        "return pixel_variance(local.background, local.bragg, self.boxes.sigma_squared)",
        "return pixel_variance(self.boxes.data, 0 * local.bragg, self.boxes.sigma_squared)",
        ("029",),
    ),
    Fault(
        "off_by_half_a_pixel",
        "nanobrag_torch/profile.py",
        "return (torch.arange(oversample, dtype=like.dtype, device=like.device) + 0.5) / oversample",
        "return torch.arange(oversample, dtype=like.dtype, device=like.device) / oversample",
        ("027",),
    ),
    Fault(
        "one_domain_left_handed",
        "nanobrag_torch/mosaic.py",
        "return torch.cat([identity[None], rotations[1:]])",
        "return torch.cat([identity[None], rotations[1:2].transpose(1, 2), rotations[2:]])",
        ("001",),
    ),
    Fault(
        "friedel_mates_swapped",
        "dbex/io/structure_factors.py",
        "hkl=full.indices()",
        "hkl=-1 * full.indices()",
        ("031",),
    ),
    Fault(
        "background_of_minus_one_as_data",
        "dbex/refinement/inputs.py",
        "loss_mask = (background >= 0) & trusted",
        "loss_mask = (background >= -1) & trusted",
        ("022",),
    ),
    Fault(
        "esd_scaled_by_root_two",
        "dbex/refinement/uncertainty.py",
        "return Curvature(covariance, float",
        "return Curvature(2 * covariance, float",
        ("060",),
    ),
)


def copied(folder):
    """A copy of the tracked and new sources in `folder`, with the test data where tests look for it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shared = ROOT.parent / "shared"
    if shared.exists() and not (folder.parent / "shared").exists():
        (folder.parent / "shared").symlink_to(shared.resolve())


def judged(folder, words):
    """Exit status of the profile in a copy, and the verdict of each test."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dbex.cli.conformance", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    summary = folder / "plans" / "active" / "summary.json"
    if not summary.exists():
        return done.returncode, {"nothing": done.stdout[-500:] + done.stderr[-500:]}
    content = json.loads(summary.read_text(encoding="utf-8"))
    assert Path(content["tested"]["dbex"]).resolve() == (folder / "dbex").resolve()
    return done.returncode, {test["id"]: test["verdict"] for test in content["tests"]}


def trial(fault, everything):
    """A line for a fault: whether it was noticed where it should be, and by which tests."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dbex-fault-") as temporary:
        folder = Path(temporary) / "copy"
        copied(folder)
        fault.apply(folder)
        status, verdicts = judged(
            folder, ["all"] if everything else [*(f"DB-AT-{n}" for n in fault.noticed_by), "full=False"]
        )
    red = [test for test, verdict in verdicts.items() if verdict == "failed"]
    noticed = status == 1 and all(f"DB-AT-{number}" in red for number in fault.noticed_by)
    seconds = time.monotonic() - began
    told = " ".join(red) or str(verdicts)
    print(f"{fault.name:<34} {'noticed' if noticed else 'NOT NOTICED':<12} {seconds:6.0f} s  {told}", flush=True)
    return noticed


def untouched(faults, everything):
    """Whether the same tests pass in a copy without a fault."""
    named = sorted({f"DB-AT-{n}" for fault in faults for n in fault.noticed_by})
    words = ["all"] if everything else [*named, "full=False"]
    with tempfile.TemporaryDirectory(prefix="dbex-fault-") as temporary:
        folder = Path(temporary) / "copy"
        copied(folder)
        status, verdicts = judged(folder, words)
    bad = {test: verdict for test, verdict in verdicts.items() if verdict != "passed"}
    print(f"{'without a fault':<34} {'passes' if status == 0 else 'DOES NOT PASS':<12} {bad or ''}", flush=True)
    return status == 0


def main():
    """Try the faults."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(fault.name for fault in FAULTS)}")
    parser.add_argument("--all", action="store_true", help="the whole profile for each fault")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    faults = [fault for fault in FAULTS if not arguments.names or fault.name in arguments.names]
    good = [untouched(faults, arguments.all), *(trial(fault, arguments.all) for fault in faults)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
