"""DB-AT-010 where a derivative could break: on a node, without a width, at Friedel pairs, at the mask's edge."""

import numpy as np
import pytest
import torch

from dbex.physics.loss import compute_masked_mse_loss
from nanobrag_torch.config import BeamConfig, DetectorConfig
from nanobrag_torch.panel import stack_panels
from nanobrag_torch.profile import Quadrature, rays, sensor_layers
from nanobrag_torch.tensors import unit
from tests.dbex.gradient_cases import KINDS, NOT_LOOKED_AT, PAIRS, PIXELS, STEPS, intensities, problem
from tests.dbex.small_still import BOXES, small_still
from tests.differences import extrapolated_difference, relative_error
from tests.reports import acceptance_report
from tests.tolerances import EXTRAPOLATED_DIFFERENCE_RELATIVE

CENTRES = Quadrature(oversample=1)
LIKE = torch.zeros((), dtype=torch.float64)


def with_first_node_on(values, pixel):
    """The values with a cubic cell that has the first reflection (2, 1, 1) exactly on a pixel's centre."""
    detector = [DetectorConfig(**{n: v[i] for n, v in values["detector"].items()}, shape=(24, 24)) for i in range(2)]
    panels, beam = stack_panels(detector, LIKE), BeamConfig(**values["beam"])
    layer = sensor_layers(panels, 1)[0]
    panel, slow, fast = (column[pixel : pixel + 1] for column in PIXELS)
    q = rays(panels, beam, panel, slow + 0.5, fast + 0.5, layer, 1).q[0]
    h = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    edge = torch.linalg.vector_norm(h) / torch.linalg.vector_norm(q)
    axis = unit(torch.linalg.cross(h, q))
    from_frame = torch.stack([unit(h), axis, torch.linalg.cross(unit(h), axis)])
    to_frame = torch.stack([unit(q), axis, torch.linalg.cross(unit(q), axis)])
    cubic = {"U": to_frame.T @ from_frame, "misset_deg": torch.zeros(3, dtype=torch.float64)}
    right_angle = dict.fromkeys(("cell_alpha", "cell_beta", "cell_gamma"), 90 + 0 * edge)
    edges = dict.fromkeys(("cell_a", "cell_b", "cell_c"), edge)
    return values | {"crystal": values["crystal"] | cubic | right_angle | edges}, torch.stack([h, -h])


def without_rotation(values):
    return {record: fields for record, fields in values.items() if record != "scan"}


def errors(f, values, keys):
    """Relative error of each derivative along a random step; zero where it is zero by symmetry on both sides."""
    generator = torch.Generator().manual_seed(3)
    leaves = {r: {n: v.clone().requires_grad_() for n, v in fields.items()} for r, fields in values.items()}
    gradients = torch.autograd.grad(f(leaves), [leaves[r][n] for r, n in keys])
    found = {}
    with torch.no_grad():
        for (record, name), gradient in zip(keys, gradients, strict=True):
            assert torch.isfinite(gradient).all(), name
            value, size = values[record][name], STEPS[record][name]
            step = (torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5) * (size or 0.01)
            step = step if size else step * torch.where(value == 0, LIKE + 1e-3, value.abs())
            numeric = extrapolated_difference(
                lambda at, r=record, n=name: f(values | {r: values[r] | {n: at}}), value, step
            )
            found[record, name] = relative_error((gradient * step).sum().item(), numeric)
    return found


def keys_of(values, kind="blocks of cells"):
    return [(r, n) for r, fields in values.items() for n in fields if n not in NOT_LOOKED_AT[kind]]


class TestDB_AT_010_SingularPoints:
    @pytest.mark.parametrize("exposure", ["still", "rotation"])
    def test_db_at_010_a_peak_exactly_on_a_node(self, exposure):
        start = problem(5)
        values, hkl = with_first_node_on(start.values, 40)
        scan = values.pop("scan")
        if exposure == "rotation":
            # centred on the node: the crystal reaches it in the middle of the rotation
            values["scan"] = scan | {"start_deg": -scan["width_deg"] / 2}
        with acceptance_report("DB-AT-010", f"on_a_node_{exposure}", tolerances={}) as report:
            image = intensities(values, hkl, start.F, "blocks of cells", CENTRES)
            assert image.argmax() == 40
            assert image[40] > 10 * image[PIXELS[0] == 0].mean()

            def at_the_peak_and_around(numbers):
                near = intensities(numbers, hkl, start.F, "blocks of cells", CENTRES)
                return near[40] + (near * start.weight)[PIXELS[0] == 0].sum()

            found = errors(at_the_peak_and_around, values, keys_of(values))
            report |= {" ".join(key): error for key, error in found.items()}
            assert max(found.values()) < EXTRAPOLATED_DIFFERENCE_RELATIVE

    @pytest.mark.parametrize("kind", ["blocks of cells", "blocks of one size"])
    def test_db_at_010_widths_of_zero_have_no_slope_and_harm_no_other(self, kind):
        """A width acts by its square, so at zero its derivative is zero, not NaN; all others stay exact."""
        start = problem(6)
        values = {record: dict(fields) for record, fields in start.values.items()}
        zeros = [
            ("crystal", "mosaicity_deg"),
            ("crystal", "strain"),
            ("crystal", "misset_deg"),
            ("crystal", "b_factor_A2"),
        ]
        zeros += [("beam", name) for name in ("bandwidth", "divergence_h_mrad", "divergence_v_mrad")]
        zeros += [("detector", "point_spread_mm"), ("scan", "width_deg")]
        for record, name in zeros:
            values[record][name] = torch.zeros_like(values[record][name])

        def f(numbers):
            return (intensities(numbers, start.hkl, start.F, kind) * start.weight).sum()

        keys = [key for key in keys_of(values, kind) if key != ("scan", "axis")]
        with acceptance_report("DB-AT-010", f"zero_widths_{kind.replace(' ', '_')}", tolerances={}) as report:
            found = errors(f, values, keys)
            report |= {" ".join(key): error for key, error in found.items()}
            assert max(found.values()) < EXTRAPOLATED_DIFFERENCE_RELATIVE
            even = ("mosaicity_deg", "strain", "bandwidth", "divergence_h_mrad", "divergence_v_mrad", "point_spread_mm")
            assert all(found[key] == 0 for key in zeros if key[1] in even)

    def test_db_at_010_a_sensor_of_no_thickness_has_finite_derivatives(self):
        start = problem(7)
        values = without_rotation(start.values)
        thickness = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        thin = values | {"detector": values["detector"] | {"sensor_thickness_mm": thickness}}
        total = intensities(thin, start.hkl, start.F, "blocks of cells").sum()
        assert total > 0
        assert torch.isfinite(torch.autograd.grad(total, thickness)[0]).all()

    def test_db_at_010_friedel_mates_are_two_numbers(self):
        still = small_still(2)
        F = still.F.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(still.number(F=F), F)
        place = {tuple(h): i for i, h in enumerate(still.hkl.tolist())}
        with acceptance_report("DB-AT-010", "friedel_pair", tolerances={}) as report:
            for h in still.struck.tolist():
                own, mate = place[tuple(h)], place[tuple(-i for i in h)]
                step = torch.zeros_like(F).index_fill(0, torch.tensor(own), 0.1)
                with torch.no_grad():
                    numeric = extrapolated_difference(lambda at: still.number(F=at), F.detach(), step) / 0.1
                report[str(h)] = error = relative_error(gradient[own].item(), numeric)
                assert numeric != 0
                assert error < EXTRAPOLATED_DIFFERENCE_RELATIVE
                assert gradient[mate] == 0

    @pytest.mark.parametrize("outside", [0.0, 1e9, float("nan")])
    def test_db_at_010_a_mask_that_cuts_the_spot_cuts_value_and_derivative_alike(self, outside):
        still = small_still(4)
        brightest = np.unravel_index(still.predicted().argmax().item(), still.inputs.target.shape)
        mask = still.inputs.loss_mask.copy()
        mask[brightest[0], :, brightest[2] + 1 :] = False
        assert mask[brightest]
        target = torch.as_tensor(np.where(mask, 3.0, outside))

        def loss(a):
            return compute_masked_mse_loss(still.predicted(crystal={"cell_a": a}), target, mask, 3.0)

        a = torch.tensor(still.crystal.get_unit_cell().parameters()[0], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(a), a)
        step = STEPS["crystal"]["cell_a"]
        with torch.no_grad():
            numeric = extrapolated_difference(loss, a.detach(), torch.tensor(step)) / step
        with acceptance_report("DB-AT-010", f"mask_edge_{outside}", tolerances={}) as report:
            report["relative_error"] = relative_error(gradient.item(), numeric)
            assert gradient != 0
            assert report["relative_error"] < EXTRAPOLATED_DIFFERENCE_RELATIVE


def test_the_kinds_and_boxes_of_these_tests_are_those_of_the_matrix():
    assert set(KINDS) == set(NOT_LOOKED_AT)
    assert len(PAIRS) == len(PIXELS[0]) < 2 * sum((x1 - x0) * (y1 - y0) for x0, x1, y0, y1 in BOXES)
