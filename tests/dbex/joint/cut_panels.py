"""Stills on one panel as stills on four, cut from it: the same pixels in the same places."""

from dataclasses import replace

import numpy as np

from nanobrag_torch.config import override

#: Panels along slow and fast.
PARTS = (2, 2)


def edges(shape):
    """First pixels of the parts along slow and along fast, and the ends."""
    return tuple(np.linspace(0, n, parts + 1).astype(int) for n, parts in zip(shape, PARTS, strict=True))


def cut_detector(panel):
    """The four panels, those of the upper half first."""
    slow, fast = edges(panel.shape)
    return tuple(
        override(
            panel,
            {
                "shape": (int(slow[i + 1] - slow[i]), int(fast[j + 1] - fast[j])),
                "origin_fast_mm": panel.origin_fast_mm + fast[j] * panel.pixel_size_mm,
                "origin_slow_mm": panel.origin_slow_mm + slow[i] * panel.pixel_size_mm,
            },
        )
        for i in range(PARTS[0])
        for j in range(PARTS[1])
    )


def cut_still(still):
    """The still on the four panels; a spot is where its middle is."""
    slow, fast = edges(still.detector[0].shape)

    def cut(image):
        return tuple(
            image[slow[i] : slow[i + 1], fast[j] : fast[j + 1]] for i in range(PARTS[0]) for j in range(PARTS[1])
        )

    xy = still.observed.xy_px
    row = np.searchsorted(slow, xy[:, 1], side="right") - 1
    column = np.searchsorted(fast, xy[:, 0], side="right") - 1
    corner = np.stack([fast[column], slow[row]], -1)
    observed = replace(
        still.observed,
        panel=row * PARTS[1] + column,
        xy_px=xy - corner,
        bbox=still.observed.bbox - corner[:, [0, 0, 1, 1]],
    )
    noise = replace(still.noise, sigma_readout_photons=still.noise.sigma_readout_photons * (PARTS[0] * PARTS[1]))
    return replace(
        still,
        observed=observed,
        images_photons=cut(still.images_photons[0]),
        trusted=cut(still.trusted[0]),
        detector=cut_detector(still.detector[0]),
        noise=noise,
    )
