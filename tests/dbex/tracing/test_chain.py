"""DB-AT-040: the chain of a pixel is the model's own, from the source to the weighted residual."""

import math

import numpy as np
import pytest
import torch

from dbex.physics.forward import forward_scene, simulate_forward_torch
from dbex.refinement.objective import Objective
from dbex.refinement.predictions import observed_predictions
from dbex.refinement.prior import ModelError, intensity_prior
from dbex.refinement.shoeboxes import shoeboxes
from dbex.tracing.chain import PARAMETERS, Counts, trace_pixel
from nanobrag_torch.profile import Quadrature
from tests.dbex.conftest import SHIPPED
from tests.dbex.small_still import MOSAICITY_DEG, SIZE_A, small_still
from tests.dbex.stages import map_of
from tests.differences import extrapolated_difference, relative_error
from tests.reports import acceptance_report
from tests.tolerances import EXTRAPOLATED_DIFFERENCE_RELATIVE, TRACED_RELATIVE, ZERO_STEP_RELATIVE

LIKE = torch.zeros((), dtype=torch.float64)
COUNTS = Counts(data=40.0, background=9.0, sigma_readout=2.0, trusted=True, background_from="given", scale_from="given")
WIDTHS = {"domain_size_A": SIZE_A, "mosaicity_deg": MOSAICITY_DEG}


def scene_of(still, scale=1.0):
    return forward_scene(
        still.inputs, still.detector, still.beam, still.crystal, None, still.hkl, still.F, scale, LIKE, WIDTHS
    )


@pytest.fixture(scope="module")
def small():
    return small_still(3)


@pytest.fixture(scope="module")
def brightest(small):
    """The brightest pixel of each panel."""
    image = small.predicted()
    return [(p, *np.unravel_index(image[p].argmax().item(), image.shape[1:])) for p in range(2)]


class TestDB_AT_040_Trace:
    def test_db_at_040_pixels_of_the_boxes_end_with_the_forward_models_photons(self, small):
        tolerances = {"relative": TRACED_RELATIVE}
        with acceptance_report("DB-AT-040", "forward_model", tolerances=tolerances) as values:
            image, scene = small.predicted(spot_scale_override=2.5), scene_of(small, 2.5)
            worst = 0.0
            pixels = list(zip(*(column.tolist() for column in small.inside), strict=True))[::3]
            for place in pixels:
                found = trace_pixel(scene, place, COUNTS)
                worst = max(worst, relative_error(found.bragg, image[place].item()))
            values["pixels"], values["largest relative difference"] = len(pixels), worst
            assert {place[0] for place in pixels} == {0, 1}
            assert worst < TRACED_RELATIVE

    def test_db_at_040_pixels_of_the_shipped_still(self, loaded, inputs):
        tolerances = {"relative": TRACED_RELATIVE}
        with acceptance_report("DB-AT-040", "shipped", tolerances=tolerances, inputs=tuple(SHIPPED)) as values:
            still = (loaded.detector, loaded.beam, loaded.crystal, loaded.Expt, loaded.F.indices(), loaded.F.data())
            image = simulate_forward_torch(inputs, *still, spot_scale_override=3.0)
            scene = forward_scene(inputs, *still, 3.0, LIKE)
            order = torch.argsort(image.flatten(), descending=True)[::50][:20]
            pixels = [np.unravel_index(i, image.shape) for i in order.tolist()]
            errors = [
                relative_error(trace_pixel(scene, tuple(map(int, p)), COUNTS).bragg, image[p].item()) for p in pixels
            ]
            values["pixels"], values["largest relative difference"] = len(pixels), max(errors)
            assert all(image[p] > 0 for p in pixels)
            assert max(errors) < TRACED_RELATIVE

    def test_db_at_040_the_refinements_model_of_the_same_node(self, still):
        """Profiles of the fused pass at a step of zero, pixel by pixel of a dozen boxes."""
        from dbex.cell_symmetry import free_cell_parameters

        group = still.experiment.crystal.get_space_group()
        map = map_of(still.crystal, still.detector, still.beam, free_cell_parameters(group), "crystal", 1.0)
        zero = torch.zeros(len(map), dtype=torch.float64)
        spots = observed_predictions(still, map.models(zero)).select(np.arange(0, 96, 8))
        boxes = shoeboxes(still, spots, spots)
        prior = intensity_prior(still.amplitudes, boxes.reflections, ModelError(0.5))
        hkl = torch.as_tensor(still.amplitudes.hkl[boxes.reflections])
        objective = Objective(boxes, hkl, map, prior, Quadrature(), torch.ones_like(boxes.data)).prepared()
        profiles = objective.profiles(zero)
        tolerances = {"relative": ZERO_STEP_RELATIVE}
        with acceptance_report("DB-AT-040", "refinement", tolerances=tolerances, inputs=tuple(SHIPPED)) as values:
            scene = scene_of_boxes(still, boxes)
            errors = []
            for box in range(len(boxes)):
                where = int(torch.where(boxes.box == box, profiles[:, 0], -torch.inf).argmax())
                pixel = (int(boxes.panel[box]), int(boxes.slow[where]), int(boxes.fast[where]))
                found = trace_pixel(scene, pixel, COUNTS)
                wanted = hkl[boxes.node[box, 0]].tolist()
                node = found.value("indices").index(wanted)
                one = found.value("Bragg photons of each node")[node] / found.value("amplitude")[node] ** 2
                ln_scale = found.value("ln amplitude for |F|² = 1")[node]
                errors.append(relative_error(one / math.exp(ln_scale - 1.0), profiles[where, 0].item()))
            values["boxes"], values["largest relative difference"] = len(errors), max(errors)
            assert len(errors) == 12
            assert max(errors) < ZERO_STEP_RELATIVE

    def test_db_at_040_what_is_told_multiplies_to_the_photons(self, small, brightest):
        with acceptance_report("DB-AT-040", "product", tolerances={"relative": TRACED_RELATIVE}) as values:
            for pixel in brightest:
                found = trace_pixel(scene_of(small, 2.5), tuple(map(int, pixel)), COUNTS)
                factors = [
                    np.array(found.value(name))
                    for name in (
                        "solid angle",
                        "polarisation",
                        "absorbed by the sensor",
                        "height on the node",
                        "profile",
                    )
                ]
                of_ray, of_node = np.prod(factors[:3], axis=0), factors[3] * factors[4]
                told = (of_ray[:, None] * of_node).mean(0) * np.array(found.value("amplitude")) ** 2
                told = told.sum() * found.value("scale")
                values[f"panel {pixel[0]}"] = {"product": told, "photons": found.bragg}
                assert relative_error(told, found.bragg) < TRACED_RELATIVE
                variance = 9.0 + found.bragg + 4.0
                assert found.value("variance") == pytest.approx(variance, rel=TRACED_RELATIVE)
                weighted = (40.0 - 9.0 - found.bragg) / math.sqrt(variance)
                assert found.value("weighted residual") == pytest.approx(weighted, rel=TRACED_RELATIVE)

    def test_db_at_040_derivatives_are_those_of_the_photons(self, small, brightest):
        pixel = tuple(map(int, brightest[1]))
        found = trace_pixel(scene_of(small), pixel, COUNTS)
        told = {(q.section, q.name): q for q in found.parameters}
        steps = {("beam", "wavelength_A"): 1e-4, ("crystal", "cell_b"): 2e-3, ("crystal", "mosaicity_deg"): 1e-3}
        tolerances = {"relative": EXTRAPOLATED_DIFFERENCE_RELATIVE}
        with acceptance_report("DB-AT-040", "derivatives", tolerances=tolerances) as values:
            for (record, name), step in steps.items():
                at = LIKE + told[record, name].value

                def photons(x, record=record, name=name):
                    return small.predicted(**{record: {name: x}})[pixel]

                numeric = extrapolated_difference(photons, at, LIKE + step) / step
                values[name] = relative_error(told[record, name].derivative, numeric)
                assert numeric != 0
            assert max(values.values()) < EXTRAPOLATED_DIFFERENCE_RELATIVE
            # q enters through Δ alone, so that the derivatives by both are one
            q, offset = (next(x for x in found.chain if x.symbol == symbol).derivative for symbol in ("q", "Δ"))
            np.testing.assert_allclose(q, np.array(offset).sum(1), rtol=TRACED_RELATIVE)

    def test_db_at_040_the_order_is_that_of_light(self, small, brightest):
        found = trace_pixel(scene_of(small), tuple(map(int, brightest[0])), COUNTS)
        order = (
            "ŝ0",
            "λ",
            "A",
            "d",
            "R",
            "ŝ1",
            "q",
            "h",
            "hkl",
            "F",
            "S",
            "Δ",
            "exp(−½ΔᵀS⁻¹Δ)",
            "Ω",
            "P",
            "C",
            "I",
            "D",
            "V",
        )
        symbols = [quantity.symbol for quantity in found.chain]
        with acceptance_report("DB-AT-040", "order", tolerances={}) as values:
            values["symbols"] = symbols
            places = [symbols.index(symbol) for symbol in order]
            assert places == sorted(places)
            assert {q.name for q in found.parameters} <= {name for names in PARAMETERS.values() for name in names}


def scene_of_boxes(still, boxes):
    """The forward scene of a still's models on the refinement's boxes."""
    from dbex.physics.candidates import pixels_of
    from dbex.physics.forward import scene_of as scene

    slices = [(int(p), tuple(b)) for p, b in zip(boxes.panel, boxes.bbox.tolist(), strict=True)]
    at = pixels_of(slices, still.detector[0].shape, LIKE.device)
    F = torch.as_tensor(still.amplitudes.F)
    return scene(still.crystal, still.detector, still.beam, at, torch.as_tensor(still.amplitudes.hkl), F, LIKE + 1)


def test_a_pixel_outside_the_boxes_is_refused(small):
    with pytest.raises(ValueError, match="in none of the scene's boxes"):
        trace_pixel(scene_of(small), (0, 0, 0), COUNTS)
