"""DB-AT-002: the same inputs and seed give the same bits, on one thread and on two; other seeds give other noise."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from nanobrag_torch.noise import noisy
from tests.conftest import ROOT
from tests.dbex.same_bits import digest, images, sampled
from tests.reports import acceptance_report
from tests.tolerances import UNCORRELATED_SIGMAS

MEAN, SIGMA_READOUT = 20.0, 3.0


def in_another_process(threads):
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.dbex.same_bits", str(threads)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def expected():
    return torch.full((200, 300), MEAN, dtype=torch.float64)


class TestDB_AT_002_SameBits:
    def test_db_at_002_one_thread_and_two_give_the_same_bits(self):
        with acceptance_report("DB-AT-002", "threads", tolerances={"bits": 0}) as values:
            here = {name: digest(image) for name, image in images().items()}
            values |= {"this process": here, "one thread": in_another_process(1), "two threads": in_another_process(2)}
            assert len(here) == 3
            assert here == values["one thread"] == values["two threads"]

    def test_db_at_002_another_seed_is_another_crystal(self):
        with acceptance_report("DB-AT-002", "domains", tolerances={"bits": 0}) as values:
            same, other = sampled(), sampled(seed=-8)
            values["bits that a seed repeats"] = torch.equal(same, sampled())
            values["correlation of two seeds"] = np.corrcoef(same.flatten(), other.flatten())[0, 1]
            assert values["bits that a seed repeats"]
            assert 0 < values["correlation of two seeds"] < 0.9999

    def test_db_at_002_noise_of_two_seeds_is_uncorrelated(self, expected):
        limit = UNCORRELATED_SIGMAS / np.sqrt(expected.numel())
        with acceptance_report("DB-AT-002", "noise", tolerances={"correlation": limit}) as values:
            one, again, other = (noisy(expected, seed, SIGMA_READOUT).flatten() for seed in (3, 3, 4))
            values["correlation"] = np.corrcoef(one, other)[0, 1]
            values["mean"], values["variance"] = one.mean(), one.var()
            assert torch.equal(one, again)
            assert abs(values["correlation"]) < limit

    def test_db_at_002_its_mean_and_variance_are_those_of_photons_and_read_out(self, expected):
        with acceptance_report("DB-AT-002", "moments", tolerances={"esds": UNCORRELATED_SIGMAS}) as values:
            n, variance = expected.numel(), MEAN + SIGMA_READOUT**2
            drawn = noisy(expected, 5, SIGMA_READOUT)
            values["mean, esds"] = ((drawn.mean() - MEAN) / np.sqrt(variance / n)).item()
            values["variance, esds"] = ((drawn.var() - variance) / (variance * np.sqrt(2 / n))).item()
            assert abs(values["mean, esds"]) < UNCORRELATED_SIGMAS
            assert abs(values["variance, esds"]) < UNCORRELATED_SIGMAS
            assert torch.equal(noisy(expected, 5), torch.round(noisy(expected, 5)))
