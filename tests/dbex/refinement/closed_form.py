"""Stills drawn from the closed form itself on the shipped still's geometry: what a refinement should find is known."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dbex.refinement.parameters import Models, Parametrisation
from dbex.refinement.predictions import predict
from dbex.refinement.rounds import start
from dbex.refinement.settings import Settings
from dbex.still import Observed
from nanobrag_torch.profile import Pairs, Quadrature, nodes, pair_intensities

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


def add_spots(expected, models, spots, amplitudes, at_once=64):
    """Add the spots to the images (slow, fast), and return the photons (n,) of each; by the readable closed form."""
    rule, span = Quadrature(oversample=3), np.arange(-REACH_PX, REACH_PX + 1)
    photons = np.zeros(len(spots))
    up, along = (a.ravel() for a in np.meshgrid(span, span, indexing="ij"))
    shapes = np.array([image.shape for image in expected])
    for first in range(0, len(spots), at_once):
        part = spots.select(np.arange(first, min(first + at_once, len(spots))))
        centre = np.floor(part.xy_px).astype(np.int64)
        slow, fast = centre[:, 1, None] + up, centre[:, 0, None] + along
        limit = shapes[part.panel]
        node, place = np.nonzero((slow >= 0) & (fast >= 0) & (slow < limit[:, :1]) & (fast < limit[:, 1:]))
        panel, slow, fast = part.panel[node], slow[node, place], fast[node, place]
        hkl = torch.as_tensor(amplitudes.hkl[part.index])
        of = torch.as_tensor(part.panel)
        at = nodes(models.crystal, models.panels, models.beam, hkl, of, models.ln_scale, rule)
        pixels = tuple(torch.as_tensor(a) for a in (panel, slow, fast))
        pairs = Pairs(torch.arange(len(node)), torch.as_tensor(node))
        image = pair_intensities(at, models.panels, models.beam, pixels, pairs, rule).numpy()
        image = image * amplitudes.F[part.index[node]] ** 2
        photons[first : first + len(part)] = np.bincount(node, image, len(part))
        for i in np.unique(panel):
            here = panel == i
            np.add.at(expected[i], (slow[here], fast[here]), image[here])
    return photons
