"""Inputs spoilt at random, from a seed each: what reading them ends with.

    python -m tests.dbex.fuzzing FIRST LAST FOLDER

writes a line of JSON for each seed: what was spoilt, and whether the still was read, refused in a sentence, or ended in
something else. In a process of its own, so that what kills an interpreter is seen too.
"""

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np

#: The files of the shipped still, by what they are.
NAMES = {
    "expt": "refGeom.expt",
    "refl": "refGeom.refl",
    "mtz": "scaled.mtz",
    "mask": "747_mask.pkl",
    "image": "lys_nitr_10_6_0001.cbf",
}
ROOT = Path(__file__).resolve().parent.parent.parent
#: What a number of the models is replaced by.
VALUES = (0, -1, 1e30, -1e30, 1e-30, float("nan"), float("inf"), None, "a word", [], {}, [1, 2], True, 2**70)


def prepared(folder):
    """The files of the shipped still in an empty folder, the large ones as links; each may be replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for kind, name in NAMES.items():
        if kind == "expt":  # a link would lead to the image beside the original
            shutil.copy(ROOT / name, folder / name)
        else:
            (folder / name).symlink_to(ROOT / name)


def replaced(folder, kind, content):
    path = folder / NAMES[kind]
    path.unlink()
    path.write_bytes(content)


def bytes_flipped(rng, folder, kind):
    """Some bytes are others."""
    content = bytearray((ROOT / NAMES[kind]).read_bytes())
    count = int(rng.integers(1, 30))
    reach = len(content) if rng.random() < 0.5 else min(len(content), 4096)
    for place in rng.integers(0, reach, count):
        content[place] = int(rng.integers(0, 256))
    replaced(folder, kind, bytes(content))
    return f"{count} bytes of the first {reach} changed"


def cut(rng, folder, kind):
    """The end is missing."""
    content = (ROOT / NAMES[kind]).read_bytes()
    length = int(len(content) * rng.random())
    replaced(folder, kind, content[:length])
    return f"cut to {length} bytes"


def noise(rng, folder, kind):
    """Nothing but noise."""
    length = int(rng.integers(1, 5000))
    replaced(folder, kind, rng.bytes(length))
    return f"{length} random bytes"


def leaves(content, path=()):
    """The paths of all values in nested lists and dictionaries."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def model_spoilt(rng, folder, kind):
    """A value of the models is another or is gone."""
    content = json.loads((ROOT / NAMES["expt"]).read_text(encoding="utf-8"))
    paths = list(leaves(content))
    path = paths[int(rng.integers(len(paths)))]
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if rng.random() < 0.25:
        del holder[path[-1]]
        told = "is gone"
    else:
        value = VALUES[int(rng.integers(len(VALUES)))]
        holder[path[-1]] = value
        told = f"is {value!r}"
    replaced(folder, "expt", json.dumps(content).encode())
    return f"{'.'.join(map(str, path))} {told}"


def table_spoilt(rng, folder, kind):
    """A column of the reflections has other values, or is gone."""
    from dials.array_family import flex

    table = flex.reflection_table.from_file(str(ROOT / NAMES["refl"]))
    columns = sorted(table.keys())
    name = columns[int(rng.integers(len(columns)))]
    how = ("gone", "nan", "huge", "negative", "zero")[int(rng.integers(5))]
    column = table[name]
    row = int(rng.integers(len(table)))
    factor = {"nan": float("nan"), "huge": 1e18, "negative": -1.0, "zero": 0.0}.get(how)
    if how == "gone" or not isinstance(column, flex.double | flex.int | flex.vec3_double | flex.miller_index):
        del table[name]
        how = "gone"
    elif isinstance(column, flex.vec3_double):
        column[row] = (factor * 1.0,) * 3
    elif isinstance(column, flex.miller_index):
        column[row] = (int(np.nan_to_num(factor, posinf=0)) % 2**20,) * 3
    elif isinstance(column, flex.int):
        column[row] = int(np.clip(np.nan_to_num(factor), -(2**31), 2**31 - 1))
    else:
        column[row] = factor
    (folder / NAMES["refl"]).unlink()
    table.as_file(str(folder / NAMES["refl"]))
    return f"{name} {how}"


def mask_spoilt(rng, folder, kind):
    """Something else than the mask that fits."""
    from dials.array_family import flex

    content = [
        (flex.bool(flex.grid(int(rng.integers(1, 50)), int(rng.integers(1, 50))), True),),
        (flex.int(flex.grid(2527, 2463), 1),),
        {"mask": 1},
        (),
        (flex.bool(flex.grid(2527, 2463), False),),
        [flex.bool(flex.grid(2527, 2463), True)] * 2,
        "a word",
    ][int(rng.integers(7))]
    replaced(folder, "mask", pickle.dumps(content))
    return f"a mask of another kind: {type(content).__name__}"


WAYS = (
    *((bytes_flipped, kind) for kind in NAMES),
    *((cut, kind) for kind in NAMES),
    *((noise, kind) for kind in NAMES),
    *((model_spoilt, "expt"),) * 12,
    *((table_spoilt, "refl"),) * 6,
    (mask_spoilt, "mask"),
)


def spoilt(seed, folder):
    """Spoil one file in `folder` and say how."""
    rng = np.random.default_rng(seed)
    prepared(folder)
    way, kind = WAYS[seed % len(WAYS)]
    return f"{kind}: {way(rng, folder, kind)}"


def outcome(folder):
    """What reading the still of a folder ends with, and what was said."""
    from dbex.data_load import read_stills
    from dbex.errors import BadInput

    try:
        still = read_stills(*(folder / NAMES[kind] for kind in ("expt", "refl", "mtz", "mask"))).read(0)
    except BadInput as error:
        sentence = " ".join(str(error).split())  # as the commands say it
        return ("refused" if len(sentence) > 20 else "muttered"), sentence
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    wrong = makes_no_sense(still)
    return ("wrong", wrong) if wrong else ("read", "")


def makes_no_sense(still):
    """What of a still that was read no measurement can have, in words; empty where nothing."""
    numbers = [still.beam.wavelength_A, *(getattr(still.crystal, f"cell_{name}") for name in ("a", "b", "c"))]
    if not (np.isfinite(numbers).all() and min(numbers) > 0):
        return f"wavelength and cell are {numbers}"
    for panel in still.detector:
        axes = np.array([panel.fast_axis, panel.slow_axis])
        if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-6):
            return f"the axes are no unit vectors at right angles: {axes.tolist()}"
        if not np.isfinite([panel.distance_mm, panel.origin_fast_mm, panel.origin_slow_mm]).all():
            return "the panel stands nowhere"
    U = np.array(still.crystal.U)
    if not np.allclose(U @ U.T, np.eye(3), atol=1e-6) or np.linalg.det(U) < 0:
        return "U is no rotation"
    if not np.isfinite(still.observed.xy_px).all() or not (still.amplitudes.F >= 0).all():
        return "spots or amplitudes are no numbers"
    if not (np.isfinite(np.linalg.norm(still.beam.direction)) and 0 <= still.beam.polarization_fraction <= 1):
        return f"direction {still.beam.direction}, polarisation {still.beam.polarization_fraction}"
    return ""


def main(first, last, folder):
    for seed in range(first, last):
        # a place of its own: dxtbx keeps images by their paths
        place = folder / str(seed)
        what = spoilt(seed, place)
        # before reading, so that what kills the process is known
        sys.stdout.write(json.dumps({"seed": seed, "what": what}) + "\n")
        sys.stdout.flush()
        ended, said = outcome(place)
        sys.stdout.write(json.dumps({"seed": seed, "outcome": ended, "said": said}) + "\n")
        sys.stdout.flush()
        shutil.rmtree(place)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
