"""DB-AT-031: reflections are brought into the asymmetric unit as cctbx does it, Friedel mates apart."""

import numpy as np
import pytest
from cctbx import crystal, miller, sgtbx
from cctbx.array_family import flex

from dbex.io.merged import groups_of, in_asymmetric_unit, resolution_A
from dbex.io.structure_factors import read_amplitudes
from tests.reports import acceptance_report
from tests.tolerances import MTZ_RELATIVE, SAME_RESOLUTION

#: Of every crystal system and Laue class type: screw axes, centred cells, enantiomorphs, no mirror in the plane.
GROUPS = (
    *("P 1", "P 1 21 1", "C 1 2 1", "P 21 21 21", "C 2 2 21", "P 43 21 2", "I 4", "P 31 2 1", "P 3 1 2", "R 3 :H"),
    *("P 61 2 2", "I 2 3", "F 4 3 2"),
)
REACH = 7


def symmetry(symbol):
    group = sgtbx.space_group_info(symbol)
    return crystal.symmetry(unit_cell=group.any_compatible_unit_cell(volume=60_000), space_group_info=group)


def present(symbol):
    """Every hkl (n, 3) within reach that the space group does not extinguish, 000 left out."""
    steps = np.arange(-REACH, REACH + 1)
    hkl = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    group = sgtbx.space_group_info(symbol).group()
    kept = [any(h) and not group.is_sys_absent(h) for h in hkl.tolist()]
    return hkl[kept].astype(np.int64)


def as_flex(hkl):
    return flex.miller_index([tuple(h) for h in hkl.tolist()])


def by_cctbx(symbol, hkl):
    """The representative (n, 3) that cctbx gives each reflection, mates apart."""
    mapped = miller.set(symmetry(symbol), as_flex(hkl), anomalous_flag=True).map_to_asu()
    return np.array(list(mapped.indices()))


class TestDB_AT_031_AsymmetricUnit:
    @pytest.mark.parametrize("symbol", GROUPS)
    def test_db_at_031_what_is_merged_is_what_cctbx_merges(self, symbol):
        hkl = present(symbol)
        with acceptance_report("DB-AT-031", f"map_{symbol.replace(' ', '_')}", tolerances={"collisions": 0}) as values:
            where, isym = in_asymmetric_unit(hkl, symbol)
            unique, ours = groups_of(where, isym)
            _, theirs = np.unique(by_cctbx(symbol, hkl), axis=0, return_inverse=True)
            pairs = np.unique(np.column_stack([ours, theirs.reshape(-1)]), axis=0)
            values |= {"reflections": len(hkl), "unique": len(unique), "unique by cctbx": int(theirs.max()) + 1}
            # one to one: nothing that differs falls together, nothing equivalent stays apart
            assert len(pairs) == values["unique"] == values["unique by cctbx"]
            cell = symmetry(symbol).unit_cell().parameters()
            np.testing.assert_allclose(resolution_A(where, cell), resolution_A(hkl, cell), rtol=SAME_RESOLUTION)

    @pytest.mark.parametrize("symbol", GROUPS)
    def test_db_at_031_friedel_mates_stay_apart_where_they_differ(self, symbol):
        hkl = present(symbol)
        group = sgtbx.space_group_info(symbol).group()
        with acceptance_report("DB-AT-031", f"mates_{symbol.replace(' ', '_')}", tolerances={}) as values:
            both = np.concatenate([hkl, -hkl])
            _, number = groups_of(*in_asymmetric_unit(both, symbol))
            same = number[: len(hkl)] == number[len(hkl) :]
            centric = np.array([group.is_centric(h) for h in hkl.tolist()])
            values["acentric"], values["centric"] = int((~centric).sum()), int(centric.sum())
            assert (same == centric).all()
            assert (~centric).sum() > 100

    @pytest.mark.parametrize("symbol", ["P 21 21 21", "P 31 2 1", "I 2 3", "P 1"])
    def test_db_at_031_every_reflection_has_the_amplitude_of_its_own_mate(self, symbol, tmp_path):
        """F(+) and F(-) differ by up to half; each of P1 has that of the representative it comes from."""
        hkl = present(symbol)
        anomalous = miller.set(symmetry(symbol), as_flex(hkl), anomalous_flag=True).map_to_asu().unique_under_symmetry()
        rng = np.random.default_rng(8)
        # Rayleigh-like, so that they are taken for amplitudes
        F = 100 * np.hypot(*rng.normal(size=(2, anomalous.size()))) + 1
        array = miller.array(anomalous, data=flex.double(F), sigmas=flex.double(F / 50))
        array.set_observation_type_xray_amplitude().as_mtz_dataset("F").mtz_object().write(str(tmp_path / "F.mtz"))
        found, _ = read_amplitudes(tmp_path / "F.mtz")
        with acceptance_report(
            "DB-AT-031", f"amplitudes_{symbol.replace(' ', '_')}", tolerances={"relative": MTZ_RELATIVE}
        ) as values:
            known = dict(zip(map(tuple, np.array(list(anomalous.indices())).tolist()), F.tolist(), strict=True))
            expected = np.array([known[tuple(h)] for h in by_cctbx(symbol, found.hkl).tolist()])
            error = np.abs(found.F / expected - 1).max()
            mate = dict(zip(map(tuple, found.hkl.tolist()), found.F.tolist(), strict=True))
            differ = [abs(mate[tuple(-i for i in h)] / mate[h] - 1) > 0.01 for h in mate]
            values |= {"reflections": len(found.F), "largest relative error": error, "mates that differ": sum(differ)}
            assert error < MTZ_RELATIVE
            assert sum(differ) > 100
