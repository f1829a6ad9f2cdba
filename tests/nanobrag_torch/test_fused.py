"""The pass over shoeboxes against the readable profile, and its derivatives against autograd, column by column."""

from dataclasses import replace

import pytest
import torch

from nanobrag_torch.fused import (
    BoxPixels,
    NodeColumns,
    box_derivatives,
    box_profiles,
    node_maps,
    node_rows,
    ray_columns,
    ray_numbers,
    scene,
)
from nanobrag_torch.jacobian import jacobian
from nanobrag_torch.node_slopes import six
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.profile import Pairs, Quadrature, nodes, pair_intensities
from nanobrag_torch.rotation import rotation_from_vector
from tests import tolerances
from tests.nanobrag_torch.bragg_scene import HKL, LIKE, bragg
from tests.nanobrag_torch.scene import vector

SENSOR = {"sensor_thickness_mm": 0.3, "sensor_mu_per_mm": 2.0, "pixel_size_mm": 0.1}
#: Blocks of eight cells, so wide that neighbours overlap.
BLOCKS = {"N_cells": vector(2.0, 2.0, 2.0), "mosaicity_deg": 0.3, "strain": 1e-3}
STILL = bragg(0.05, BLOCKS, SENSOR, {"bandwidth": 1e-3})
#: A second panel beside the first whose normal points to the crystal.
BEHIND = replace(STILL.detector[0], slow_axis=-1 * STILL.detector[0].slow_axis, distance_mm=-60.0, origin_slow_mm=-7.0)
PANELS = stack_panels([STILL.detector[0], BEHIND], LIKE)
RULES = [Quadrature(), Quadrature(oversample=1), Quadrature(oversample=1, layers=3)]
#: Two boxes of 25 pixels, one on each panel, each with a node of its own and a neighbour's tails.
NODES = torch.cat([HKL, HKL + torch.tensor([[1, 0, 0]]), HKL, HKL - torch.tensor([[0, 1, 0]])])
GRID = torch.cartesian_prod(torch.arange(5), torch.arange(5))
BOXES = BoxPixels(
    torch.tensor([0, 1]), torch.stack([GRID[:, 0] + 8, GRID[:, 0] + 9]), torch.stack([GRID[:, 1] + 9, GRID[:, 1] + 12])
)
#: Intensities; noise made one of them negative.
WEIGHTS = vector(900.0, -250.0, 400.0, 1600.0).view(2, 2)

#: Turns of the crystal (3), ln a, ln mosaicity, B and ln scale; then shifts (3) and turns (3) of the detector about an
#: axis off the crystal, ln wavelength and two turns of the beam.
X = vector(0.01, -0.02, 0.015, 1e-4, 0.1, 2.0, 0.3, 0.01, -0.02, 0.03, 1e-4, -2e-4, 1e-4, 1e-4, 1e-4, -1e-4)


def geometry(x):
    turn = rotation_from_vector(x[10:13])
    pivot = vector(10.0, 5.0, -60.0)
    fast, slow, normal = (axes @ turn.T for axes in (PANELS.fast, PANELS.slow, PANELS.normal))
    origin = (PANELS.origin - pivot) @ turn.T + pivot + x[7:10]
    panels = replace(PANELS, fast=fast, slow=slow, normal=normal, origin=origin, distance=(origin * normal).sum(-1))
    direction = vector(*STILL.beam.direction) + torch.stack([x[14], x[15], 0 * x[14]])
    return panels, replace(STILL.beam, wavelength_A=STILL.beam.wavelength_A * torch.exp(x[13]), direction=direction)


def nodes_at(x, rule):
    """The nodes of both boxes at x."""
    crystal = replace(
        STILL.crystal,
        misset_deg=x[:3],
        cell_a=STILL.crystal.cell_a * torch.exp(x[3]),
        mosaicity_deg=0.3 * torch.exp(x[4]),
        b_factor_A2=x[5],
    )
    panels, beam = geometry(x)
    return nodes(crystal, panels, beam, NODES, torch.tensor([0, 0, 1, 1]), 3 + x[6], rule)


def rows_of(at):
    """Two nodes of each box."""
    return node_rows(at).unflatten(1, (2, 2))


def readable(x, rule):
    """The profiles (boxes, pixels, nodes) by the readable closed form."""
    panels, beam = geometry(x)
    pixels = tuple(column.flatten() for column in (BOXES.panel[:, None].expand(2, 25), BOXES.slow, BOXES.fast))
    columns = []
    for k in range(2):
        pairs = Pairs(torch.arange(50), torch.tensor([k, 2 + k]).repeat_interleave(25))
        columns.append(pair_intensities(nodes_at(x, rule), panels, beam, pixels, pairs, rule).view(2, 25))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_box_holds_the_profiles_of_its_nodes(rule):
    found = box_profiles(rows_of(nodes_at(X, rule)), scene(*geometry(X), BOXES, rule)).transpose(1, 2)
    expected = readable(X, rule)
    assert expected.amax(1).min() > 1e-6 * expected.max()
    assert torch.allclose(found, expected, rtol=tolerances.CLOSED_FORM_JACOBIAN_RELATIVE, atol=0)


@pytest.mark.parametrize("polarized", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_column_is_that_of_autograd_through_the_readable_profile(rule, polarized, monkeypatch):
    fraction = 0.9 if polarized else None
    monkeypatch.setattr(f"{__name__}.STILL", replace(STILL, beam=replace(STILL.beam, polarization_fraction=fraction)))

    def numbers(x):
        at = nodes_at(x, rule)
        return at.q, six(at.covariance), at.ln_amplitude

    panels, beam = geometry(X)
    at = nodes_at(X, rule)
    maps = node_maps(at, NodeColumns(*jacobian(numbers, X))).unflatten(1, (2, 2))
    rays = ray_columns(panels, jacobian(lambda x: ray_numbers(*geometry(x)), X)).of(BOXES.panel)
    root = torch.ones_like(BOXES.slow, dtype=X.dtype)
    derivatives = box_derivatives(rows_of(at), maps, WEIGHTS, scene(panels, beam, BOXES, rule), root, rays)
    found = derivatives.times(derivatives.sums.transpose(1, 2))
    expected = torch.autograd.functional.jacobian(lambda x: (readable(x, rule) * WEIGHTS[:, None]).sum(-1), X)
    for column in range(len(X)):
        size = expected[..., column].abs().amax(1, keepdim=True)
        assert (size > 0).all()
        error = (found[..., column] - expected[..., column]).abs()
        assert (error < tolerances.CLOSED_FORM_JACOBIAN_RELATIVE * size).all(), column
