"""Boxes in groups: what is spread over padded arrays comes back, and every pixel and every node is in one group."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.refinement import groups
from dbex.refinement.groups import DATA, PADDING, distinct_nodes
from dbex.refinement.prior import ModelError
from dbex.refinement.rounds import objective_for
from dbex.refinement.shoeboxes import shoeboxes
from tests.tolerances import COMPILED_RELATIVE


@pytest.fixture(scope="module")
def fit(long_axis):
    """Boxes of many sizes and neighbours, every third with whole pixels."""
    still, map, everything = long_axis
    boxes = shoeboxes(still, everything.select(np.abs(everything.k) < 2.0), everything)
    found = objective_for(still, map, boxes, ModelError(0.3))
    found = replace(found, whole=np.arange(len(boxes)) % 3 == 0).prepared()
    assert len({tuple(group.where.slow.shape) for group in found.groups.groups}) > 3
    return found


def pixels(group):
    return np.arange(group.segment.start, group.segment.stop)


def test_every_box_and_every_pixel_is_in_one_group(fit):
    boxes, found = fit.boxes, fit.groups.groups
    parts = np.concatenate([np.arange(group.part.start, group.part.stop) for group in found])
    np.testing.assert_array_equal(parts, np.arange(len(boxes)))
    np.testing.assert_array_equal(np.concatenate([pixels(group) for group in found]), np.arange(len(boxes.box)))
    for group in found:
        own = boxes.box[group.segment] - group.part.start
        b, p = group.where.slow.shape
        assert b == group.part.stop - group.part.start
        # a row holds the pixels of its box, then padding
        torch.testing.assert_close(group.inner // p, own, rtol=0, atol=0)
        np.testing.assert_array_equal(np.bincount(own, minlength=b), boxes.counts[group.part])
        assert len(set(group.inner.tolist())) == len(own)


def test_values_that_are_spread_and_gathered_are_what_they_were(fit):
    values = torch.rand(len(fit.boxes.box), generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1
    for group in fit.groups.groups:
        array = group.spread(values)
        assert array.shape == group.where.slow.shape
        assert torch.equal(group.gathered(array), values[group.segment])
        assert int((array == 0).sum()) == array.numel() - len(group.inner)
        stacked = torch.stack([array, 2 * array])
        assert torch.equal(group.gathered(stacked), torch.stack([values, 2 * values])[:, group.segment])


def test_padding_stands_where_the_first_pixel_of_its_box_does(fit):
    boxes, padded = fit.boxes, 0
    for group in fit.groups.groups:
        inside = torch.zeros(group.where.slow.numel(), dtype=torch.bool)
        inside[group.inner] = True
        inside = inside.view_as(group.where.slow)
        padded += int((~inside).sum())
        for array, of in ((group.where.slow, boxes.slow), (group.where.fast, boxes.fast)):
            assert torch.equal(group.gathered(array), of[group.segment].double())
            first = array[:, :1].expand_as(array)
            assert torch.equal(array[~inside], first[~inside])
        assert torch.equal(group.where.panel, boxes.panel[group.part])
        if len(group.where) > 1:
            assert len(group.inner) > PADDING * inside.numel()
    assert padded > 0


def test_what_is_given_is_the_basis_and_the_data_without_other_light(fit):
    others = torch.rand(len(fit.boxes.box), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    boxes = replace(fit.boxes, others=others)
    for group in fit.groups.groups:
        found = group.given(boxes)
        assert torch.equal(group.gathered(found.transpose(0, 1))[:DATA].T, boxes.basis[group.segment])
        assert torch.equal(group.gathered(found[:, DATA]), (boxes.data - others)[group.segment])
        inside = torch.zeros_like(found[:, 0]).view(-1)
        inside[group.inner] = 1
        assert not (found * (1 - inside.view_as(found[:, 0]))[:, None]).any()


def test_nodes_of_a_group_are_those_of_its_boxes_sampled_as_their_pixels_are(fit):
    boxes, parts = fit.boxes, fit.groups.parts
    for group in fit.groups.groups:
        here = slice(group.part.start, group.part.stop)
        whole = fit.whole[here]
        assert whole.all() or not whole.any()
        assert group.rule.oversample == (1 if whole[0] else fit.rule.oversample)
        node = boxes.node[here, : group.reach]
        assert (node >= 0).all()
        assert (boxes.node[here, group.reach :] == -1).all()
        assert torch.equal(group.owner, torch.arange(group.reach).expand_as(node))
        assert torch.equal(parts.reflection[group.parts], node)
        assert (parts.panel[group.parts] == boxes.panel[here, None]).all()
        assert (parts.oversample[group.parts] == group.rule.oversample).all()


def test_a_reflection_is_once_among_the_nodes_for_each_way_to_sample_it(fit):
    found = distinct_nodes(fit.boxes, fit.whole)
    names = list(zip(found.reflection, found.panel, found.whole, strict=True))
    assert len(set(names)) == len(names)
    both = set(found.reflection[found.whole]) & set(found.reflection[~found.whole])
    assert both
    first = fit.groups.first
    reflections = found.reflection[fit.groups.parts.node[first].numpy()]
    np.testing.assert_array_equal(reflections, np.arange(len(fit.boxes.reflections)))


def test_the_size_of_groups_changes_nothing(fit, monkeypatch):
    x = torch.zeros(len(fit.map), dtype=torch.float64)
    monkeypatch.setattr(groups, "NODE_PIXELS", 0)
    alone = replace(fit, grouping=None).prepared()
    assert len(alone.groups.groups) == len(fit.boxes)
    torch.testing.assert_close(alone.profiles(x), fit.profiles(x), rtol=COMPILED_RELATIVE, atol=0)


def test_groups_are_kept_while_boxes_rules_and_components_stay(fit):
    assert fit.prepared() is fit
    assert fit.prepared(torch.zeros(len(fit.map), dtype=torch.float64)) is fit
    moved = replace(fit, boxes=fit.boxes.ordered(np.arange(len(fit.boxes))))
    for other in (moved, replace(fit, whole=fit.whole.copy()), replace(fit, whole=None)):
        assert other.prepared().grouping is not fit.grouping
    assert replace(fit, whole=None).prepared().groups.parts.oversample.unique().tolist() == [fit.rule.oversample]
