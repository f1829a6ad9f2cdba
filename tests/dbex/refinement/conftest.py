"""Whole refinements that several tests look at, each done once."""

import pytest

from tests.dbex.refinement.closed_form import drawn_still, truth_of
from tests.dbex.refinement.long_axis import long_axis_still

DEMO = ("distance", "shift")


@pytest.fixture(scope="session")
def refined(still):
    """The shipped still as `make demo` refines it."""
    from dbex.refinement.refine import refine_still
    from dbex.refinement.settings import Settings

    return refine_still(still, Settings(detector=DEMO))


@pytest.fixture(scope="session")
def drawn(still):
    """A still drawn from the closed form, and the truth it was drawn from: the shipped models, with other widths."""
    truth = truth_of(still)
    return drawn_still(still, truth), truth


@pytest.fixture(scope="session")
def long_axis(still):
    """A still whose spots lie five pixels apart, the parametrisation about its truth, and all its predictions."""
    return long_axis_still(still)
