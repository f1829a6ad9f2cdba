"""DB-AT-031: intensities of stills whose photons were drawn come back within their esds."""

import numpy as np
import pytest

from dbex.refinement.refine import refine_still
from dbex.refinement.settings import Settings
from tests.dbex.conftest import SHIPPED
from tests.dbex.refinement.closed_form import drawn_still, truth_of
from tests.reports import acceptance_report
from tests.tolerances import COVERAGE_68_OF_INTENSITIES, COVERAGE_95_OF_INTENSITIES

SEEDS = (1, 2, 3)


def errors_in_esds(found):
    """(intensity - |F|²)/esd of every box, and its signal over noise."""
    amplitudes, boxes = found.still.amplitudes, found.boxes
    known = {tuple(h): F**2 for h, F in zip(amplitudes.hkl.tolist(), amplitudes.F.tolist(), strict=True)}
    truth = np.array([known[tuple(h)] for h in boxes.hkl.tolist()])
    return (boxes.intensity - truth) / np.sqrt(boxes.variance), boxes.signal_to_noise


class TestDB_AT_031_Intensities:
    @pytest.mark.full_profile
    def test_db_at_031_drawn_intensities_come_back_within_their_esds(self, still):
        tolerances = {
            "within one esd": [0.6827 - COVERAGE_68_OF_INTENSITIES, 0.6827 + COVERAGE_68_OF_INTENSITIES],
            "within two esds": [0.9545 - COVERAGE_95_OF_INTENSITIES, 0.9545 + COVERAGE_95_OF_INTENSITIES],
        }
        with acceptance_report("DB-AT-031", "recovered", tolerances=tolerances, inputs=tuple(SHIPPED)) as values:
            truth, settings = truth_of(still), Settings(start="near", terms=())
            found = [errors_in_esds(refine_still(drawn_still(still, truth, seed=seed), settings)) for seed in SEEDS]
            z, signal = (np.concatenate(column) for column in zip(*found, strict=True))
            values |= {
                "intensities": len(z),
                "within one esd": (np.abs(z) < 1).mean(),
                "within two esds": (np.abs(z) < 2).mean(),
                "mean and rms of the weak": [z[signal < 1].mean(), z[signal < 1].std()],
                "mean and rms of the strong": [z[signal > 10].mean(), z[signal > 10].std()],
            }
            assert np.isfinite(z).all()
            assert len(z) > 400
            assert abs(values["within one esd"] - 0.6827) < COVERAGE_68_OF_INTENSITIES
            assert abs(values["within two esds"] - 0.9545) < COVERAGE_95_OF_INTENSITIES
