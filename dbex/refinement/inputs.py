"""From arrays in image units to what a loss needs, in photons."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbex.errors import BadInput
from dbex.physics.noise import HOW_TO_GIVE_SIGMA, PROVENANCES, check_sigma, counts_photons
from dbex.still import Bools, Floats, RefinementInputs

#: Least variance of a pixel, photons²: where model and background vanish it keeps weights finite.
VARIANCE_FLOOR = 1e-6

#: Without a model there is nothing to compare the data with, so the scale starts as nanoBragg counts: 1.
UNKNOWN_SCALE = 1.0


def prepare_refinement_inputs(
    data: Any,
    background_image: Any,
    trusted_mask: Any,
    bbox: Any,
    pids: Any,
    detector: Any,
    adu_per_photon: float | None = None,
    sigma_readout: Any = None,
    sigma_readout_provenance: str | None = None,
) -> RefinementInputs:
    """Target, loss mask and σ of a still, all [panel, slow, fast], from arrays in the image's units.

    `data` and `background_image` (-1 outside the boxes) are [panel, slow, fast]; `trusted_mask` is such an array or a
    tuple of flex.bool a panel, True = trusted; `bbox` (n, 4 or 6) and `pids` (n,) give the boxes. `adu_per_photon`
    None means that the image holds photons. `sigma_readout` is a number or an array in the image's units; it may be
    left out only for a detector that counts photons. The target is zero outside the loss mask. Raises BadInput for
    shapes that differ, boxes beyond their panel, and σ or data that cannot be used inside the mask.
    """
    values, background = np.asarray(data, dtype=np.float64), np.asarray(background_image, dtype=np.float64)
    trusted = stacked_mask(trusted_mask)
    for name, array in (("background_image", background), ("trusted_mask", trusted)):
        if array.shape != values.shape:
            raise BadInput(f"{name} has shape {array.shape} but data is {values.shape}: give both [panel, slow, fast]")
    gain = 1.0 if adu_per_photon is None else float(adu_per_photon)
    if not (np.isfinite(gain) and gain > 0):
        raise BadInput(f"adu_per_photon is {adu_per_photon}: expected a positive number, or None for photons")
    loss_mask = (background >= 0) & trusted
    if not np.isfinite(values[loss_mask]).all():
        raise BadInput("data hold NaN on trusted pixels of the boxes: expected finite numbers; mask those pixels")
    counting = adu_per_photon is None and counts_photons(detector, bool((values == np.round(values)).all()))
    sigma, provenance = _sigma(sigma_readout, sigma_readout_provenance, loss_mask, gain, counting)
    return RefinementInputs(
        target=np.where(loss_mask, (np.where(loss_mask, values, 0.0) - background) / gain, 0.0),
        loss_mask=loss_mask,
        panel_slices=_panel_slices(bbox, pids, values.shape),
        trusted_mask=trusted,
        sigma_readout=sigma,
        target_representation="photons_background_subtracted",
        global_scale_hint=UNKNOWN_SCALE,
        sigma_readout_provenance=provenance,
        background=np.where(background >= 0, background / gain, -1.0),
        adu_per_photon=gain,
        unit_mode="photons" if adu_per_photon is None else "adu",
        variance_floor=VARIANCE_FLOOR,
    )


def stacked_mask(trusted_mask: Any) -> Bools:
    """A mask [panel, slow, fast] from such an array or from a flex.bool or array (slow, fast) a panel."""
    if isinstance(trusted_mask, np.ndarray):
        return trusted_mask.astype(bool)
    panels = [panel.as_numpy_array() if hasattr(panel, "as_numpy_array") else panel for panel in trusted_mask]
    return np.stack([np.asarray(panel, dtype=bool) for panel in panels])


def _sigma(sigma: Any, provenance: str | None, loss_mask: Bools, gain: float, counting: bool) -> tuple[Floats, str]:
    if provenance is not None and provenance not in PROVENANCES:
        raise BadInput(f"sigma_readout_provenance is {provenance!r}: expected one of {', '.join(PROVENANCES)}")
    if sigma is None:
        if not counting:
            raise BadInput(f"read-out noise is not known and the detector does not count photons: {HOW_TO_GIVE_SIGMA}")
        return np.zeros(loss_mask.shape), "photon_counting"
    array = np.asarray(sigma, dtype=np.float64)
    if array.ndim and array.shape != loss_mask.shape:
        raise BadInput(f"sigma_readout has shape {array.shape} but data is {loss_mask.shape}: give [panel, slow, fast]")
    full: NDArray[np.float64] = np.broadcast_to(array, loss_mask.shape)
    # A counting detector's σ is zero by right, and passes through here when a record is made again from its own σ.
    if provenance != "photon_counting":
        check_sigma(full[loss_mask], "sigma_readout")
    return full / gain, provenance or ("sigma_map" if array.ndim else "sigma_scalar")


def _panel_slices(bbox: Any, pids: Any, shape: Sequence[int]) -> tuple[tuple[int, tuple[int, int, int, int]], ...]:
    boxes, panels = np.asarray(bbox, dtype=np.int64)[:, :4], np.asarray(pids, dtype=np.int64)
    if len(boxes) != len(panels):
        raise BadInput(f"there are {len(boxes)} boxes but {len(panels)} panel numbers: give one each")
    slices = []
    for panel, (x0, x1, y0, y1) in zip(panels.tolist(), boxes.tolist(), strict=True):
        if not (0 <= panel < shape[0] and 0 <= x0 < x1 <= shape[2] and 0 <= y0 < y1 <= shape[1]):
            raise BadInput(
                f"box {(x0, x1, y0, y1)} on panel {panel} is empty or reaches beyond data of shape {tuple(shape)}: "
                "expected x0 < x1 within fast and y0 < y1 within slow; clip the boxes"
            )
        slices.append((panel, (x0, x1, y0, y1)))
    return tuple(slices)
