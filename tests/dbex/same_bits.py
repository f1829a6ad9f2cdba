"""What DB-AT-002 computes in a process of its own: digests of images by name, as JSON.

python -m tests.dbex.same_bits THREADS
"""

import hashlib
import json
import sys

import numpy as np
import torch

from nanobrag_torch.config import BeamConfig, CrystalConfig, DetectorConfig
from nanobrag_torch.mosaic import seeded_rotations
from nanobrag_torch.noise import noisy
from nanobrag_torch.simulate import simulate
from nanobrag_torch.structure_factors import from_list
from tests.dbex.small_still import small_still

DOMAINS, SPREAD_DEG, SEED = 12, 0.6, -7


def sampled(seed=SEED):
    """A sampled image (48, 48) of a thick oblique panel with seeded mosaic domains: more terms than one block holds."""
    steps = torch.arange(-6, 7)
    hkl = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    F = 50 + 40 * torch.sin(hkl.to(torch.float64) @ torch.tensor([1.0, 2.3, 3.7], dtype=torch.float64))
    crystal = CrystalConfig(
        40.0, 45.0, 52.0, 85.0, 95.0, 100.0, N_cells=(9.0, 8.0, 7.0),
        mosaic_rotations=seeded_rotations(SPREAD_DEG, DOMAINS, seed),
    )  # fmt: skip
    panel = DetectorConfig((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), 60.0, -10.0, -9.0, 0.4, (48, 48), 0.3, 2.0, oversample=2)
    beam = BeamConfig(1.0, (0.0, 0.0, -1.0))
    return simulate(crystal, panel, beam, from_list(hkl, F), max_bytes=2**23).reshape(panel.shape)


def images():
    """Images by name: the closed form, the sampled sum, and counts drawn from it."""
    still, image = small_still(1), sampled()
    expected = 50 * image / image.max() + 1
    return {"closed form": still.predicted(), "sampled": image, "counts": noisy(expected, 11, sigma_readout=2.0)}


def digest(image):
    """SHA-256 of an image's bytes."""
    return hashlib.sha256(np.ascontiguousarray(image.numpy()).tobytes()).hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    sys.stdout.write(json.dumps({name: digest(image) for name, image in images().items()}))
