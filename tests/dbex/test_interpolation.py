"""DB-AT-025: while |F| is interpolated no default_F enters unseen, and where all neighbours are listed none enters."""

import pytest
import torch

from nanobrag_torch.config import override
from nanobrag_torch.lattice import fractional_hkl, reciprocal_basis
from nanobrag_torch.panel import Pixels, pixel_positions, stack_panels
from nanobrag_torch.simulate import simulate_counting
from nanobrag_torch.structure_factors import from_list
from nanobrag_torch.tensors import as_tensor, unit
from tests.dbex.conftest import SHIPPED
from tests.reports import acceptance_report

LIKE = torch.zeros((), dtype=torch.float64)
NAN = float("nan")
BLOCK = {"domain_size_A": None, "shape": "square", "N_cells": (2.0, 3.0, 2.0), "mosaicity_deg": 0.0}


@pytest.fixture(scope="module")
def spots(still):
    """The pixels of every indexed spot's box."""
    rows = [
        (panel, slow, fast)
        for panel, (x0, x1, y0, y1) in zip(still.observed.panel.tolist(), still.observed.bbox.tolist(), strict=True)
        for slow in range(y0, y1)
        for fast in range(x0, x1)
    ]
    return Pixels(*torch.tensor(rows).T)


@pytest.fixture(scope="module")
def listed(still):
    return torch.as_tensor(still.amplitudes.hkl), torch.as_tensor(still.amplitudes.F)


def indices(still, pixels):
    """Fractional indices (n, 3) of pixels' centres."""
    panels = stack_panels(still.detector, LIKE)
    position = pixel_positions(panels, pixels.panel, pixels.slow + 0.5, pixels.fast + 0.5)
    q = (unit(position) - as_tensor(still.beam.direction, LIKE)) / still.beam.wavelength_A
    return fractional_hkl(q, reciprocal_basis(still.crystal, LIKE))


def interpolated(still, pixels, hkl, F, default_F):
    """The image (n,) of small blocks, one sample a pixel, and the number of lookups that default_F entered."""
    crystal = override(still.crystal, BLOCK)
    panels = [override(panel, {"oversample": 1, "parallax": False, "depth_layers": 1}) for panel in still.detector]
    factors = from_list(hkl, F, default_F=default_F)
    image, missed = simulate_counting(crystal, panels, still.beam, factors, pixels=pixels, interpolate=True)
    return image, int(missed)


def neighbours(h):
    """All nodes (m, 3) of the cubes of 4 x 4 x 4 around fractional indices (n, 3): a halo of one around each cell."""
    steps = torch.arange(-1, 3)
    cube = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    return torch.unique((torch.floor(h).long()[:, None] + cube).reshape(-1, 3), dim=0)


class TestDB_AT_025_NoDefaultF:
    def test_db_at_025_with_all_neighbours_listed_no_default_enters(self, still, spots):
        """A list that holds the halo of every lookup, and NaN for whatever else is asked for."""
        hkl = neighbours(indices(still, spots))
        F = 50 + 40 * torch.sin(hkl.to(torch.float64) @ torch.tensor([1.0, 2.3, 3.7], dtype=torch.float64))
        with acceptance_report("DB-AT-025", "complete", tolerances={"lookups": 0}, inputs=tuple(SHIPPED)) as values:
            image, missed = interpolated(still, spots, hkl, F, NAN)
            values["pixels"], values["lookups that default_F entered"] = len(spots), missed
            assert missed == 0
            assert torch.isfinite(image).all()
            assert (image > 0).all()

    def test_db_at_025_a_halo_that_is_too_narrow_is_counted(self, still, spots):
        """Without the outermost nodes along l of the list, every lookup that needed one of them is told."""
        h = indices(still, spots)
        hkl = neighbours(h)
        inner = hkl[hkl[:, 2] < hkl[:, 2].max()]
        needs = int((torch.floor(h[:, 2]).long() + 2 == hkl[:, 2].max()).sum())
        with acceptance_report("DB-AT-025", "narrow_halo", tolerances={"lookups": 0}, inputs=tuple(SHIPPED)) as values:
            _, missed = interpolated(still, spots, inner, torch.ones(len(inner), dtype=torch.float64), 0.0)
            values["lookups that default_F entered"], values["lookups that needed it"] = missed, needs
            assert missed == needs > 0

    def test_db_at_025_what_the_mtz_lacks_is_reported_to_the_lookup(self, still, spots, listed):
        """The shipped amplitudes: as many lookups are told as pixels turn NaN when default_F is NaN."""
        with acceptance_report("DB-AT-025", "shipped", tolerances={"lookups": 0}, inputs=tuple(SHIPPED)) as values:
            image, missed = interpolated(still, spots, *listed, NAN)
            values["pixels"], values["lookups that default_F entered"] = len(spots), missed
            values["pixels that it reached"] = int(torch.isnan(image).sum())
            assert missed == values["pixels that it reached"] > 0
            complete = Pixels(*(column[torch.isfinite(image)] for column in (spots.panel, spots.slow, spots.fast)))
            again, none = interpolated(still, complete, *listed, NAN)
            assert none == 0
            assert torch.equal(again, image[torch.isfinite(image)])

    def test_db_at_025_without_interpolation_nothing_is_asked_of_neighbours(self, still, spots, listed):
        with acceptance_report("DB-AT-025", "nearest", tolerances={}, inputs=tuple(SHIPPED)) as values:
            crystal = override(still.crystal, BLOCK)
            factors = from_list(*listed, default_F=0.0)
            image, missed = simulate_counting(crystal, list(still.detector), still.beam, factors, pixels=spots)
            values["pixels"], values["lookups that default_F entered"] = len(image), int(missed)
            assert int(missed) == 0
