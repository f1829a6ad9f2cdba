"""Divergence, point spread and a spread of the cell: found where they were drawn, and told apart or named."""

from dataclasses import replace

import numpy as np
import pytest

from dbex.errors import BadInput
from dbex.io.results import refined_experiment
from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings
from dbex.refinement.widths import FIRST, WIDTHS, begun
from nanobrag_torch.config import override
from tests.dbex.refinement.closed_form import drawn_still, truth_of
from tests.tolerances import TRUTH_ESDS

#: What is drawn, in the unit that is reported: none is what a width begins with.
DRAWN = {"divergence_h": 0.45, "divergence_v": 0.2, "point_spread": 0.7, "cell_spread": 6e-4}
#: As fine as they need, A.
D_MIN_A = 1.7
#: The terms, and the widths of each.
TERMS = {
    "divergence": ("divergence_h", "divergence_v"),
    "point_spread": ("point_spread",),
    "cell_spread": ("cell_spread",),
}


def wide(still, names):
    """An image drawn with these widths, of a still that knows nothing of them."""
    crystal, detector, beam = begun(still.crystal, still.detector, still.beam, names, DRAWN)
    blurred = replace(still, crystal=crystal, detector=detector, beam=beam)
    found = drawn_still(blurred, truth_of(blurred), d_min=D_MIN_A)
    return replace(found, crystal=still.crystal, detector=still.detector, beam=still.beam)


def told(refined):
    return {e.name: e for e in refined.estimates}


@pytest.mark.parametrize("term", TERMS)
def test_a_width_that_was_drawn_is_asked_for_kept_and_found_within_its_esds(still, term):
    found = refine_still(wide(still, TERMS[term]), Settings(terms=(term,)))
    (trial,) = found.terms
    assert trial.kept
    assert trial.promised > trial.cost
    assert found.verdict.state == "good"
    for name in TERMS[term]:
        estimate = told(found)[name]
        assert estimate.before == 0.0
        assert abs(estimate.after - DRAWN[name]) < TRUTH_ESDS * estimate.esd, name
        # the data have told it: it is neither what it began with nor its prior
        assert estimate.esd < 0.2 * estimate.after
        assert abs(estimate.after - FIRST[name]) > TRUTH_ESDS * estimate.esd


def test_widths_that_are_not_there_promise_too_little_to_be_tried(drawn):
    found = refine_still(drawn[0], Settings(terms=("bandwidth", "divergence", "point_spread")))
    assert [trial.name for trial in found.terms] == ["bandwidth", "divergence", "point_spread"]
    assert all(trial.gain is None and not trial.kept for trial in found.terms)


@pytest.fixture(scope="module")
def freed(still):
    """All of them drawn, and freed on request; with terms of which one still cannot tell them."""
    settings = Settings(
        crystal=(*Settings().crystal, "cell_spread"),
        detector=("point_spread",),
        beam=("divergence",),
        terms=("bandwidth", "size_tensor", "divergence", "point_spread"),
    )
    return refine_still(wide(still, DRAWN), settings)


def test_widths_that_are_freed_together_are_found_within_their_esds(freed):
    assert freed.verdict.state == "good"
    for name, value in DRAWN.items():
        assert abs(told(freed)[name].after - value) < TRUTH_ESDS * told(freed)[name].esd, name
    assert [told(freed)[name].unit for name in DRAWN] == ["mrad", "mrad", "px", ""]


def test_what_one_still_cannot_tell_from_what_is_free_is_not_tried_beside_it(freed):
    """A bandwidth from a spread of the cell, a tensor of block sizes from a divergence."""
    assert freed.terms == ()
    assert freed.same_on_one_still() == {"cell_spread": "bandwidth"}


def test_a_still_hardly_tells_divergence_point_spread_and_size_apart_and_the_covariance_says_so(freed):
    """All three widen spots on the detector by what no |q| changes: each is mostly a combination of the others."""
    names = list(told(freed))
    esd = np.sqrt(np.diag(freed.covariance))
    correlation = freed.covariance / np.outer(esd, esd)
    among = [names.index(name) for name in ("divergence_h", "divergence_v", "point_spread", "domain_size")]
    inverse = np.linalg.inv(correlation[np.ix_(among, among)])
    multiple = np.sqrt(1 - 1 / np.diag(inverse))
    assert (multiple > 0.7).all()
    assert (multiple < 0.99).all()


def test_what_was_found_is_in_the_models_that_are_written(freed):
    after = told(freed)
    assert freed.crystal.strain == pytest.approx(after["cell_spread"].after)
    assert freed.beam.divergence_h_mrad == pytest.approx(after["divergence_h"].after)
    panel = freed.detector[0]
    assert panel.point_spread_mm / panel.pixel_size_mm == pytest.approx(after["point_spread"].after)
    beam = refined_experiment(freed).beam
    mean_square = (after["divergence_h"].after ** 2 + after["divergence_v"].after ** 2) / 2
    assert beam.get_sigma_divergence(deg=False) == pytest.approx(1e-3 * np.sqrt(mean_square))
    assert beam.get_divergence(deg=False) == pytest.approx(2.354820 * beam.get_sigma_divergence(deg=False))


def test_a_width_that_is_nothing_begins_at_its_first_value_and_no_other_changes(still):
    for name, width in WIDTHS.items():
        crystal, detector, beam = begun(still.crystal, still.detector, still.beam, [name])
        records = {"crystal": crystal, "detector": detector[0], "beam": beam}
        unit = detector[0].pixel_size_mm if width.record == "detector" else 1.0
        assert getattr(records[width.record], width.field) == pytest.approx(FIRST[name] * unit)
        again = begun(crystal, detector, beam, [name], dict.fromkeys(WIDTHS, 7.0))
        assert again == (crystal, detector, beam)
        records[width.record] = override(records[width.record], {width.field: 0.0})
        assert records == {"crystal": still.crystal, "detector": still.detector[0], "beam": still.beam}


def test_a_bandwidth_and_a_spread_of_the_cell_are_refused_together():
    with pytest.raises(BadInput, match="nothing tells the two apart; expected one of them"):
        Settings(crystal=("orientation", "cell_spread"), beam=("bandwidth",))
