"""Which pixels belong to which reflection, and where reflections are predicted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dials.algorithms.spot_prediction import StillsReflectionPredictor
from scipy.spatial import cKDTree

from dbex.refinement import predictions
from dbex.refinement.predictions import components_seen, observed_predictions, predict
from dbex.refinement.rounds import start, with_boxes
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import HALF_MAX, HALF_MIN, MOST_TAILS, shoeboxes
from nanobrag_torch.lattice import reciprocal_basis
from tests.tolerances import DXTBX_PARALLAX_PX, NEAREST_POINT_PX, REORDERED_SUM

LIKE = torch.zeros((), dtype=torch.float64)


def models_of(still, **widths):
    map = start(still, Settings())
    map = replace(map, crystal=replace(map.crystal, **widths))
    return map.models(torch.zeros(len(map), dtype=torch.float64))


def predicted(still, d_min, **widths):
    shapes = [panel.shape for panel in still.detector]
    return predict(models_of(still, **widths), still.amplitudes, d_min, 4.0, shapes)


@pytest.fixture(scope="module")
def crowded(long_axis):
    """A still whose spots lie five pixels apart, and its predictions."""
    found, _, everything = long_axis
    return found, everything


@pytest.fixture(scope="module", params=["shipped", "crowded", "64 panels"])
def built(request):
    """A still, all its predictions, those that have boxes, and the boxes."""
    if request.param == "crowded":
        still, everything = request.getfixturevalue("crowded")
    else:
        still = request.getfixturevalue({"shipped": "still", "64 panels": "thermolysin"}[request.param])
        everything = predicted(still, 2.2, mosaicity_deg=0.1)
    chosen = everything.select(np.abs(everything.k) < 3.0)
    boxes = shoeboxes(still, chosen, everything)
    assert len(boxes) > 50
    return still, everything, boxes


def pixels_of(boxes, which=...):
    """panel, slow and fast (3, n) of all pixels, or of those that `which` names."""
    return torch.stack([boxes.panel[boxes.box], boxes.slow, boxes.fast])[:, which].numpy()


def pixel_names(boxes):
    """Box and pixel of every used pixel: reflection, panel, slow, fast."""
    own = boxes.reflections[boxes.node[:, 0].numpy()]
    box = boxes.box[boxes.used].numpy()
    return set(map(tuple, np.vstack([own[box], pixels_of(boxes, boxes.used)]).T.tolist()))


def test_a_pixel_counts_once(built):
    _, _, boxes = built
    pixels = pixels_of(boxes)
    assert len(np.unique(pixels, axis=1).T) == pixels.shape[1]


def test_a_pixel_belongs_to_the_prediction_nearest_to_it(built):
    _, everything, boxes = built
    for panel in np.unique(boxes.panel):
        rivals = everything.panel == panel
        tree = cKDTree(everything.xy_px[rivals])
        for b in np.nonzero(boxes.panel.numpy() == panel)[0]:
            mine = boxes.box == b
            points = torch.stack([boxes.fast[mine], boxes.slow[mine]], -1).numpy() + 0.5
            distance, _ = tree.query(points)
            own = everything.index == boxes.reflections[boxes.node[b, 0]]
            centre = everything.xy_px[own & rivals][0]
            assert np.linalg.norm(points - centre, axis=1) == pytest.approx(distance, abs=1e-6)


def test_boxes_end_half_way_to_the_next_spot_but_leave_room_for_a_plane(built):
    _, everything, boxes = built
    half = (boxes.bbox[:, [1, 3]] - boxes.bbox[:, [0, 2]] - 1) // 2
    assert half.min() >= HALF_MIN
    assert half.max() <= HALF_MAX
    for b, (x0, _, y0, _) in enumerate(boxes.bbox):
        centre = np.array([x0, y0]) + half[b] + 0.5
        same = everything.panel == boxes.panel[b].item()
        distance = np.sort(np.linalg.norm(everything.xy_px[same] - centre, axis=1))
        if len(distance) > 1:
            assert half[b].max() <= max(HALF_MIN, distance[1] / 2 + 2)


def test_pixels_lie_within_their_box_and_on_their_panel(built):
    still, _, boxes = built
    panel, slow, fast = pixels_of(boxes)
    box = boxes.box.numpy()
    assert (np.diff(box) >= 0).all()
    assert (boxes.counts > 0).all()
    x0, x1, y0, y1 = boxes.bbox[box].T
    assert ((fast >= x0) & (fast < x1) & (slow >= y0) & (slow < y1)).all()
    shapes = np.array([p.shape for p in still.detector])
    assert ((slow >= 0) & (fast >= 0) & (slow < shapes[panel, 0]) & (fast < shapes[panel, 1])).all()


def test_a_masked_pixel_is_never_used_whatever_it_holds(built):
    still, everything, boxes = built
    for panel, slow, fast in pixels_of(boxes, boxes.used).T:
        assert still.trusted[panel][slow, fast]
    images = tuple(np.where(good, image, 1e9) for good, image in zip(still.trusted, still.images_photons, strict=True))
    spoiled = shoeboxes(
        replace(still, images_photons=images), everything.select(np.abs(everything.k) < 3.0), everything
    )
    assert torch.equal(spoiled.data, boxes.data)
    assert torch.equal(spoiled.used, boxes.used)


def test_what_a_box_holds_is_what_the_image_holds(built):
    still, _, boxes = built
    panel, slow, fast = pixels_of(boxes, boxes.used)
    read = np.array([still.images_photons[p][s, f] for p, s, f in zip(panel, slow, fast, strict=True)])
    np.testing.assert_array_equal(boxes.data[boxes.used].numpy(), read)


def test_a_box_has_its_own_reflection_first_and_no_other_twice(built):
    _, everything, boxes = built
    for row, panel in zip(boxes.node.numpy(), boxes.panel.tolist(), strict=True):
        real = row[row >= 0]
        assert (row[len(real) :] == -1).all()
        assert len(set(real)) == len(real)
        assert set(boxes.reflections[real]) <= set(everything.index[everything.panel == panel])
    assert len(set(boxes.node[:, 0].tolist())) == len(boxes)


def test_every_neighbour_that_reaches_into_a_box_is_part_of_its_model(crowded):
    still, everything = crowded
    boxes = shoeboxes(still, everything.select(np.abs(everything.k) < 3.0), everything)
    assert boxes.node.shape[1] > 2
    for b in range(len(boxes)):
        own = everything.xy_px[everything.index == boxes.reflections[boxes.node[b, 0]]][0]
        apart = np.linalg.norm(everything.xy_px - own, axis=1)
        close = set(everything.index[apart < 2 * 3.0 * everything.sigma_px.max(1)])
        row = boxes.node[b].numpy()
        assert close <= set(boxes.reflections[row[row >= 0]])


def test_what_is_held_out_has_no_box_but_its_tail_stays_in_those_of_its_neighbours(crowded):
    still, everything = crowded
    held_out = np.zeros(len(still.amplitudes.hkl), bool)
    held_out[everything.index[::2]] = True
    hidden = replace(still, held_out=held_out)
    whole = shoeboxes(still, everything.select(with_boxes(still, everything)), everything)
    part = shoeboxes(hidden, everything.select(with_boxes(hidden, everything)), everything)
    own = part.reflections[part.node[:, 0].numpy()]
    assert len(own) > 0
    assert not held_out[own].any()
    assert set(own) == set(whole.reflections[whole.node[:, 0].numpy()]) - set(np.flatnonzero(held_out))
    tails = part.reflections[part.node[:, 1:][part.node[:, 1:] >= 0].numpy()]
    assert held_out[tails].any()
    assert not (pixel_names(part) - pixel_names(whole))
    assert int(part.used.sum()) < int(whole.used.sum())


def of_pixels(boxes):
    """All that is told of every pixel (N, 9)."""
    told = (boxes.slow, boxes.fast, boxes.used, boxes.data, boxes.others, boxes.sigma_squared)
    return torch.cat([torch.stack([values.double() for values in told], 1), boxes.basis], 1)


def named_nodes(boxes):
    """The reflections of each box, by their places among the amplitudes."""
    return [boxes.reflections[row[row >= 0]].tolist() for row in boxes.node.numpy()]


def test_pixels_in_another_order_are_the_same_pixels_and_those_that_fill_up_add_nothing(built):
    _, _, boxes = built
    rng, n = np.random.default_rng(1), len(boxes.box)
    pixel, real = np.concatenate([rng.permutation(n), rng.integers(n, size=50)]), np.arange(n + 50) < n
    moved = boxes.laid_out(pixel, real)
    assert torch.equal(of_pixels(moved)[:n], of_pixels(boxes)[pixel[:n]])
    assert torch.equal(moved.box, boxes.box[pixel])
    assert torch.equal(moved.reach, boxes.reach[pixel])
    np.testing.assert_array_equal(moved.counts, boxes.counts)
    assert moved.node is boxes.node
    assert torch.equal(moved.slow[n:], boxes.slow[pixel[n:]])
    for name in ("used", "data", "others", "basis"):
        assert not getattr(moved, name)[n:].any()
        torch.testing.assert_close(
            moved.sums(getattr(moved, name).double()),
            boxes.sums(getattr(boxes, name).double()),
            rtol=REORDERED_SUM,
            atol=1e-9,
        )


def test_boxes_without_some_of_their_neighbours_keep_the_others_and_all_else(crowded):
    still, everything = crowded
    boxes = shoeboxes(still, everything.select(np.abs(everything.k) < 2.0), everything)
    seen = torch.rand(boxes.node.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    # one reflection disappears everywhere, and places where there is none say nothing
    own = set(boxes.node[:, 0].tolist())
    gone = next(int(n) for n in boxes.node[:, 1:].flatten() if n >= 0 and int(n) not in own)
    seen[:, 0] = True
    seen &= boxes.node != gone
    lit = torch.rand(len(boxes.box), boxes.node.shape[1], generator=torch.Generator().manual_seed(5)) < 0.3
    left = boxes.reached_by(seen, lit & seen[boxes.box])
    wanted = zip(boxes.node.numpy(), seen.numpy(), strict=True)
    assert named_nodes(left) == [boxes.reflections[row[here & (row >= 0)]].tolist() for row, here in wanted]
    real = left.node >= 0
    assert (real[:, :-1] | ~real[:, 1:]).all()
    np.testing.assert_array_equal(left.reflections, sorted({name for row in named_nodes(left) for name in row}))
    assert boxes.reflections[gone] not in left.reflections
    assert left.node.shape[1] == int((seen & (boxes.node >= 0)).sum(1).max()) < boxes.node.shape[1]
    # a pixel keeps the nodes that are seen up to the last that lights it
    for box, shown, reach in zip(boxes.box.tolist(), (lit & seen[boxes.box]).numpy(), left.reach.tolist(), strict=True):
        last = np.flatnonzero(shown)[-1] if shown.any() else -1
        assert reach == int(seen[box, : last + 1].sum())
    kept = ("panel", "box", "slow", "fast", "used", "data", "others", "sigma_squared", "basis", "bbox", "left_out")
    assert all(getattr(left, name) is getattr(boxes, name) for name in kept)


def test_sums_and_largest_are_those_of_each_box(built):
    _, _, boxes = built
    values = torch.randn(len(boxes.box), 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parts = values.split(boxes.counts.tolist())
    expected = torch.stack([part.sum(0) for part in parts])
    torch.testing.assert_close(boxes.sums(values), expected, rtol=0, atol=REORDERED_SUM)
    assert torch.equal(boxes.sums(values[:, 0]), boxes.sums(values)[:, 0])
    # of values that are all below 0 too
    below = values[:, 0] - 10
    assert torch.equal(boxes.largest(below), torch.stack([part[:, 0].max() - 10 for part in parts]))


def test_without_a_box_that_can_be_used_there_are_none_and_it_is_said_why(still):
    everything = predicted(still, 2.2, mosaicity_deg=0.1)
    dark = replace(still, trusted=tuple(np.zeros_like(mask) for mask in still.trusted))
    boxes = shoeboxes(dark, everything, everything)
    assert len(boxes) == len(boxes.box) == len(boxes.reflections) == 0
    assert boxes.left_out["boxes with too few usable pixels"] == len(everything)


def test_planes_are_spanned_by_a_constant_and_two_slopes_of_order_one(built):
    _, _, boxes = built
    basis = boxes.basis
    assert (basis[:, 0] == 1).all()
    assert basis.abs().max() <= 1
    box = boxes.box.numpy()
    _, slow, fast = pixels_of(boxes)
    x0, x1, y0, y1 = boxes.bbox[box].T
    np.testing.assert_allclose(basis[:, 1], (fast + 0.5 - (x0 + x1) / 2) / ((x1 - x0 - 1) / 2), atol=1e-12)
    np.testing.assert_allclose(basis[:, 2], (slow + 0.5 - (y0 + y1) / 2) / ((y1 - y0 - 1) / 2), atol=1e-12)


def test_a_box_without_trusted_centre_is_left_out_and_counted(still):
    everything = predicted(still, 2.2, mosaicity_deg=0.1)
    chosen = everything.select(np.abs(everything.k) < 3.0)
    before = shoeboxes(still, chosen, everything)
    own = everything.index == before.reflections[before.node[0, 0]]
    x, y = np.floor(everything.xy_px[own][0]).astype(int)
    trusted = still.trusted[0].copy()
    trusted[y, x] = False
    after = shoeboxes(replace(still, trusted=(trusted,)), chosen, everything)
    assert len(after) == len(before) - 1
    name = "boxes with an unusable pixel at the centre"
    assert after.left_out[name] == before.left_out[name] + 1


def nearest_rays(still, found):
    """Rays (n, 3) to the points of the Ewald sphere nearest to the predicted nodes, from dxtbx's models alone."""
    s0 = np.array(still.experiment.beam.get_s0())
    A = np.array(still.experiment.crystal.get_A()).reshape(3, 3)
    to_node = still.amplitudes.hkl[found.index] @ A.T + s0
    return to_node / np.linalg.norm(to_node, axis=1, keepdims=True) * np.linalg.norm(s0)


def test_predictions_of_a_sharp_crystal_are_where_dxtbx_puts_the_nearest_point_of_the_sphere(still):
    """A block that is small and not mosaic spreads alike in all directions: its centroid is the nearest point."""
    found = predicted(still, 1.5, mosaicity_deg=0.0, domain_size_A=400.0)
    assert len(found) > 100
    panel = still.experiment.detector[0]
    expected = np.array([panel.get_ray_intersection_px(tuple(v)) for v in nearest_rays(still, found)])
    assert np.abs(found.xy_px - expected).max() < DXTBX_PARALLAX_PX


def test_predictions_of_a_mosaic_crystal_are_where_dials_turns_its_nodes_to(still):
    """DIALS turns a node onto the sphere, as its mosaic blocks are turned: the limit of large blocks."""
    found = predicted(still, 1.5, mosaicity_deg=0.2, domain_size_A=2e5)
    predictor = StillsReflectionPredictor(still.experiment)
    expected = predictor.for_ub(still.experiment.crystal.get_A())
    place = {tuple(h): xy[:2] for h, xy in zip(expected["miller_index"], expected["xyzcal.px"], strict=True)}
    names = [tuple(h) for h in still.amplitudes.hkl[found.index].tolist()]
    known = [i for i, name in enumerate(names) if name in place]
    assert len(known) > 50
    offset = found.xy_px[known] - np.array([place[names[i]] for i in known])
    assert np.abs(offset).max() < NEAREST_POINT_PX


def test_every_panel_records_what_strikes_it(thermolysin):
    found = predicted(thermolysin, 2.5, mosaicity_deg=0.0, domain_size_A=300.0)
    assert len(np.unique(found.panel)) > 20
    shapes = np.array([p.shape for p in thermolysin.detector])[found.panel]
    assert (found.xy_px >= 0).all()
    assert (found.xy_px < shapes[:, ::-1]).all()
    # a reflection strikes one panel
    assert len(np.unique(found.index)) == len(found)
    s1 = nearest_rays(thermolysin, found)
    detector = thermolysin.experiment.detector
    expected = [detector[p].get_ray_intersection_px(tuple(v)) for p, v in zip(found.panel.tolist(), s1, strict=True)]
    assert np.abs(found.xy_px - np.array(expected)).max() < DXTBX_PARALLAX_PX


def test_predictions_are_the_same_however_many_reflections_and_panels_are_looked_at_in_one_go(thermolysin, monkeypatch):
    expected = predicted(thermolysin, 2.2, mosaicity_deg=0.1)
    monkeypatch.setattr(predictions, "AT_ONCE", 3 * len(expected))
    found = predicted(thermolysin, 2.2, mosaicity_deg=0.1)
    assert len(np.unique(found.panel)) > 3
    for name in vars(found):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=REORDERED_SUM)


def test_no_reflection_that_the_sphere_meets_is_passed_over(still):
    """Of a crystal whose widths differ with direction, against every listed reflection looked at by itself."""
    models = models_of(
        still, mosaicity_deg=0.1, mosaic_covariance_deg2=((0.04, 0.01, 0), (0.01, 0.01, 0), (0, 0, 0.02))
    )
    inside = np.linalg.norm(still.amplitudes.hkl @ reciprocal_basis(models.crystal, LIKE).numpy().T, axis=1) < 1 / 2.0
    hkl = torch.as_tensor(still.amplitudes.hkl[inside], dtype=torch.float64)
    near = (components_seen(models, hkl).k.abs() < 4.0).numpy()
    may = predictions.may_be_seen(models, still.amplitudes.hkl, 4.0)[inside]
    assert near.sum() > 100
    assert may[near].all()
    assert may.mean() < 0.1


def test_observed_spots_keep_their_own_centroids(still):
    found = observed_predictions(still, models_of(still))
    place = {tuple(h): xy for h, xy in zip(still.observed.hkl.tolist(), still.observed.xy_px, strict=True)}
    for index, xy in zip(found.index, found.xy_px, strict=True):
        np.testing.assert_array_equal(place[tuple(still.amplitudes.hkl[index])], xy)
    missing = len(still.observed) - len(found)
    listed = {tuple(h) for h in still.amplitudes.hkl.tolist()}
    assert missing == sum(tuple(h) not in listed for h in still.observed.hkl.tolist())


def test_a_model_that_smears_every_spot_over_the_panel_keeps_the_nearest_tails(still):
    everything = predicted(still, 2.2, mosaicity_deg=0.1)
    wide = replace(everything, sigma_px=np.full_like(everything.sigma_px, 100.0))
    boxes = shoeboxes(still, wide.select(np.abs(wide.k) < 3.0), wide)
    assert boxes.node.shape[1] == 1 + MOST_TAILS
    assert sum(count for name, count in boxes.left_out.items() if name.startswith("tails beyond")) > 0
    place = {int(name): xy for name, xy in zip(wide.index, wide.xy_px, strict=True)}
    names = boxes.reflections[boxes.node.numpy()]
    for own, *tails in names[:20]:
        apart = {int(n): float(np.linalg.norm(xy - place[int(own)])) for n, xy in place.items() if n != own}
        assert max(apart[int(n)] for n in tails) == pytest.approx(sorted(apart.values())[MOST_TAILS - 1])
