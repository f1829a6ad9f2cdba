"""Intensities as MTZ files, through gemmi: every observation, and their means."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from dbex.observations import Means, Observations
from dbex.still import Floats, Ints

PROJECT, CRYSTAL, DATASET = "dbex", "joint", "joint"


def in_asymmetric_unit(hkl: Ints, space_group: str) -> tuple[Ints, Ints]:
    """Each reflection (n, 3) moved into the asymmetric unit, and its number of symmetry (n,), odd for I(+) and for
    what is its own mate."""
    group = gemmi.SpaceGroup(space_group)
    unit, operations = gemmi.ReciprocalAsu(group), group.operations()
    unique, place = np.unique(hkl, axis=0, return_inverse=True)
    moved = [unit.to_asu(indices, operations) for indices in unique.tolist()]
    where = np.array([indices for indices, _ in moved], dtype=np.int64).reshape(-1, 3)
    pairs = zip(unique.tolist(), moved, strict=True)
    number = np.array([_symmetry(indices, asu, isym, operations) for indices, (asu, isym) in pairs], dtype=np.int64)
    return where[place.reshape(-1)], number[place.reshape(-1)]


def _symmetry(hkl: list[int], asu: list[int], isym: int, operations: Any) -> int:
    """The number of an operation without inversion that moves hkl there, if there is one, else `isym`.

    gemmi takes the first that it meets, so that a centric reflection and its mate, which are one, would stay apart.
    """
    if isym % 2 == 0:
        for place, operation in enumerate(operations.sym_ops):
            if operation.apply_to_hkl(hkl) == asu:
                return 2 * place + 1
    return isym


def groups_of(hkl: Ints, isym: Ints) -> tuple[Ints, Ints]:
    """The distinct reflections (m, 4) as h, k, l and 1 for I(+), 0 for I(-), and which each observation (n,) is of."""
    unique, place = np.unique(np.column_stack([hkl, isym % 2]), axis=0, return_inverse=True)
    return unique, place.reshape(-1)


def resolution_A(hkl: Ints, cell: Sequence[float]) -> Floats:
    """d (n,) of reflections (n, 3)."""
    return np.asarray(1 / np.sqrt(gemmi.UnitCell(*cell).calculate_1_d2_array(np.asarray(hkl, dtype=np.int32))))


def write_unmerged(
    path: Path, found: Observations, means: Floats, cells: Sequence[Sequence[float]], wavelength_A: float, group: str
) -> None:
    """Every observation, a batch a still (from 1), its variance that of its reflection's mean (n,); `cells` are of the
    stills. Columns: I and SIGI full intensities, FRACTIONCALC the partiality, XDET and YDET pixels. Raises OSError."""
    mtz = _empty(np.median(np.array(cells), axis=0).tolist(), wavelength_A, group)
    for label, kind in (("M/ISYM", "Y"), ("BATCH", "B"), ("I", "J"), ("SIGI", "Q"), ("FRACTIONCALC", "R")):
        mtz.add_column(label, kind)
    for label in ("XDET", "YDET", "PANEL"):
        mtz.add_column(label, "R")
    sigma = np.sqrt(found.variance(np.maximum(means, 0.0)))
    columns = [*in_asymmetric_unit(found.hkl, group), found.still + 1, found.value, sigma, found.partiality]
    mtz.set_data(np.column_stack([*columns, found.xy_px, found.panel]).astype(np.float32))
    for number, cell in enumerate(cells):
        batch = gemmi.Mtz.Batch()
        batch.number, batch.title, batch.dataset_id = number + 1, f"still {number}", 1
        batch.cell, batch.wavelength = gemmi.UnitCell(*cell), wavelength_A
        mtz.batches.append(batch)
    mtz.sort(5)
    mtz.write_to_file(str(path))


def write_merged(
    path: Path, unique: Ints, means: Means, cell: Sequence[float], wavelength_A: float, group: str
) -> None:
    """Means (m,) of the reflections `unique` (m, 4): of both Friedel mates, and each in columns of its own. Raises
    OSError."""
    mtz = _empty(cell, wavelength_A, group)
    for label, kind in (("IMEAN", "J"), ("SIGIMEAN", "Q")):
        mtz.add_column(label, kind)
    for sign in ("(+)", "(-)"):
        for label, kind in (("I", "K"), ("SIGI", "M"), ("N", "I")):
            mtz.add_column(f"{label}{sign}", kind)
    hkl, place = np.unique(unique[:, :3], axis=0, return_inverse=True)
    place, weight = place.reshape(-1), means.sigma**-2.0
    total = np.bincount(place, weight)
    data = np.full((len(hkl), 11), np.nan)
    data[:, :3] = hkl
    data[:, 3], data[:, 4] = np.bincount(place, weight * means.value) / total, total**-0.5
    for positive, first in ((1, 5), (0, 8)):
        mine = unique[:, 3] == positive
        data[place[mine], first : first + 3] = np.column_stack([means.value, means.sigma, means.count])[mine]
    mtz.set_data(data.astype(np.float32))
    mtz.write_to_file(str(path))


def _empty(cell: Sequence[float], wavelength_A: float, group: str) -> Any:
    """A file with hkl and one dataset."""
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = "dbex.refine_joint"
    mtz.spacegroup = gemmi.SpaceGroup(group)
    mtz.set_cell_for_all(gemmi.UnitCell(*cell))
    dataset = mtz.add_dataset(DATASET)
    dataset.project_name, dataset.crystal_name, dataset.wavelength = PROJECT, CRYSTAL, wavelength_A
    return mtz
