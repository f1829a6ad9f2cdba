"""What is known of intensities beforehand, and the model's error that the data themselves tell."""

import numpy as np
import pytest

from dbex.refinement.prior import (
    FLOOR,
    RELATIVE_LIMITS,
    SLOPE_PRIOR_A2,
    ModelError,
    estimate_model_error,
    intensity_prior,
    known_of,
)
from dbex.still import Amplitudes
from tests.tolerances import MODEL_ERROR_SHELLS, MODEL_ERROR_SIGMAS, MODEL_ERROR_SKEWED

CELL = (30.0, 30.0, 30.0, 90.0, 90.0, 90.0)
#: Mean F² of the list.
MEAN = 100.0


def amplitudes(rng, count, relative_sigma=0.01, cell=CELL):
    F = np.sqrt(rng.exponential(MEAN, count)) + 0.1
    hkl = rng.integers(-9, 10, (count, 3))
    return Amplitudes(hkl, F, relative_sigma * F, "F", "P 1", cell)


def wrong(rng, known, error):
    """Intensities of a crystal whose F differ from the list by error/2 of the rms F."""
    return (known.F + 0.5 * error * np.sqrt(MEAN) * rng.normal(size=len(known.F))) ** 2


@pytest.mark.parametrize("error", [0.05, 0.2, 0.5])
def test_an_imposed_error_of_the_amplitudes_is_found_within_its_scatter(error):
    """For N intensities whose own errors are small the estimate has a relative scatter of 1/√(2N)."""
    rng = np.random.default_rng(int(1000 * error))
    found = []
    for _ in range(10):
        known = amplitudes(rng, 400)
        variance = (0.02 * known.F**2) ** 2
        value = wrong(rng, known, error) + np.sqrt(variance) * rng.normal(size=400)
        found.append(estimate_model_error(value, variance, known, np.arange(400)).relative)
    scatter = 1 / np.sqrt(2 * 400 * 10)
    # what the list's sigma (2 %) and the measurement (2 %) add at 5 % makes that case less certain
    own = 1 + 2 * 0.02**2 / error**2
    assert abs(np.log(np.mean(found) / error)) < MODEL_ERROR_SIGMAS * scatter * own + MODEL_ERROR_SHELLS


def test_an_error_as_large_as_the_amplitudes_is_found_although_their_squares_are_skewed():
    rng = np.random.default_rng(1)
    known = amplitudes(rng, 4000)
    found = estimate_model_error(wrong(rng, known, 1.0), 1e-4 * known.F**4, known, np.arange(4000))
    assert found.relative == pytest.approx(1.0, rel=MODEL_ERROR_SKEWED)


def test_an_error_that_grows_with_resolution_is_seen_to_grow():
    rng = np.random.default_rng(8)
    known = amplitudes(rng, 3000)
    s2 = known_of(known, np.arange(3000)).s2
    value = (known.F + 0.1 * np.exp(8 * (s2 - s2.mean())) * np.sqrt(MEAN) * rng.normal(size=3000)) ** 2
    found = estimate_model_error(value, (0.01 * known.F**2) ** 2, known, np.arange(3000))
    assert found.slope_A2 == pytest.approx(8, rel=0.2)
    assert found.relative == pytest.approx(0.2, rel=0.1)


def test_no_error_nearby_makes_the_intensities_more_likely_than_the_one_that_is_found():
    rng = np.random.default_rng(11)
    known = amplitudes(rng, 300)
    value, variance = wrong(rng, known, 0.3), (0.05 * known.F**2) ** 2
    found = estimate_model_error(value, variance, known, np.arange(300))

    def minus_ln_likelihood(relative, slope):
        sd = known_of(known, np.arange(300)).prior_sd(ModelError(relative, slope, found.s2))
        total = variance + sd**2
        fit = np.log(total) + (value - known.F**2) ** 2 / total
        return 0.5 * (fit.sum() + (slope / SLOPE_PRIOR_A2) ** 2)

    best = minus_ln_likelihood(found.relative, found.slope_A2)
    for by in (-1e-3, 1e-3):
        assert minus_ln_likelihood(found.relative * (1 + by), found.slope_A2) > best
        assert minus_ln_likelihood(found.relative, found.slope_A2 + 10 * by) > best


def test_the_prior_variance_follows_the_error_by_its_derivative():
    known = known_of(amplitudes(np.random.default_rng(12), 50), np.arange(50))
    step, tau = 1e-5, np.array([0.03, 0.3, 3.0])[:, None]
    before, after = (known.prior_variance(tau * np.exp(by))[0] for by in (-step, step))
    np.testing.assert_allclose((after - before) / (2 * step), known.prior_variance(tau)[1], rtol=1e-6)


def test_intensities_that_agree_with_the_list_tell_of_no_further_error():
    rng = np.random.default_rng(3)
    known = amplitudes(rng, 300, relative_sigma=0.05)
    variance = (0.1 * known.F**2) ** 2
    value = known.F**2 * (1 + rng.normal(size=300) * np.hypot(0.1, 0.1))
    assert estimate_model_error(value, variance, known, np.arange(300)).relative < 0.05


def test_intensities_of_another_crystal_tell_of_the_largest_error_that_is_tried():
    rng = np.random.default_rng(4)
    known = amplitudes(rng, 300)
    value = 30 * rng.permutation(known.F**2)
    found = estimate_model_error(value, np.full(300, 1e-4), known, np.arange(300))
    assert found.relative == pytest.approx(RELATIVE_LIMITS[1], rel=1e-3)


def test_intensities_that_could_not_be_measured_do_not_count():
    rng = np.random.default_rng(5)
    known = amplitudes(rng, 200)
    value, variance = known.F**2 * (1 + 0.2 * rng.normal(size=200)), (0.02 * known.F**2) ** 2
    usual = estimate_model_error(value[20:], variance[20:], known, np.arange(20, 200))
    value[:10], variance[10:20] = np.nan, 0.0
    assert estimate_model_error(value, variance, known, np.arange(200)) == usual


def test_errors_of_the_list_and_of_the_model_add_in_quadrature():
    known = Amplitudes(np.eye(3, dtype=int)[:2], np.array([10.0, 20.0]), np.array([0.5, 0.0]), "F", "P 1", CELL)
    prior = intensity_prior(known, np.array([0, 1]), ModelError(0.1))
    np.testing.assert_array_equal(prior.mean, [100.0, 400.0])
    variance_F = np.array([0.5**2, 0.0]) + (0.05**2) * 250.0
    expected = 4 * prior.mean.numpy() * variance_F + 2 * variance_F**2 + (FLOOR * 250.0) ** 2
    np.testing.assert_allclose(prior.sd**2, expected)


def test_the_mean_is_that_of_the_resolution():
    rng = np.random.default_rng(9)
    hkl = rng.integers(-30, 31, (40_000, 3))
    s2 = (hkl**2).sum(1) / 30.0**2
    F = np.sqrt(rng.exponential(MEAN, 40_000) * np.exp(-3 * s2))
    known = known_of(Amplitudes(hkl, F, 0 * F, "F", "P 1", CELL), np.arange(40_000))
    np.testing.assert_allclose(known.s2, s2)
    inner = (s2 > 0.3) & (s2 < 1.0)
    assert np.abs(np.log(known.mean_square / (MEAN * np.exp(-3 * s2))))[inner].max() < 0.2


def test_the_error_of_a_squared_normal_number_is_that_of_its_prior():
    """F measured as 2 ± 1: F² varies by √((2 F σ)² + 2 σ⁴), also where 2 F σ alone says too little."""
    rng = np.random.default_rng(6)
    for F in (2.0, 0.0):
        known = Amplitudes(np.eye(3, dtype=int)[:2], np.array([F, 1e-6]), np.array([1.0, 0.0]), "F", "P 1", CELL)
        drawn = (F + rng.normal(size=200_000)) ** 2
        sd = intensity_prior(known, np.array([0, 1]), ModelError(0.0)).sd[0]
        assert sd == pytest.approx(drawn.std(), rel=0.02)
