"""The masked loss is what docs/physics.md, section 4, says, and its gradient belongs to its value."""

import numpy as np
import pytest
import torch

from dbex.physics.loss import compute_masked_mse_loss

SHAPE = (2, 5, 6)


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(7)
    prediction, target = (torch.rand(SHAPE, generator=generator, dtype=torch.float64) * 20 for _ in range(2))
    mask = torch.rand(SHAPE, generator=generator) > 0.4
    return prediction.requires_grad_(), target, mask


def test_without_noise_it_is_the_mean_square(image):
    prediction, target, mask = image
    expected = ((target - prediction)[mask] ** 2).mean()
    assert torch.allclose(compute_masked_mse_loss(prediction, target, mask), expected, rtol=1e-14)


def test_with_noise_the_variance_is_prediction_plus_readout(image):
    prediction, target, mask = image
    expected = ((target - prediction) ** 2 / (prediction + 9.0))[mask].mean()
    for sigma in (3.0, torch.tensor(3.0), torch.full(SHAPE, 3.0), np.full(SHAPE, 3.0)):
        assert torch.allclose(compute_masked_mse_loss(prediction, target, mask, sigma), expected, rtol=1e-14)


def test_a_variance_is_constant(image):
    prediction, target, mask = image
    loss = compute_masked_mse_loss(prediction, target, mask, variance=(prediction + 9.0).detach())
    gradient = torch.autograd.grad(loss, prediction)[0]
    expected = -2 * (target - prediction) / (prediction + 9.0) / mask.sum() * mask
    assert torch.allclose(gradient, expected.detach(), rtol=1e-13)


def test_a_variance_goes_before_the_noise(image):
    prediction, target, mask = image
    one = compute_masked_mse_loss(prediction, target, mask, 3.0, variance=2.0)
    assert torch.equal(one, compute_masked_mse_loss(prediction, target, mask, variance=torch.full(SHAPE, 2.0)))


@pytest.mark.parametrize("extra", [{}, {"sigma_readout": 3.0}, {"variance": 5.0}])
def test_the_gradient_is_that_of_the_value(image, extra):
    prediction, target, mask = image
    assert torch.autograd.gradcheck(lambda p: compute_masked_mse_loss(p, target, mask, **extra), prediction)
    loss = compute_masked_mse_loss(prediction, target, mask, **extra)
    assert torch.autograd.grad(loss, prediction)[0].abs().sum() > 0


def test_a_frozen_variance_has_no_bias_where_a_moving_one_has():
    """With V moving, Pearson's χ² is least half a photon too high; with V frozen at its own minimum it is not."""
    counts = torch.poisson(torch.full((1, 300, 300), 10.0), generator=torch.Generator().manual_seed(1)).double()
    mask = torch.ones(counts.shape, dtype=torch.bool)

    def slope(level, variance):
        flat = torch.tensor(level, dtype=torch.float64, requires_grad=True)
        moving = {"sigma_readout": 1e-6} if variance is None else {"variance": variance}
        loss = compute_masked_mse_loss(flat.expand(counts.shape), counts, mask, **moving)
        return torch.autograd.grad(loss, flat)[0].item()

    mean = counts.mean().item()
    assert slope(mean, mean) == pytest.approx(0.0, abs=1e-12)
    assert slope(mean, None) < 0 < slope(mean + 1.0, None)
    assert slope(mean + 0.45, None) < 0 < slope(mean + 0.55, None)


def test_numpy_arrays_do_for_all_but_the_prediction(image):
    prediction, target, mask = image
    sigma = np.full(SHAPE, 2.0)
    ours = compute_masked_mse_loss(prediction, target.numpy(), mask.numpy(), sigma)
    assert torch.equal(ours, compute_masked_mse_loss(prediction, target, mask, torch.as_tensor(sigma)))


def test_an_empty_mask_is_refused(image):
    with pytest.raises(ValueError, match="mask is empty"):
        compute_masked_mse_loss(image[0], image[1], torch.zeros(SHAPE, dtype=torch.bool))


@pytest.mark.parametrize("name", ["target", "mask", "sigma_readout", "variance"])
def test_another_shape_is_refused_with_both(image, name):
    prediction, target, mask = image
    given = {"target": target, "mask": mask, name: torch.ones((2, 6, 5))}
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 6, 5\) but the prediction is \(2, 5, 6\)"):
        compute_masked_mse_loss(prediction, **given)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("name", ["sigma_readout", "variance"])
def test_noise_that_is_not_positive_inside_the_mask_is_refused(image, name, bad):
    prediction, target, mask = image
    entries = torch.ones(SHAPE, dtype=torch.float64)
    entries[tuple(index[0] for index in torch.nonzero(mask, as_tuple=True))] = bad
    with pytest.raises(ValueError, match=f"{name} is zero, negative or NaN inside the mask"):
        compute_masked_mse_loss(prediction, target, mask, **{name: entries})
    with pytest.raises(ValueError, match=f"{name} is zero, negative or NaN inside the mask"):
        compute_masked_mse_loss(prediction, target, mask, **{name: bad})
