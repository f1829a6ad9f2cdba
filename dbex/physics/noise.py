"""What a number in the image is worth: photons a unit, and read-out noise, each with where it came from.

docs/physics.md, section 4: V = max(M, 0) + σ². Without σ on a detector that integrates charge every weight is wrong,
so it is asked for instead of guessed; a detector that counts photons has none.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.still import NoiseModel

#: The names of the sources of σ, from the one that is preferred.
PROVENANCES = ("sigma_map", "sigma_scalar", "external_lookup", "photon_counting")

HOW_TO_GIVE_SIGMA = "give sigma_readout= (in the image's units) or sigma_map=, and gain= (image units per photon)"


def counts_photons(detector: Any, whole_numbers: bool) -> bool:
    """Whether a dxtbx detector counts photons: pixels of a hybrid sensor that hold whole numbers, gain 1, and nothing
    trusted below the -1 that marks a gap (PILATUS, EIGER)."""
    return whole_numbers and all(
        panel.get_type() == "SENSOR_PAD" and panel.get_gain() == 1 and panel.get_trusted_range()[0] >= -1
        for panel in detector
    )


def noise_model(
    sigma_map: Sequence[NDArray[Any]] | None,
    sigma_scalar: float | None,
    lookup: Sequence[NDArray[Any]] | None,
    *,
    gain: float | None,
    counting: bool,
    trusted: Sequence[NDArray[np.bool_]],
) -> NoiseModel:
    """Gain and σ of a still, σ by precedence: map, scalar, the experiment's external lookup, none for a counter.

    Maps hold an array (slow, fast) a panel, in the image's units like the scalar. Raises BadInput where no source is
    left, the gain of a detector that does not count is not given, or σ is not positive on trusted pixels.
    """
    gain = _checked_gain(gain, counting)
    if sigma_map is not None:
        return NoiseModel(gain, _checked_map(sigma_map, trusted, gain, "sigma_map"), "sigma_map")
    if sigma_scalar is not None:
        if not (np.isfinite(sigma_scalar) and sigma_scalar > 0):
            raise BadInput(f"sigma_readout is {sigma_scalar}: expected a positive number; {HOW_TO_GIVE_SIGMA}")
        return NoiseModel(gain, (sigma_scalar / gain,) * len(trusted), "sigma_scalar")
    if lookup is not None:
        panels = _checked_map(lookup, trusted, gain, "the experiment's external lookup of read-out noise")
        return NoiseModel(gain, panels, "external_lookup")
    if counting:
        return NoiseModel(gain, (0.0,) * len(trusted), "photon_counting")
    raise BadInput(f"read-out noise is not known and the detector does not count photons: {HOW_TO_GIVE_SIGMA}")


def _checked_gain(gain: float | None, counting: bool) -> float:
    if gain is None and not counting:
        raise BadInput(
            "gain is not known and the detector does not count photons: "
            "give gain= (image units per photon, 1 where the image holds photons) and sigma_readout="
        )
    if gain is not None and not (np.isfinite(gain) and gain > 0):
        raise BadInput(f"gain is {gain}: expected a positive number; give gain= (image units per photon)")
    return 1.0 if gain is None else float(gain)


def _checked_map(
    panels: Sequence[NDArray[Any]], trusted: Sequence[NDArray[np.bool_]], gain: float, name: str
) -> tuple[NDArray[np.float64], ...]:
    if len(panels) != len(trusted):
        raise BadInput(f"{name} has {len(panels)} panels but the detector has {len(trusted)}: give one a panel")
    for i, (sigma, trust) in enumerate(zip(panels, trusted, strict=True)):
        if np.shape(sigma) != trust.shape:
            raise BadInput(
                f"{name} has shape {np.shape(sigma)} on panel {i} but the detector is {trust.shape}: "
                "give it as [panel, slow, fast]"
            )
        check_sigma(np.asarray(sigma)[trust], f"{name} on panel {i}")
    return tuple(np.asarray(sigma, dtype=np.float64) / gain for sigma in panels)


def check_sigma(sigma: NDArray[Any], name: str) -> None:
    """Raise BadInput unless every entry is finite and positive."""
    bad = ~(np.isfinite(sigma) & (sigma > 0))
    if bad.any():
        raise BadInput(
            f"{name} holds {int(bad.sum())} entries of zero, below zero or NaN on trusted pixels: "
            "expected positive numbers; mask those pixels or correct the map"
        )
