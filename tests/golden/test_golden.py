"""The sampled sum in single precision, and what the C program gets wrong; that every image is reproduced is DB-AT-001,
in tests/dbex/test_golden_images.py."""

import numpy as np
import pytest
import torch

from tests import tolerances
from tests.golden.cases import ALL, JUDGED, QUIRKS, named
from tests.golden.judging import computed, largest_difference


@pytest.mark.parametrize("name", named(["tricubic_auto", "samplesize", "realistic_a"]))
def test_float32_keeps_to_its_band_where_it_was_worst(name, golden_folder):
    double, single = computed(name, golden_folder), computed(name, golden_folder, torch.float32)
    bright = double > 1e-3 * double.max()
    assert np.abs(single[bright] / double[bright] - 1).max() <= tolerances.FLOAT32_IMAGE


@pytest.mark.parametrize(("name", "right"), list(QUIRKS.items()) if ALL else named([]))
def test_what_the_c_program_gets_wrong_is_not_imitated(name, right, golden_folder, golden_images):
    image = computed(name, golden_folder)
    assert largest_difference(image, right, golden_images) <= ALL[right]["tolerance"]["max_rel"]
    reference = golden_images[name].astype(np.float64)
    bright = image > 1e-3 * image.max()
    wrong_by = (np.abs(image - reference)[bright] / image[bright]).max()
    assert wrong_by == pytest.approx(ALL[name]["quirk_max_rel"], rel=tolerances.GOLDEN_QUIRK_ROUNDING)


@pytest.mark.skipif(not ALL, reason="shared/golden is absent")
def test_every_golden_case_is_judged_or_left_out_by_name():
    assert set(JUDGED) | set(QUIRKS) == set(ALL)
    assert all(not ALL[name]["imitate"] for name in QUIRKS)
    assert all(ALL[name]["imitate"] for name in JUDGED)
