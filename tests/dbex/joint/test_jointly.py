"""DB-AT-070: detector, wavelengths and |F|² from several stills at once, and the same as from one dense system."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.io.merged import groups_of, in_asymmetric_unit
from dbex.joint.conclude import conclude
from dbex.joint.merging import known_squares, merged, observations
from dbex.joint.normal_equations import own_places, reduced
from dbex.joint.shared import Sharing
from dbex.joint.solve import solve
from dbex.joint.visits import Visitor
from dbex.observations import together
from nanobrag_torch.config import override
from tests.dbex.conftest import SHIPPED
from tests.dbex.joint.conftest import SETTINGS, TURNS, turned
from tests.dbex.joint.drawing import ended, shared_truth
from tests.dbex.refinement.closed_form import drawn_still, truth_of
from tests.reports import acceptance_report
from tests.tolerances import COVERAGE_68_OF_MEANS, DENSE_ESDS, TRUTH_OF_SHARED_ESDS, WITHIN_THREE_ESDS

OFF_ESDS = 0.5
#: By how much the wavelengths of three shots differ from that which was read, and the prior of such differences.
SHOTS, SPREAD = (-1.5e-3, 0.4e-3, 1.1e-3), 2e-3
INPUTS = tuple(SHIPPED)


@pytest.fixture(scope="module")
def shots(still, tmp_path_factory):
    """Three stills drawn with wavelengths of their own, refined jointly from one: the solution and what was drawn."""
    settings = replace(
        SETTINGS, d_min=2.4, beam=("wavelength",), priors={"wavelength": SPREAD * still.beam.wavelength_A}
    )
    stills = []
    for number, (turn, off) in enumerate(zip(TURNS, SHOTS, strict=True)):
        shot = override(still.beam, {"wavelength_A": still.beam.wavelength_A * (1 + off)})
        one = turned(replace(still, name=f"shot {number}", beam=shot), turn)
        drawn = drawn_still(one, truth_of(one, SETTINGS), seed=10 + number, d_min=2.2)
        stills.append(replace(drawn, beam=still.beam))
    sharing = Sharing(SETTINGS.detector, cell=True)
    visitor = Visitor(stills.__getitem__, settings, sharing, still.detector, tmp_path_factory.mktemp("shots"))
    joint = solve(visitor, range(len(stills)), still.beam, map, settings.max_iterations, lambda line: None)
    return visitor, joint


class TestDB_AT_070_Joint:
    def test_db_at_070_the_detector_is_found_within_its_esds(self, drawn_jointly):
        with acceptance_report(
            "DB-AT-070", "detector", tolerances={"esds": TRUTH_OF_SHARED_ESDS}, inputs=INPUTS
        ) as values:
            joint = drawn_jointly.joint
            z = (joint.g - shared_truth(drawn_jointly)) / np.sqrt(np.diag(joint.covariance))
            values |= dict(zip([p.name for p in joint.common.parameters], z.tolist(), strict=True))
            assert joint.solution.converged
            assert np.abs(shared_truth(drawn_jointly) / np.sqrt(np.diag(joint.covariance))).max() > 10
            assert np.abs(z).max() < TRUTH_OF_SHARED_ESDS

    @pytest.mark.full_profile
    def test_db_at_070_wavelengths_from_shot_to_shot_are_found_with_one_cell(self, shots, still):
        """Their differences: what all have in common is the cell's, but for the prior."""
        visitor, joint = shots
        with acceptance_report(
            "DB-AT-070", "wavelengths", tolerances={"esds": TRUTH_OF_SHARED_ESDS}, inputs=INPUTS
        ) as values:
            ends = [visitor.ended(joint.task(place)) for place in range(len(SHOTS))]
            found = np.array([own_wavelength(final) for _, final in ends])
            esd = np.array([esd_with_shared_held(final, joint.common) for _, final in ends])
            true = still.beam.wavelength_A * (1 + np.array(SHOTS))
            error = (found - found.mean()) - (true - true.mean())
            values |= {"found, Å": found, "true, Å": true, "esds of differences, Å": esd, "errors in esds": error / esd}
            assert joint.solution.converged
            assert np.abs((true - true.mean()) / esd).min() > 10
            assert np.abs(error / esd).max() < TRUTH_OF_SHARED_ESDS

    def test_db_at_070_merged_intensities_are_within_their_esds(self, drawn_jointly):
        tolerances = {"within one esd": COVERAGE_68_OF_MEANS, "within three esds": WITHIN_THREE_ESDS}
        with acceptance_report("DB-AT-070", "intensities", tolerances=tolerances, inputs=INPUTS) as values:
            visitor, joint, amplitudes = drawn_jointly.visitor, drawn_jointly.joint, drawn_jointly.stills[0].amplitudes
            parts = []
            for place in range(len(drawn_jointly.stills)):
                refined = conclude(*_still_and_settings(visitor, joint, place))
                parts.append(observations(refined.boxes, place, joint.state.visited[place].noise))
            found = together(parts)
            unique, group = groups_of(*in_asymmetric_unit(found.hkl, amplitudes.space_group))
            means = merged(found, group, len(unique))
            z = (means.value - known_squares(found, group, len(unique), amplitudes)) / means.sigma
            values |= {
                "reflections": len(z),
                "within one esd": (np.abs(z) < 1).mean(),
                "within three esds": (np.abs(z) < 3).mean(),
                "seen more than once": int((means.count > 1).sum()),
            }
            assert len(z) > 100
            assert abs(values["within one esd"] - 0.6827) < COVERAGE_68_OF_MEANS
            assert values["within three esds"] > WITHIN_THREE_ESDS

    def test_db_at_070_the_joint_step_is_that_of_the_dense_normal_equations(self, drawn_jointly):
        """Three stills half an esd away from their optimum, each in all of its numbers."""
        rng = np.random.default_rng(3)
        common = drawn_jointly.joint.common
        parts, size = [], len(common.parameters)
        for final in ended(drawn_jointly):
            places = common.places(final.objective.map)
            x = final.solution.x + OFF_ESDS * rng.normal(size=len(final.solution.x)) * np.sqrt(
                np.diag(np.linalg.inv(final.solution.matrix))
            )
            x[places] = drawn_jointly.joint.g * 1.001
            problem = final.problem
            parts.append((*problem.normal(x, problem.start(x)), places))
        total = size + sum(len(gradient) - size for _, gradient, _ in parts)
        dense, right, first = np.zeros((total, total)), np.zeros(total), size
        S, s, own = np.zeros((size, size)), np.zeros(size), []
        for matrix, gradient, places in parts:
            mine = own_places(len(gradient), places)
            where = np.empty(len(gradient), dtype=int)
            where[places], where[mine] = np.arange(size), first + np.arange(len(mine))
            dense[np.ix_(where, where)] += matrix
            right[where] += gradient
            first += len(mine)
            own.append(reduced(matrix, gradient, places))
            S, s = S + own[-1].matrix, s + own[-1].gradient
        step = np.linalg.solve(S, s)
        joint = np.concatenate([step, *(part.own_change(step) for part in own)])
        scale = 1 / np.sqrt(np.diag(dense))
        inverse = np.linalg.inv(dense * np.outer(scale, scale)) * np.outer(scale, scale)
        esds = np.sqrt(np.diag(inverse))
        difference = joint - scale * np.linalg.solve(dense * np.outer(scale, scale), scale * right)
        with acceptance_report("DB-AT-070", "dense", tolerances={"esds": DENSE_ESDS}, inputs=INPUTS) as values:
            values["numbers"], values["largest difference, esds"] = total, np.abs(difference / esds).max()
            assert np.abs(right).max() > 0
            assert values["largest difference, esds"] < DENSE_ESDS
            assert np.linalg.inv(S) == pytest.approx(inverse[:size, :size], rel=1e-6)


def own_wavelength(final):
    """The wavelength of a still's last round, Å."""
    return float(final.objective.map.models(torch.as_tensor(final.solution.x)).beam.wavelength_A)


def esd_with_shared_held(final, common):
    """The esd of a still's wavelength, Å, when what it shares is known: that of differences between shots."""
    own = own_places(len(final.solution.x), common.places(final.objective.map))
    matrix = final.problem.normal(final.solution.x, final.state)[0][np.ix_(own, own)]
    place = own.tolist().index(final.objective.map.place("wavelength"))
    return own_wavelength(final) * np.sqrt(np.linalg.inv(matrix)[place, place])


def _still_and_settings(visitor, joint, place):
    still, final = visitor.ended(joint.task(place))
    return still, visitor.settings, final
