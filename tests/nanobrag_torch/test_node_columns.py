"""Derivatives of nodes written out, against autograd on the same nodes."""

from dataclasses import replace

import pytest
import torch

from nanobrag_torch.node_columns import cause_rows, node_columns, part_nodes, place_rows
from nanobrag_torch.node_slopes import CAUSES, six
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.profile import Quadrature, causes
from tests import tolerances
from tests.nanobrag_torch.bragg_scene import HKL, LIKE, bragg
from tests.nanobrag_torch.scene import vector
from tests.reverse import reverse_jacobian

SENSOR = {"sensor_thickness_mm": 0.3, "sensor_mu_per_mm": 2.0, "pixel_size_mm": 0.1, "point_spread_mm": 0.02}
BEAM = {"bandwidth": 1e-3, "divergence_h_mrad": 0.4, "divergence_v_mrad": 0.1}
STILL = bragg(
    0.05, {"N_cells": vector(2.0, 3.0, 4.0), "mosaicity_deg": 0.3, "strain": 1e-3, "b_factor_A2": 2.0}, SENSOR, BEAM
)
#: A second panel whose normal points to the crystal, turned about the beam.
BEHIND = replace(STILL.detector[0], slow_axis=-1 * STILL.detector[0].slow_axis, distance_mm=-60.0, origin_slow_mm=-7.0)
PANELS = stack_panels([STILL.detector[0], BEHIND], LIKE)
NODES = torch.cat([HKL, HKL + torch.tensor([[1, 0, 0]]), -HKL, HKL - torch.tensor([[0, 1, 0]])]).double()
COMPONENT, PANEL = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 1])


def numbers_at(shared, rule):
    """All numbers of the nodes from those that they share: the causes of two components, and two panels' places."""
    components, places = shared[: 2 * CAUSES].view(2, CAUSES), shared[2 * CAUSES :].view(2, 11)
    panels = replace(
        PANELS,
        fast=places[:, :3],
        slow=places[:, 3:6],
        normal=places[:, 6:9],
        distance=places[:, 9],
        point_spread=places[:, 10],
    )
    at = part_nodes(components, COMPONENT, panels, NODES, PANEL, rule)
    return components, panels, at


@pytest.mark.parametrize("rule", [Quadrature(), Quadrature(oversample=1, layers=3)], ids=str)
@pytest.mark.parametrize("seed", range(25))
def test_every_number_of_a_node_follows_all_that_it_is_made_of(rule, seed):
    ln_scale, offset = LIKE + vector(2.0, 1.0), torch.stack([vector(0.0, 0.0, 0.0), vector(0.2, -0.1, 0.4)])
    first, second = cause_rows(causes(STILL.crystal, STILL.beam, ln_scale, offset))
    generator = torch.Generator().manual_seed(seed)
    shared = torch.cat([first, second, place_rows(PANELS).flatten()])
    shared = shared * (1 + 0.03 * torch.randn(shared.shape, generator=generator, dtype=shared.dtype))
    components, panels, _ = numbers_at(shared, rule)
    # covariances are symmetric, and so are their changes
    symmetric = torch.eye(CAUSES, dtype=shared.dtype)
    for first_of in (9, 18, 27):
        block = slice(first_of, first_of + 9)
        symmetric[block, block] += torch.eye(9, dtype=shared.dtype).view(9, 3, 3).transpose(1, 2).reshape(9, 9)
    changes = torch.block_diag(symmetric, symmetric, torch.eye(22, dtype=shared.dtype))
    components = (components.flatten() @ torch.block_diag(symmetric, symmetric)).view(2, CAUSES)
    shared = torch.cat([components.flatten(), shared[2 * CAUSES :]])

    def numbers(x):
        _, _, at = numbers_at(shared + changes.T @ x, rule)
        return at.q, six(at.covariance), at.ln_amplitude

    n = len(shared)
    by_components, by_panels = changes.T[: 2 * CAUSES].view(2, CAUSES, n), changes.T[2 * CAUSES :].view(2, 11, n)
    found = node_columns(components, COMPONENT, panels, NODES, PANEL, rule, (by_components, by_panels))
    expected = reverse_jacobian(numbers, torch.zeros(n, dtype=shared.dtype))
    for mine, theirs in zip((found.q, found.covariance, found.ln_amplitude), expected, strict=True):
        size = theirs.abs().amax(tuple(range(theirs.ndim - 1)), keepdim=True)
        assert (size > 0).sum() > n / 5
        assert ((mine - theirs).abs() <= tolerances.CLOSED_FORM_JACOBIAN_RELATIVE * size).all()
