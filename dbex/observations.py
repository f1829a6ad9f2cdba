"""The plain records of intensities that many stills have measured: every observation, and their means."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from dbex.still import Bools, Floats, Ints


@dataclass(frozen=True)
class Observations:
    """Full intensities on the scale of |F|², one row each: hkl (n, 3), number of the still, value, variance from the
    pixels, relative error that its model leaves, partiality, position (n, 2) in pixels and panel."""

    hkl: Ints
    still: Ints
    value: Floats
    pixel_variance: Floats
    relative_error: Floats
    partiality: Floats
    xy_px: Floats
    panel: Ints

    def __len__(self) -> int:
        return len(self.value)

    def variance(self, mean: Floats) -> Floats:
        """The variance (n,) of each where its reflection has this mean."""
        return self.pixel_variance + (self.relative_error * mean) ** 2

    def select(self, chosen: Bools | Ints) -> "Observations":
        """Some of them."""
        return Observations(*(getattr(self, item.name)[chosen] for item in fields(self)))


def together(parts: Sequence[Observations]) -> Observations:
    """The observations of several stills as one list."""
    names = [item.name for item in fields(Observations)]
    return Observations(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Means:
    """Merged intensities: the mean (m,) of each group, its standard deviation, larger where observations disagree, and
    how many there were."""

    value: Floats
    sigma: Floats
    count: Ints
