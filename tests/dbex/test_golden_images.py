"""DB-AT-001: the sampled sum is what the original C program counts, image by image."""

import numpy as np
import pytest
import torch

from nanobrag_torch.mosaic import seeded_rotations
from tests.golden.cases import ALL, FOLDER, JUDGED, QUIRKS, named
from tests.golden.judging import computed, largest_difference, rois
from tests.reports import acceptance_report
from tests.tolerances import GOLDEN_FAINT, GOLDEN_ROI_CC, SEEDED_MATRIX

DRAWN = [name for name in JUDGED if "mosaic_rotations" in ALL[name]]
REALISTIC = [name for name in JUDGED if name.startswith("realistic")]


@pytest.fixture(scope="module")
def folder():
    if not FOLDER.exists():
        pytest.skip(f"{FOLDER}, the golden images of the original nanoBragg, is absent")
    return FOLDER


@pytest.fixture(scope="module")
def images(folder):
    with np.load(folder / "images.npz") as found:
        return {name: found[name] for name in found.files}


def inputs_of(folder, name):
    return [folder / word for word in ALL[name]["argv"] if word.startswith("inputs/")]


class TestDB_AT_001_Golden:
    @pytest.mark.parametrize("name", named(JUDGED))
    def test_db_at_001_the_sampled_sum_is_the_golden_image(self, name, folder, images):
        tolerances = {"relative": ALL[name]["tolerance"], "faint, of the maximum": GOLDEN_FAINT}
        with acceptance_report("DB-AT-001", name, tolerances=tolerances, inputs=inputs_of(folder, name)) as values:
            image, reference = computed(name, folder), images[name]
            values["largest relative difference"] = largest_difference(image, name, images)
            values["judged pixels"] = ALL[name]["judged_pixels"]
            faint = reference <= ALL[name]["tolerance"]["above"] * reference.max()
            values["faint, of the maximum"] = np.abs(image - reference)[faint].max(initial=0) / reference.max()
            assert values["largest relative difference"] <= ALL[name]["tolerance"]["max_rel"]
            assert values["faint, of the maximum"] <= GOLDEN_FAINT

    @pytest.mark.parametrize("name", named(REALISTIC))
    def test_db_at_001_correlation_of_the_spots_of_a_realistic_image(self, name, folder, images):
        tolerances = {"median correlation": GOLDEN_ROI_CC}
        report = acceptance_report("DB-AT-001", f"{name}_spots", tolerances=tolerances, inputs=inputs_of(folder, name))
        with report as values:
            image, reference = computed(name, folder), images[name].astype(np.float64)
            cc = [np.corrcoef(image[box].ravel(), reference[box].ravel())[0, 1] for box in rois(reference)]
            values["spots"], values["median correlation"], values["lowest"] = len(cc), np.median(cc), min(cc)
            assert len(cc) > 30
            assert values["median correlation"] >= GOLDEN_ROI_CC

    @pytest.mark.parametrize("name", named(DRAWN))
    def test_db_at_001_seeded_domains_are_those_of_the_c_program(self, name, folder):
        argv, path = ALL[name]["argv"], folder / ALL[name]["mosaic_rotations"]
        seed = int(argv[argv.index("-mosaic_seed") + 1]) if "-mosaic_seed" in argv else -12345678
        tolerances = {"absolute": SEEDED_MATRIX}
        with acceptance_report("DB-AT-001", f"{name}_domains", tolerances=tolerances, inputs=[path]) as values:
            expected = torch.as_tensor(np.load(path))
            drawn = seeded_rotations(float(argv[argv.index("-mosaic") + 1]), len(expected), seed)
            values["domains"], values["largest difference"] = len(expected), (drawn - expected).abs().max()
            assert values["largest difference"] <= SEEDED_MATRIX

    @pytest.mark.skipif(not ALL, reason=f"{FOLDER} is absent")
    def test_db_at_001_every_image_is_judged(self):
        with acceptance_report("DB-AT-001", "cases", tolerances={}) as values:
            values["judged"], values["what the C program gets wrong"] = len(JUDGED), sorted(QUIRKS)
            assert set(JUDGED) | set(QUIRKS) == set(ALL)
            assert all(ALL[name]["imitate"] for name in JUDGED)
