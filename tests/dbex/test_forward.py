"""DB-AT-027 and the contract of simulate_forward_torch: what it takes, what it gives, what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from dbex.cell_symmetry import free_cell_parameters
from dbex.models import create_beam_config, create_crystal_config
from dbex.physics.candidates import box_pixels, candidates
from dbex.physics.forward import panel_configs, simulate_forward_torch
from dbex.refinement.objective import Objective
from dbex.refinement.parameters import names_of
from dbex.refinement.prior import IntensityPrior
from dbex.refinement.shoeboxes import Shoeboxes
from dbex.refinement.widths import WIDTHS, begun
from nanobrag_torch.config import override
from nanobrag_torch.profile import Pairs, Quadrature, ln_absolute_scale, profile
from tests.dbex.conftest import SHIPPED
from tests.dbex.small_still import MOSAICITY_DEG, PIXELS, SIZE_A, small_still
from tests.dbex.stages import STAGES, map_of
from tests.reports import acceptance_report
from tests.tolerances import CANDIDATE_NODES_RELATIVE, ROUNDING, ZERO_STEP_RELATIVE

LIKE = torch.zeros((), dtype=torch.float64)


def as_shoeboxes(at, near):
    """The forward model's boxes as the refinement holds them, and which of a box's nodes reach which of its pixels
    (pixels, nodes)."""
    reaches = torch.zeros(len(at.pixels[0]), len(near.index), dtype=torch.bool)
    reaches[near.pairs.pixel, near.pairs.node] = True
    of_box = torch.split(reaches[at.place], torch.bincount(at.box).tolist())
    node = pad_sequence([torch.nonzero(box.any(0))[:, 0] for box in of_box], batch_first=True, padding_value=-1)
    chosen = torch.cat([box[:, names.clamp_min(0)] & (names >= 0) for box, names in zip(of_box, node, strict=True)])
    _, slow, fast = (column[at.place] for column in at.pixels)
    used, empty = torch.ones(len(slow), dtype=torch.bool), torch.zeros(len(slow), dtype=torch.float64)
    planes = torch.zeros(len(slow), 3, dtype=torch.float64)
    box, panel, bbox = at.box.sort().values, at.bounds[:, 0], at.bounds[:, 1:].numpy()
    names = near.index.numpy()
    reach = (node >= 0).sum(1)[box]
    return (
        Shoeboxes(panel, used, box, slow, fast, used, empty, empty, empty, reach, planes, bbox, names, node, {}),
        chosen,
    )


class TestDB_AT_027_ZeroStep:
    # blocks with flat faces are another shape than the forward model's at any step
    @pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "square blocks"])
    def test_db_at_027_the_refinements_model_at_zero_step_is_the_forward_model(self, loaded, inputs, stage):
        hkl = torch.as_tensor(np.asarray(loaded.F.indices()))
        F = torch.as_tensor(np.array(loaded.F.data()))
        still = (loaded.detector, loaded.beam, loaded.crystal, loaded.Expt)
        free = [name for groups in STAGES[stage] for group in groups if group != "cell" for name in names_of(group)]
        crystal, panels, beam = begun(
            create_crystal_config(loaded.crystal, loaded.Expt),
            panel_configs(*still[:2], None),
            create_beam_config(loaded.beam),
            free,
        )
        widths = {
            "crystal_overrides": {"strain": crystal.strain},
            "detector_overrides": {"point_spread_mm": panels[0].point_spread_mm},
            "beam_overrides": {w.field: getattr(beam, w.field) for w in WIDTHS.values() if w.record == "beam"},
        }
        image = simulate_forward_torch(inputs, *still, hkl, F, spot_scale_override=1.0, **widths)

        at = box_pixels(inputs, LIKE.device)
        near = candidates(at, panels, beam, crystal, hkl, LIKE)
        boxes, reaches = as_shoeboxes(at, near)
        scale = float(ln_absolute_scale(crystal, beam, LIKE))
        map = map_of(crystal, panels, beam, free_cell_parameters(loaded.crystal.get_space_group()), stage, scale)
        mean = F[near.index] ** 2
        objective = Objective(
            boxes, hkl[near.index], map, IntensityPrior(mean, mean), Quadrature(), torch.ones_like(boxes.data)
        )
        profiles = objective.profiles(torch.zeros(len(map), dtype=torch.float64)) * reaches
        model = (profiles * mean[boxes.node.clamp_min(0)][boxes.box]).sum(-1)
        expected = image[at.pixels][at.place]
        with acceptance_report(
            "DB-AT-027",
            stage.replace(" ", "_"),
            tolerances={"relative": ZERO_STEP_RELATIVE},
            inputs=tuple(SHIPPED),
        ) as values:
            lit = expected > 0
            values["largest relative difference"] = ((model - expected).abs()[lit] / expected[lit]).max()
            values["pixels"], values["photons"] = int(lit.sum()), expected.sum()
            assert values["largest relative difference"] < ZERO_STEP_RELATIVE
            assert (model[~lit] == 0).all()
            assert lit.sum() > 1000


@pytest.fixture(scope="module")
def small():
    return small_still(1)


def test_outside_the_boxes_there_is_nothing(small):
    image = small.predicted()
    outside = torch.ones_like(image, dtype=torch.bool)
    outside[small.inside] = False
    assert image.shape == (2, PIXELS, PIXELS)
    assert (image[outside] == 0).all()
    assert (image[small.inside] > 0).all()


def test_the_nodes_near_the_boxes_are_all_that_matter(small):
    """Against the sum over every reflection of the list but the direct beam, none left out."""
    panels, beam = panel_configs(small.detector, small.beam, None), create_beam_config(small.beam)
    widths = {"domain_size_A": SIZE_A, "mosaicity_deg": MOSAICITY_DEG}
    crystal = override(create_crystal_config(small.crystal), widths)
    diffracted = (small.hkl != 0).any(1)
    hkl, F = small.hkl[diffracted], small.F[diffracted]
    total = torch.zeros(len(small.inside[0]), dtype=torch.float64)
    for number in range(2):
        mine = torch.nonzero(small.inside[0] == number)[:, 0]
        pixel, node = (grid.flatten() for grid in torch.meshgrid(mine, torch.arange(len(hkl)), indexing="ij"))
        panel = torch.full((len(hkl),), number)
        total += profile(crystal, panels, beam, hkl, F, small.inside, Pairs(pixel, node), panel)
    image = small.predicted()[small.inside]
    assert ((image - total).abs() / total.max()).max() < CANDIDATE_NODES_RELATIVE


@pytest.mark.parametrize("kind", ["numpy", "flex", "tuples"])
def test_reflections_may_be_arrays_of_any_kind(small, kind):
    hkl, F = small.hkl.numpy(), small.F.numpy()
    if kind == "flex":
        from dials.array_family import flex

        hkl = flex.miller_index(*(flex.int(np.ascontiguousarray(column, dtype=np.int32)) for column in hkl.T))
        F = flex.double(F)
    elif kind == "tuples":
        hkl, F = [tuple(h) for h in hkl.tolist()], F.tolist()
    again = dataclasses.replace(small, hkl=hkl, F=F)
    assert torch.equal(again.predicted(), small.predicted())


@pytest.mark.parametrize("dtype", [torch.float32, "float32", "torch.float32"])
def test_the_result_has_the_dtype_that_was_asked_for(small, dtype):
    image = small.predicted(dtype=dtype, device="cpu")
    assert image.dtype == torch.float32
    assert small.predicted(dtype=None).dtype == torch.float64


@pytest.mark.parametrize("dtype", ["float23", torch.int64])
def test_a_dtype_without_fractions_is_refused(small, dtype):
    with pytest.raises(ValueError, match=r"expected torch\.float64 or torch\.float32"):
        small.predicted(dtype=dtype)


def test_the_scale_multiplies_and_the_hint_stands_in_for_it(small):
    once = small.predicted(spot_scale_override=1.0)
    assert torch.allclose(small.predicted(spot_scale_override=2.5), 2.5 * once, rtol=ROUNDING)
    hinted = dataclasses.replace(small, inputs=dataclasses.replace(small.inputs, global_scale_hint=3.0))
    assert torch.allclose(hinted.predicted(spot_scale_override=None), 3 * once, rtol=ROUNDING)


def test_a_positive_distance_means_the_panel_where_it_stands(small):
    signed = [panel.get_directed_distance() for panel in small.detector]
    assert signed[0] > 0 > signed[1]
    unsigned = [{"distance_mm": abs(distance)} for distance in signed]
    assert torch.allclose(small.predicted(detector=unsigned), small.predicted(), rtol=1e-9)


def test_an_override_of_another_name_is_refused_with_the_nearest(small):
    with pytest.raises(KeyError, match="did you mean 'distance_mm'"):
        small.predicted(detector={"distance": 90.0})


def test_overrides_of_another_number_of_panels_are_refused(small):
    with pytest.raises(ValueError, match="1 overrides for 2 panels"):
        small.predicted(detector=[{"distance_mm": 90.0}])


def test_reflections_of_another_crystal_are_refused(small):
    far = dataclasses.replace(small, hkl=small.hkl + 1000)
    with pytest.raises(ValueError, match="no reflection of the list lies near the boxes"):
        far.predicted()


def test_inputs_without_boxes_are_refused(small):
    empty = dataclasses.replace(small, inputs=dataclasses.replace(small.inputs, panel_slices=()))
    with pytest.raises(ValueError, match="the inputs have no box"):
        empty.predicted()
