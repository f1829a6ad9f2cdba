"""Stills drawn from the closed form itself on the shipped still's geometry: what a refinement should find is known."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.parameters import Models, Parametrisation
from dbex.refinement.rounds import start
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import predict
from dbex.still import Observed
from nanobrag_torch.fused import BoxPixels, box_profiles, samples
from nanobrag_torch.profile import Quadrature, nodes

#: Photons a pixel of the background, those of |F|² = 1 in a spot at its best, ln of the scale that makes it so.
BACKGROUND, LN_SCALE = 9.0, -6.0
DOMAIN_SIZE_A, MOSAICITY_DEG = 780.0, 0.03
D_MIN_A, K_DRAWN, K_SEEN = 1.3, 5.0, 1.2
#: Half the edge of the patch in which a spot is drawn, pixels: more than six widths.
REACH_PX = 14


@dataclass(frozen=True)
class Truth:
    """What was drawn: the parametrisation about the truth, at x = 0, and the models there."""

    map: Parametrisation
    models: Models

    @property
    def zero(self) -> Tensor:
        return torch.zeros(len(self.map), dtype=torch.float64)


def truth_of(still, settings=None) -> Truth:
    """The shipped models with widths of our own, for the groups of `settings`."""
    map = start(still, settings or Settings())
    crystal = replace(map.crystal, domain_size_A=DOMAIN_SIZE_A, mosaicity_deg=MOSAICITY_DEG)
    map = replace(map, crystal=crystal, ln_scale=LN_SCALE)
    return Truth(map, map.models(torch.zeros(len(map), dtype=torch.float64)))


def drawn_still(still, truth, seed=1, d_min=D_MIN_A):
    """The still with an image drawn from the models of `truth`, its |F|² exact, and the spots that are seen in it."""
    rng = np.random.default_rng(seed)
    shapes = [panel.shape for panel in still.detector]
    spots = predict(truth.models, still.amplitudes, d_min, K_DRAWN, shapes)
    expected = [np.full(shape, BACKGROUND) for shape in shapes]
    photons = add_spots(expected, truth.models, spots, still.amplitudes)
    seen = spots.select((np.abs(spots.k) < K_SEEN) & (photons > 400))
    corner = np.floor(seen.xy_px).astype(np.int64)
    observed = Observed(
        hkl=still.amplitudes.hkl[seen.index],
        panel=seen.panel,
        bbox=np.stack([corner[:, 0] - 4, corner[:, 0] + 5, corner[:, 1] - 4, corner[:, 1] + 5], -1),
        xy_px=seen.xy_px + rng.normal(0, 0.1, seen.xy_px.shape),
        intensity=np.ones(len(seen)),
        variance=np.ones(len(seen)),
        row=np.arange(len(seen)),
    )
    images = tuple(rng.poisson(image).astype(np.float64) for image in expected)
    return replace(still, images_photons=images, observed=observed)


def add_spots(expected, models, spots, amplitudes):
    """Add the spots to the images (slow, fast), and return the photons (n,) of each."""
    rule, span = Quadrature(oversample=3), np.arange(-REACH_PX, REACH_PX + 1)
    photons = np.zeros(len(spots))
    for row in range(0, len(spots), 32):
        part = spots.select(np.arange(row, min(row + 32, len(spots))))
        centre = np.floor(part.xy_px).astype(np.int64)
        fast = np.broadcast_to(centre[:, 0, None, None] + span, (len(part), len(span), len(span))).reshape(
            len(part), -1
        )
        slow = np.broadcast_to(centre[:, 1, None, None] + span[:, None], (len(part), len(span), len(span))).reshape(
            len(part), -1
        )
        panel = torch.as_tensor(part.panel)
        pixels = BoxPixels(panel, torch.as_tensor(slow), torch.as_tensor(fast))
        hkl = torch.as_tensor(amplitudes.hkl[part.index])
        at = nodes(models.crystal, models.panels, models.beam, hkl, panel, models.ln_scale, rule)
        found = samples(models.panels, models.beam, pixels, rule)
        image = box_profiles(at, found, 1)[..., 0].numpy() * amplitudes.F[part.index, None] ** 2
        photons[row : row + len(part)] = image.sum(1)
        for i, p in enumerate(part.panel):
            n_slow, n_fast = expected[p].shape
            on = (slow[i] >= 0) & (slow[i] < n_slow) & (fast[i] >= 0) & (fast[i] < n_fast)
            np.add.at(expected[p], (slow[i][on], fast[i][on]), image[i][on])
    return photons
