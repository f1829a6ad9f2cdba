"""Boxes in groups: every pixel is in one, with the nodes that reach it, and what fills arrays up counts for nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dbex.refinement import groups
from dbex.refinement.groups import DATA, FIRST_NODE, MOSTLY_REAL, _filled_up, distinct_nodes, in_tiles
from dbex.refinement.prior import ModelError
from dbex.refinement.rounds import objective_for, where_lit
from dbex.refinement.shoeboxes import shoeboxes
from tests.tolerances import COMPILED_RELATIVE


@pytest.fixture(scope="module")
def fit(long_axis):
    """Boxes of many sizes and neighbours, every third with whole pixels, and pixels that nothing lights."""
    still, map, everything = long_axis
    boxes = shoeboxes(still, everything.select(np.abs(everything.k) < 2.0), everything)
    x = np.zeros(len(map))
    found = where_lit(still, objective_for(still, map, boxes, ModelError(0.3), x), ModelError(0.3), x)
    whole = np.arange(len(boxes)) % 3 == 0
    dark = replace(found.boxes, reach=found.boxes.reach * (found.boxes.slow % 4 > 0))
    found = replace(found, whole=whole, boxes=in_tiles(dark, whole)).prepared()
    assert len({tuple(group.where.slow.shape) for group in found.groups.groups}) > 3
    assert {0, 1, 2} <= {group.reach for group in found.groups.groups}
    return found


def pixels(group):
    return np.arange(group.segment.start, group.segment.stop)


def test_every_pixel_is_in_one_group_with_those_of_its_box_that_as_many_nodes_reach(fit):
    boxes, found = fit.boxes, fit.groups.groups
    np.testing.assert_array_equal(np.concatenate([pixels(group) for group in found]), np.arange(len(boxes.box)))
    tiles = np.concatenate([np.stack([group.box, np.full(len(group.box), group.reach)], 1) for group in found])
    assert len(np.unique(tiles, axis=0)) == len(tiles)
    for group in found:
        assert len(group.box) == len(group.where)
        assert (group.of(boxes.box) == group.box[:, None]).all()
        assert (boxes.reach[group.segment] == group.reach).all()


def test_pixels_that_fill_up_a_tile_stand_where_its_first_does_and_count_for_nothing(fit):
    boxes = fit.boxes
    for group in fit.groups.groups:
        real = group.of(boxes.real)
        # those of a tile come first
        assert (real[:, :-1] | ~real[:, 1:]).all()
        assert real[:, 0].all()
        assert not group.of(boxes.used)[~real].any()
        for array, of in ((group.where.slow, boxes.slow), (group.where.fast, boxes.fast)):
            assert torch.equal(array, group.of(of).double())
            assert torch.equal(array[~real], array[:, :1].expand_as(array)[~real])
        assert torch.equal(group.where.panel, boxes.panel[group.box])
    assert not boxes.real.all()


@pytest.mark.parametrize("spare", [0, 100])
def test_tiles_are_filled_up_to_the_largest_that_is_about_as_large(spare, monkeypatch):
    monkeypatch.setattr(groups, "SPARE", spare)
    rng = np.random.default_rng(4)
    kind = np.sort(rng.integers(3, size=200))
    counts = np.concatenate([np.sort(rng.integers(1, 300, size=int((kind == k).sum()))) for k in range(3)])
    width = _filled_up(kind, counts)
    first = np.flatnonzero((np.diff(width, prepend=0) != 0) | (np.diff(kind, prepend=-1) != 0))
    for run in np.split(np.arange(200), first[1:]):
        assert len(set(kind[run])) == 1
        assert (width[run] == counts[run].max()).all()
        assert (width - counts)[run].sum() <= max((1 - MOSTLY_REAL) * width[run].sum(), spare)
    assert 3 < len(first) < 60


def test_tiles_are_those_of_the_boxes_as_they_were(fit, long_axis):
    still, _, everything = long_axis
    before = shoeboxes(still, everything.select(np.abs(everything.k) < 2.0), everything)
    after, of_box = fit.boxes, []
    for boxes in (before, after):
        real = boxes.real.numpy()
        own = boxes.reflections[boxes.node[:, 0].numpy()][boxes.box.numpy()]
        told = np.stack([own, boxes.slow, boxes.fast, boxes.used, boxes.data], 1)[real]
        of_box.append(told[np.lexsort(told.T[::-1])])
    np.testing.assert_array_equal(*of_box)
    np.testing.assert_array_equal(np.sort(before.counts), np.sort(after.counts))


def test_values_of_all_pixels_are_seen_as_arrays_of_a_group(fit):
    values = torch.rand(2, len(fit.boxes.box), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for group in fit.groups.groups:
        array = group.of(values)
        assert array.shape == (2, *group.where.slow.shape)
        assert torch.equal(array.flatten(1), values[:, group.segment])
        assert array.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()


def test_columns_begin_with_the_basis_and_the_data_without_other_light(fit):
    others = torch.rand(len(fit.boxes.box), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    boxes = replace(fit.boxes, others=others * fit.boxes.real)
    lit = replace(fit, boxes=boxes)
    columns = lit.columns(lit.at(torch.zeros(len(fit.map), dtype=torch.float64)))
    for group, found in zip(fit.groups.groups, columns, strict=True):
        assert found.shape[1] == FIRST_NODE + group.reach
        assert torch.equal(found[:, :DATA].transpose(1, 2), group.of(boxes.basis.T).permute(1, 2, 0))
        assert torch.equal(found[:, DATA], group.of(boxes.data - boxes.others))


def test_nodes_of_a_group_are_those_of_its_boxes_sampled_as_their_pixels_are(fit):
    boxes, parts = fit.boxes, fit.groups.parts
    for group in fit.groups.groups:
        node = boxes.node[group.box, : group.reach]
        assert group.parts.shape == node.shape
        if not group.reach:
            continue
        whole = fit.whole[group.box.numpy()]
        assert whole.all() or not whole.any()
        assert group.rule.oversample == (1 if whole[0] else fit.rule.oversample)
        assert (node >= 0).all()
        assert torch.equal(group.owner, torch.arange(group.reach).expand_as(node))
        assert torch.equal(parts.reflection[group.parts], node)
        assert (parts.panel[group.parts] == boxes.panel[group.box, None]).all()
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
    assert len(alone.groups.groups) == sum(len(group.box) for group in fit.groups.groups)
    torch.testing.assert_close(alone.profiles(x), fit.profiles(x), rtol=COMPILED_RELATIVE, atol=0)


def test_groups_are_kept_while_boxes_rules_and_components_stay(fit):
    assert fit.prepared() is fit
    assert fit.prepared(torch.zeros(len(fit.map), dtype=torch.float64)) is fit
    moved = replace(fit, boxes=in_tiles(fit.boxes, fit.whole))
    for other in (moved, replace(fit, whole=fit.whole.copy()), replace(fit, whole=None)):
        assert other.prepared().grouping is not fit.grouping
    assert replace(fit, whole=None).prepared().groups.parts.oversample.unique().tolist() == [fit.rule.oversample]
