"""DB-AT-021: a mask is a tuple of flex.bool a panel, True = trusted, and what it hides has no influence."""

import pickle

import numpy as np
import pytest
import torch
from dials.array_family import flex

from dbex.data_load import read_stills
from dbex.errors import BadInput
from dbex.io import masks
from dbex.physics.loss import compute_masked_mse_loss
from dbex.refinement.inputs import prepare_refinement_inputs, stacked_mask
from tests.reports import acceptance_report

SHAPE = (1, 40, 50)


def pickled(path, *panels):
    path.write_bytes(pickle.dumps(tuple(flex.bool(np.ascontiguousarray(panel)) for panel in panels)))
    return path


class TestDB_AT_021_Mask:
    def test_db_at_021_true_means_trusted(self, loaded, shipped):
        with acceptance_report("DB-AT-021", "polarity", tolerances={}, inputs=[shipped.mask]) as values:
            on_file = pickle.loads(shipped.mask.read_bytes())[0].as_numpy_array()
            ours = loaded.trusted_mask[0].as_numpy_array()
            values["trusted on file"], values["trusted"] = int(on_file.sum()), int(ours.sum())
            assert isinstance(loaded.trusted_mask, tuple)
            assert isinstance(loaded.trusted_mask[0], flex.bool)
            assert not (ours & ~on_file).any()
            assert (loaded.data[0][ours] >= 0).all()
            assert (on_file & ~ours).sum() == (loaded.data[0][on_file] < 0).sum()

    def test_db_at_021_the_loss_mask_is_background_and_trust(self, loaded, inputs):
        with acceptance_report("DB-AT-021", "loss_mask", tolerances={}) as values:
            values["pixels"] = int(inputs.loss_mask.sum())
            np.testing.assert_array_equal(inputs.trusted_mask[0], loaded.trusted_mask[0].as_numpy_array())
            np.testing.assert_array_equal(inputs.loss_mask, (loaded.background_image >= 0) & inputs.trusted_mask)

    @pytest.mark.parametrize("poison", [1e9, -1e9, float("nan"), float("inf")])
    @pytest.mark.parametrize("weights", ["none", "sigma", "variance"])
    def test_db_at_021_masked_pixels_change_neither_loss_nor_gradient(self, poison, weights):
        with acceptance_report("DB-AT-021", f"masked_{weights}_{poison}", tolerances={"bits": 0}) as values:
            clean, dirty = (loss_and_gradient(weights, value) for value in (0.5, poison))
            values["loss"], values["loss with the poison"] = clean[0].item(), dirty[0].item()
            assert clean[0].item() > 0
            assert torch.equal(clean[0], dirty[0])
            assert torch.equal(clean[1], dirty[1])
            assert clean[1].abs().sum() > 0

    def test_db_at_021_masked_pixels_do_not_reach_the_inputs(self, loaded, still):
        with acceptance_report("DB-AT-021", "inputs", tolerances={"bits": 0}) as values:
            detector, trusted = still.experiment.detector, stacked_mask(loaded.trusted_mask)
            poisoned = np.where(trusted, loaded.data, 1e9)
            rest = (loaded.background_image, loaded.trusted_mask, loaded.bbox, loaded.pids, detector)
            a, b = (prepare_refinement_inputs(data, *rest, sigma_readout=3.0) for data in (loaded.data, poisoned))
            values["untrusted pixels"] = int((~trusted).sum())
            np.testing.assert_array_equal(a.target, b.target)


class TestDB_AT_021_Refused:
    @pytest.mark.parametrize(
        ("name", "panels", "shapes", "said"),
        [
            (
                "transposed",
                [(2463, 2527)],
                [(2527, 2463)],
                r"mask has shape \(2463, 2527\) but the detector is \(2527, 2463\): is it transposed\?",
            ),
            (
                "another size",
                [(40, 50), (40, 51)],
                [(40, 50)] * 2,
                r"shape \(40, 51\) on panel 1 but the detector is \(40, 50\): give one of this",
            ),
            ("panels", [(40, 50)], [(40, 50)] * 2, "mask has 1 panels but the detector has 2"),
        ],
    )
    def test_db_at_021_a_mask_that_does_not_fit_is_refused_with_both_shapes(self, name, panels, shapes, said, tmp_path):
        with acceptance_report("DB-AT-021", f"refused_{name.replace(' ', '_')}", tolerances={}) as values:
            path = pickled(tmp_path / "mask.pkl", *(np.ones(shape, bool) for shape in panels))
            with pytest.raises(BadInput, match=said) as refusal:
                masks.read_mask(path, shapes)
            values["message"] = str(refusal.value)

    def test_db_at_021_an_inverted_mask_is_refused(self, shipped, tmp_path):
        """The shipped mask the wrong way up: its spots lie on what it does not trust."""
        with acceptance_report("DB-AT-021", "refused_inverted", tolerances={}, inputs=[shipped.mask]) as values:
            (panel,) = pickle.loads(shipped.mask.read_bytes())
            path = pickled(tmp_path / "mask.pkl", ~panel.as_numpy_array())
            with pytest.raises(BadInput, match="is it inverted") as refusal:
                read_stills(shipped.expt, shipped.refl, shipped.mtz, path).read(0)
            values["message"] = str(refusal.value)


def loss_and_gradient(weights, poison):
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(SHAPE, generator=generator) > 0.3
    prediction, target, sigma = (torch.rand(SHAPE, generator=generator, dtype=torch.float64) + 0.5 for _ in range(3))
    prediction, target, sigma = (torch.where(mask, array, poison) for array in (prediction, target, sigma))
    prediction.requires_grad_()
    extra = {"none": {}, "sigma": {"sigma_readout": sigma}, "variance": {"variance": sigma}}[weights]
    loss = compute_masked_mse_loss(prediction, target, mask, **extra)
    return loss.detach(), torch.autograd.grad(loss, prediction)[0]


def test_a_mask_comes_back_as_it_was_written(tmp_path):
    panels = [np.random.default_rng(i).random(shape) > 0.2 for i, shape in enumerate([(40, 50), (30, 20)])]
    found = masks.read_mask(pickled(tmp_path / "mask.pkl", *panels), [(40, 50), (30, 20)])
    for ours, theirs in zip(found, panels, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_inputs_take_a_mask_as_array_and_as_tuple_alike():
    panels = np.random.default_rng(0).random((2, 4, 5)) > 0.5
    as_flex = tuple(flex.bool(np.ascontiguousarray(panel)) for panel in panels)
    np.testing.assert_array_equal(stacked_mask(as_flex), stacked_mask(panels))
