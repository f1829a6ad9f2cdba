"""What follows from a still's coordinates, and its derivatives, in every stage: against the reverse mode."""

import pytest
import torch

from dbex.cell_symmetry import free_cell_parameters
from dbex.refinement.captured import wave_numbers
from dbex.refinement.conclude import reported_slopes
from dbex.refinement.objective import component_rows
from dbex.refinement.predictions import components_seen
from dbex.refinement.search import spot_offsets
from nanobrag_torch.fused import ray_numbers
from nanobrag_torch.jacobian import jacobian
from tests.dbex.stages import STAGES, map_of, steps_of
from tests.differences import extrapolated_difference
from tests.reverse import largest_difference, reverse_jacobian
from tests.tolerances import CLOSED_FORM_JACOBIAN_RELATIVE, EXTRAPOLATED_DIFFERENCE_RELATIVE, FORWARD_RELATIVE


@pytest.fixture(params=STAGES)
def map(request, still):
    free_cell = free_cell_parameters(still.experiment.crystal.get_space_group())
    return map_of(still.crystal, still.detector, still.beam, free_cell, request.param)


@pytest.fixture(params=[0, 10], ids=["at the start", "off it"])
def x(request, map):
    return request.param * steps_of(map) * torch.rand(len(map), generator=torch.Generator().manual_seed(3)).double()


def test_numbers_of_nodes_rays_and_spots_have_their_derivatives(still, map, x):
    spots = still.observed
    hkl, panel = torch.as_tensor(spots.hkl, dtype=x.dtype), torch.as_tensor(spots.panel)

    def numbers(x):
        models = map.models(x)
        rows, of_rays = component_rows(models), ray_numbers(models.panels, models.beam)
        offset, angle = spot_offsets(models, hkl, panel, torch.as_tensor(spots.xy_px))
        return (*wave_numbers(models.beam, x), rows, *of_rays, models.panels.distance, offset, angle)

    assert largest_difference(jacobian(numbers, x), reverse_jacobian(numbers, x)) < FORWARD_RELATIVE


def test_partialities_have_their_derivatives(still, map, x):
    hkl = torch.as_tensor(still.observed.hkl, dtype=x.dtype)

    def numbers(x):
        seen = components_seen(map.models(x), hkl)
        return (seen.k, seen.share, *(each.width for each in seen.each))

    assert largest_difference(jacobian(numbers, x), reverse_jacobian(numbers, x)) < CLOSED_FORM_JACOBIAN_RELATIVE


def test_panels_have_their_derivatives(map, x):
    panels = map.models(x).panels
    names = ("fast", "slow", "normal", "origin", "distance", "point_spread")
    found = map.panel_slopes(x, panels)
    expected = reverse_jacobian(lambda x: [getattr(map.models(x).panels, name) for name in names], x)
    assert largest_difference([getattr(found, name) for name in names], expected) < FORWARD_RELATIVE


def test_panels_that_are_there_already_are_not_moved_again(map, x):
    panels = map.models(x).panels
    assert map.models(x, panels).panels is panels


def test_reported_values_have_their_derivatives(map, x):
    found = torch.as_tensor(reported_slopes(map, x))
    (expected,) = reverse_jacobian(lambda x: (map.reported(x),), x)
    assert largest_difference((found,), (expected,)) < FORWARD_RELATIVE
    direction = steps_of(map)
    for i, name in enumerate(map.names):
        difference = extrapolated_difference(lambda x, name=name: map.value(name, x), x, direction)
        size = float((found[i] * direction).abs().max())
        assert abs(float(found[i] @ direction) - difference) <= EXTRAPOLATED_DIFFERENCE_RELATIVE * size, name
