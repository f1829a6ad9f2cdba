"""Structure factor amplitudes from MTZ files, in P1 with Friedel mates apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iotbx.mtz
import numpy as np
from cctbx import miller, sgtbx, uctbx
from cctbx.array_family import flex

from dbex.errors import BadInput
from dbex.io.files import kept_while_unchanged, reading
from dbex.still import Amplitudes, Ints

KIND = "an MTZ file of structure factors"
DEFAULT_COLUMNS = "F,SIGF"

#: A cell farther than this from the crystal's is another crystal, or the same one indexed otherwise.
CELL_LENGTH_TOLERANCE = 0.05
CELL_ANGLE_TOLERANCE_DEG = 5.0

#: Acentric amplitudes have <F>²/<F²> = π/4 = 0.785 in a resolution shell, intensities 0.5, of a perfect twin 0.667;
#: only a column well below what amplitudes of a hypercentric structure (0.64) reach is taken for intensities.
INTENSITY_LIKE_BELOW = 0.56
FEWEST_FOR_STATISTICS = 500


@kept_while_unchanged
def read_amplitudes(path: str | Path, columns: str | None = None) -> tuple[Amplitudes, Any]:
    """Amplitudes of the named columns ("F,SIGF"; None takes those, or else the first amplitudes with sigmas), as the
    record and as the cctbx miller array that it was made from.

    Rows that the file marks as missing, which MTZ does by NaN, are absent from both. Raises BadInput.
    """
    with reading(path, KIND) as file:
        arrays = iotbx.mtz.object(str(file)).as_miller_arrays()
    chosen = _chosen(arrays, columns, path)
    _check_values(chosen, path)
    full = chosen.expand_to_p1() if chosen.space_group_info().group().order_z() > 1 else chosen
    full = full.generate_bijvoet_mates() if not full.anomalous_flag() else full
    sigmas = full.sigmas().as_numpy_array() if full.sigmas() is not None else np.zeros(full.size())
    record = Amplitudes(
        hkl=full.indices().as_vec3_double().as_double().as_numpy_array().reshape(-1, 3).astype(np.int64),
        F=full.data().as_numpy_array().astype(np.float64),
        sigma_F=sigmas.astype(np.float64),
        dataset=label(chosen),
        space_group=str(chosen.space_group_info()),
        unit_cell=tuple(chosen.unit_cell().parameters()),
    )
    return record, full


def laue_classes(amplitudes: Amplitudes) -> Ints:
    """A number (m,) for each reflection, the same for those that symmetry and Friedel's law make equivalent."""
    group = sgtbx.space_group_info(amplitudes.space_group).type()
    indices = flex.miller_index(*(flex.int(np.ascontiguousarray(part, dtype=np.int32)) for part in amplitudes.hkl.T))
    miller.map_to_asu(group, False, indices)
    unique = indices.as_vec3_double().as_double().as_numpy_array().reshape(-1, 3).astype(np.int64)
    _, number = np.unique(unique, axis=0, return_inverse=True)
    return number.reshape(-1).astype(np.int64)


def label(array: Any) -> str:
    """What a file calls an array, as "F,SIGF"."""
    return ",".join(array.info().labels)


def _chosen(arrays: Sequence[Any], columns: str | None, path: str | Path) -> Any:
    there = "; ".join(label(array) for array in arrays)
    if columns is None:
        usable = [a for a in arrays if a.is_xray_amplitude_array() and a.sigmas() is not None]
        named = [a for a in usable if label(a) == DEFAULT_COLUMNS]
        if not usable:
            raise BadInput(f"{path} has no amplitudes with sigmas but {there}: give an MTZ with amplitudes")
        return (named or usable)[0]
    wanted = columns.replace(" ", "")
    matches = [a for a in arrays if label(a) == wanted] or [a for a in arrays if a.info().labels[0] == wanted]
    if not matches:
        raise BadInput(f"{path} has no column {columns}: expected one of {there}; name one of these")
    if not matches[0].is_xray_amplitude_array():
        raise BadInput(
            f"{path} has {matches[0].observation_type() or 'no amplitudes'} in {columns}: expected amplitudes; "
            f"name one of {'; '.join(label(a) for a in arrays if a.is_xray_amplitude_array())}"
        )
    return matches[0]


def _check_values(array: Any, path: str | Path) -> None:
    values = array.data().as_numpy_array()
    if not len(values):
        raise BadInput(f"{path} has only NaN (missing) in {label(array)}: expected amplitudes; write it again")
    if not np.isfinite(values).all():
        raise BadInput(f"{path} holds NaN or infinity in {label(array)}: expected finite amplitudes; write it again")
    if (values < 0).any() or not (values > 0).any():
        raise BadInput(
            f"{path} has {int((values < 0).sum())} negative of {len(values)} amplitudes in {label(array)}: "
            "expected F > 0; are these intensities?"
        )
    ratio = amplitude_ratio(array)
    if ratio < INTENSITY_LIKE_BELOW:
        raise BadInput(
            f"{path}: {label(array)} is spread like intensities (<F>²/<F²> = {ratio:.2f}, amplitudes have 0.79): "
            "expected amplitudes; convert them or name another column"
        )


def amplitude_ratio(array: Any) -> float:
    """<F>²/<F²> of acentric reflections, the median over resolution shells; π/4 where there are too few to tell."""
    acentric = array.select(~array.centric_flags().data())
    if acentric.size() < FEWEST_FOR_STATISTICS:
        return float(np.pi / 4)
    order = np.argsort(acentric.d_star_sq().data().as_numpy_array())
    shells = np.array_split(acentric.data().as_numpy_array()[order], 10)
    return float(np.median([shell.mean() ** 2 / max((shell**2).mean(), 1e-300) for shell in shells]))


def check_crystal(amplitudes: Amplitudes, crystal: Any, path: str | Path) -> None:
    """Raise BadInput where the MTZ's cell or point group is not the crystal's."""
    ours = uctbx.unit_cell(crystal.get_unit_cell().parameters()).parameters()
    theirs = amplitudes.unit_cell
    lengths = max(abs(a / b - 1) for a, b in zip(theirs[:3], ours[:3], strict=True))
    angles = max(abs(a - b) for a, b in zip(theirs[3:], ours[3:], strict=True))
    if not (lengths < CELL_LENGTH_TOLERANCE and angles < CELL_ANGLE_TOLERANCE_DEG):
        raise BadInput(
            f"{path} has the cell {_cell(theirs)} but the crystal has {_cell(ours)}: expected the same within "
            f"{CELL_LENGTH_TOLERANCE:.0%} and {CELL_ANGLE_TOLERANCE_DEG:g}°; reindex one, or give this crystal's MTZ"
        )
    amplitudes_group, group = sgtbx.space_group_info(amplitudes.space_group).group(), crystal.get_space_group()
    if _point_group(amplitudes_group) != _point_group(group):
        raise BadInput(
            f"{path} has point group {_point_group(amplitudes_group).type().lookup_symbol()} but the crystal "
            f"has {_point_group(group).type().lookup_symbol()}: expected the same; reindex one in the other's symmetry"
        )


def _point_group(space_group: Any) -> Any:
    return space_group.build_derived_point_group()


def _cell(parameters: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in parameters) + ")"
