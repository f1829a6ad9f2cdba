"""dbex.json: everything that was found and everything that is needed to find it again."""

import dataclasses
import functools
import hashlib
import json
import platform
import resource
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dials.util.version import dials_version

from dbex.io.results import plain
from dbex.refinement.settings import Settings
from dbex.still import ROBUST_RULE, Refined

#: The figures that are kept by this file's layout; raised when a key changes its meaning.
LAYOUT = 1
DISTRIBUTIONS = ("dbex", "torch", "numpy", "dxtbx", "gemmi", "h5py")
READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Run:
    """What was asked: the command line, the parameters that it modifies (phil), the settings made of them, and the
    time at which it began (ISO 8601, UTC)."""

    command: str
    modified: str
    settings: Settings
    started: str


def record(refined: Refined, run: Run) -> dict[str, Any]:
    """The content of dbex.json for one still, but for the files that lie beside it.

    The covariance's rows and columns follow `estimates`, in their units and scaled as `esd`.
    """
    still = refined.still
    return {
        "layout": LAYOUT,
        "still": still.name,
        "verdict": asdict(refined.verdict),
        "figures": refined.figures,
        "sigma_z": asdict(refined.background),
        "estimates": [asdict(estimate) for estimate in refined.estimates],
        "covariance": refined.quoted_covariance(),
        "terms": [{**asdict(trial), "kept": trial.kept} for trial in refined.terms],
        "same_on_one_still": refined.same_on_one_still(),
        "worst_direction": refined.worst_direction,
        "models": {
            "before": models(still),
            "after": models(refined),
        },
        "left_out": {**still.left_out, **refined.left_out},
        "down_weighted_boxes": {
            "rule": ROBUST_RULE,
            "boxes": [named(refined, int(i)) for i in refined.down_weighted()],
        },
        "noise": {
            "gain": still.noise.gain,
            "provenance": still.noise.provenance,
            "panels": [{"gain": gain, "pedestal": pedestal} for gain, pedestal in still.noise.panels],
        },
        "structure_factors": {
            "dataset": still.amplitudes.dataset,
            "space_group": still.amplitudes.space_group,
            "unit_cell": still.amplitudes.unit_cell,
        },
        "history": [asdict(iteration) for iteration in refined.history],
        "seconds": refined.seconds,
        "inputs": {name: identity(path) for name, path in still.files.items()},
        **provenance(run),
    }


def named(refined: Refined, box: int) -> dict[str, Any]:
    """A box by its reflection, with the mean weight of its pixels and how badly they fit."""
    boxes = refined.boxes
    return {
        "hkl": boxes.hkl[box],
        "panel": boxes.panel[box],
        "weight": boxes.weight[box],
        "chi2_per_pixel": boxes.chi2_per_pixel[box],
    }


def provenance(run: Run) -> dict[str, Any]:
    """How a run was started, with which programs, and what it took."""
    return {
        "command": run.command,
        "modified_parameters": run.modified,
        "settings": asdict(run.settings),
        "started": run.started,
        "peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": versions(),
    }


def models(holder: Any) -> dict[str, Any]:
    """The configs of a still or of a refined one, as plain fields."""
    return {
        "crystal": shallow(holder.crystal),
        "beam": shallow(holder.beam),
        "detector": [shallow(panel) for panel in holder.detector],
    }


def shallow(config: Any) -> dict[str, Any]:
    """A config's fields by name, tensors as numbers."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def versions() -> dict[str, str]:
    """The programs that a result depends on."""
    found = {name: metadata.version(name) for name in DISTRIBUTIONS}
    return {**found, "dials": dials_version(), "python": platform.python_version()}


def identity(path: str) -> dict[str, str | None]:
    """Where a file lies and the hash of its bytes."""
    return {"path": str(Path(path).resolve()), "sha256": sha256(path)}


def sha256(path: str) -> str | None:
    """The hash of a file's bytes; None where it is not a file."""
    if not Path(path).is_file():
        return None
    status = Path(path).stat()
    return sha256_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def sha256_of(path: str, size: int, modified_ns: int) -> str:
    """The hash of a file, taken once as long as its size and time stay: many stills share their files."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(READ_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def write_record(content: dict[str, Any], folder: Path) -> None:
    """Write dbex.json, with the files of `folder` listed in it, as strict JSON; raises OSError."""
    beside = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    content = {**content, "files": sorted(beside | {"dbex.json"})}
    write_json(content, folder / "dbex.json")


def write_json(content: dict[str, Any], file: Path) -> None:
    """Write strict JSON; raises OSError."""
    text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
