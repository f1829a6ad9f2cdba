"""Boxes whose pixels are not split: what that costs is what was claimed, and less than can be seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.refinement.objective import Objective
from dbex.refinement.parameters import parametrisation
from dbex.refinement.predictions import predict
from dbex.refinement.prior import ModelError, intensity_prior
from dbex.refinement.rounds import objective_for, start
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import UNSEEN, shoeboxes, whole_pixels
from nanobrag_torch.profile import Quadrature
from tests.dbex.stages import map_of
from tests.tolerances import WHOLE_PIXEL_OF_CLAIM

#: Mosaicity (degrees) and size of blocks (Å): small and round spots, narrow ones, and such that the sphere cuts to
#: streaks at any angle to the pixels' edges.
WIDTHS = {"as read": (0.003, 782.0), "wide": (0.1, 300.0), "narrow": (0.05, 3000.0), "streaks": (0.5, 3000.0)}
SPOTS, FINE = 60, 6


def drawn_boxes(still, widths, photons=None):
    """Some spots of the still with such widths, the parametrisation, and their boxes, where so many `photons` are given
    with these in the brightest pixel."""
    map = start(still, Settings())
    map = replace(map, crystal=replace(map.crystal, mosaicity_deg=widths[0], domain_size_A=widths[1]))
    models = map.models(torch.zeros(len(map), dtype=torch.float64))
    spots = predict(models, still.amplitudes, 1.8, 2.0, [panel.shape for panel in still.detector])
    spots = spots.select(np.random.default_rng(0).permutation(len(spots))[:SPOTS])
    boxes = shoeboxes(still, spots, spots)
    if photons is not None:
        boxes = replace(boxes, data=torch.full_like(boxes.data, photons))
    return map, models, boxes


def profiles(still, map, boxes, oversample):
    """Those (N,) of the boxes' own nodes with so many sub-pixels along an edge."""
    hkl, whole = torch.as_tensor(still.amplitudes.hkl[boxes.reflections]), np.zeros(len(boxes), dtype=bool)
    prior = intensity_prior(still.amplitudes, boxes.reflections, ModelError(0.5))
    fit = Objective(boxes, hkl, map, prior, Quadrature(oversample=oversample), torch.ones_like(boxes.data), whole)
    return fit.profiles(torch.zeros(len(map), dtype=torch.float64))[:, 0]


def own(still, boxes):
    return torch.as_tensor(still.amplitudes.hkl[boxes.reflections])[boxes.node[:, 0]]


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_whole_pixel_is_off_by_less_than_is_seen(still, widths):
    """At so many photons that a part of the boxes is taken whole, for several such parts."""
    map, _, boxes = drawn_boxes(still, WIDTHS[widths])
    fine, one = (profiles(still, map, boxes, oversample) for oversample in (FINE, 1))
    off = (boxes.largest((one - fine).abs()) / boxes.largest(fine)).numpy()
    parts = []
    for photons in np.geomspace(0.01, 1e8, 11):
        _, models, boxes = drawn_boxes(still, WIDTHS[widths], photons)
        whole = whole_pixels(models, own(still, boxes), boxes)
        assert (off[whole] * np.sqrt(photons) < WHOLE_PIXEL_OF_CLAIM * UNSEEN).all(), photons
        parts.append(whole.mean())
    assert parts[0] == 1
    assert parts[-1] == 0
    assert (np.diff(parts) <= 0).all()


def test_what_is_wrong_with_a_whole_pixel_is_what_is_claimed_of_wide_spots(still):
    """A third of the signal at which the error is seen: it is claimed of a peak in the middle of a pixel, and is up to
    2.8 times smaller where peaks lie between pixels."""
    map, _, boxes = drawn_boxes(still, WIDTHS["wide"])
    fine, one = (profiles(still, map, boxes, oversample) for oversample in (FINE, 1))
    off = boxes.largest((one - fine).abs()) / boxes.largest(fine)
    for box in range(0, len(boxes), 10):
        _, models, bright = drawn_boxes(still, WIDTHS["wide"], (UNSEEN / (3 * float(off[box]))) ** 2)
        assert whole_pixels(models, own(still, bright), bright)[box]


def test_only_used_pixels_say_how_bright_a_box_is(still):
    _, models, boxes = drawn_boxes(still, WIDTHS["wide"], 1e8)
    assert not whole_pixels(models, own(still, boxes), boxes).any()
    brightest = torch.arange(len(boxes.box)) == torch.nonzero(boxes.box == 0)[0]
    faint = torch.where(brightest, 1e8, 1.0).double()
    spoilt = replace(boxes, data=faint)
    assert whole_pixels(models, own(still, boxes), spoilt).tolist() == [False] + [True] * (len(boxes) - 1)
    assert whole_pixels(models, own(still, boxes), replace(spoilt, used=boxes.used & ~brightest)).all()
    # less than nothing is not bright
    assert whole_pixels(models, own(still, boxes), replace(boxes, data=-boxes.data)).all()


def test_the_narrower_of_two_components_decides(still):
    _, _, boxes = drawn_boxes(still, WIDTHS["streaks"], 5.0)
    crystal = replace(still.crystal, mosaicity_deg=0.5, domain_size_A=3000.0)
    groups = (("orientation", "scale", "size", "mosaicity", "component"), (), ())
    map = parametrisation(crystal, still.detector, still.beam, ((), np.zeros((6, 0))), *groups)
    found = []
    for second_width_deg in (0.5, 0.005):
        wide = replace(map, second_width_deg=second_width_deg)
        models = wide.models(torch.zeros(len(map), dtype=torch.float64))
        found.append(whole_pixels(models, own(still, boxes), boxes))
    assert found[0].sum() > found[1].sum()
    assert not (found[1] & ~found[0]).any()


def test_mixtures_of_many_components_are_always_split(still):
    _, _, boxes = drawn_boxes(still, WIDTHS["wide"], 1.0)
    free_cell = (("cell_a",), np.eye(6)[:, :1])
    simple, mixture = (
        map_of(still.crystal, still.detector, still.beam, free_cell, stage) for stage in ("crystal", "square blocks")
    )
    x = torch.zeros(len(mixture), dtype=torch.float64)
    assert not whole_pixels(mixture.models(x), own(still, boxes), boxes).any()
    # and where a simple model, whose pixels were whole, becomes one
    fit = objective_for(still, simple, boxes, ModelError(0.3))
    assert fit.whole.all()
    richer = replace(fit, map=mixture).prepared(x)
    assert (richer.groups.parts.oversample == richer.rule.oversample).all()
    assert {group.rule for group in richer.groups.groups} == {richer.rule}
