"""A still of a crystal whose lattice has more symmetry than the crystal: P 4, of which two indexings fit the spots."""

from dataclasses import replace

import numpy as np
from cctbx import crystal, miller
from cctbx.array_family import flex
from dxtbx.model import Crystal
from dxtbx.model.experiment_list import Experiment

from dbex.models import create_crystal_config
from dbex.still import Amplitudes
from tests.dbex.refinement.closed_form import drawn_still, truth_of

CELL, D_MIN_A = (34.0, 34.0, 41.0, 90.0, 90.0, 90.0), 2.0
#: The operator of the lattice that is none of the crystal: it turns the whole lattice onto itself.
OTHER_INDEXING = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])


def tetragonal_still(still, seed=5):
    """Drawn on the geometry of `still`, amplitudes of Wilson's statistics, the same for the mates of P 4."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    axes = np.diag(CELL[:3]) @ (turn * np.linalg.det(turn)).T
    read = still.experiment
    grown = replace(still, experiment=with_crystal(read, Crystal(*map(tuple, axes.tolist()), "P 4")))
    grown = replace(
        grown,
        amplitudes=amplitudes_of_P4(rng),
        crystal=create_crystal_config(grown.experiment.crystal, grown.experiment),
    )
    return drawn_still(grown, truth_of(grown), d_min=D_MIN_A)


def with_crystal(experiment, of):
    """The experiment with another crystal."""
    return Experiment(beam=experiment.beam, detector=experiment.detector, crystal=of, imageset=experiment.imageset)


def amplitudes_of_P4(rng):
    """|F| of acentric statistics about the shipped still's sizes, in P1 with Friedel mates."""
    symmetry = crystal.symmetry(unit_cell=CELL, space_group_symbol="P 4")
    unique = miller.build_set(symmetry, anomalous_flag=False, d_min=D_MIN_A)
    F = np.sqrt(rng.exponential(300.0**2, unique.size()))
    full = unique.array(flex.double(F)).expand_to_p1().generate_bijvoet_mates()
    hkl = np.array(full.indices(), dtype=np.int64).reshape(-1, 3)
    F = full.data().as_numpy_array()
    return Amplitudes(hkl, F, 0.01 * F, "F", "P 4", CELL)


def indexed_otherwise(still):
    """The same spots under the other indexing: the same nodes with other names."""
    operator = OTHER_INDEXING
    read = still.experiment
    # q = A h = (A P⁻¹)(P h)
    A = np.array(read.crystal.get_A()).reshape(3, 3) @ np.linalg.inv(operator)
    axes = np.linalg.inv(A)
    other = with_crystal(read, Crystal(*map(tuple, axes.tolist()), "P 4"))
    turned = replace(still.crystal, U=create_crystal_config(other.crystal, other).U)
    observed = replace(still.observed, hkl=still.observed.hkl @ operator.T)
    return replace(still, experiment=other, crystal=turned, observed=observed)
