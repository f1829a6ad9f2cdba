"""Pixels that are far too bright all by themselves, sharper than any spot of the still: defects that no mask knew.

They are left out like untrusted pixels, and counted. Anything that could be light stays, however badly it fits: a pixel
is only called hot where a spot as narrow as those of the model would have shown in its neighbours, and did not.
"""

from dataclasses import replace

import numpy as np
from scipy.special import erf

from dbex.refinement.problem import HUBER_Z
from dbex.refinement.rounds import Round
from dbex.still import Bools, Floats, Ints, Still

#: Neighbours within this many sigmas of the model have seen nothing; a spot would have shown twice as much in them.
QUIET_Z, SEEN_Z = 4.0, 8.0
#: So many of the four neighbours must be quiet: two hot pixels may stand side by side.
QUIET_NEIGHBOURS = 3
#: A residual above so many times the spot's own light there is no misfit of that spot.
BEYOND_SPOT = 10.0
LEFT_OUT = "hot pixels: bright alone, sharper than any spot"


def without_hot_pixels(still: Still, found: Round) -> Still:
    """The still with the hot pixels of the boxes of a solved round untrusted; the same one where there are none."""
    panel, slow, fast = hot_pixels(found)
    return without_pixels(still, panel, slow, fast) if len(panel) else still


def without_pixels(still: Still, panel: Ints, slow: Ints, fast: Ints) -> Still:
    """The still with these pixels (n,) untrusted, as hot ones."""
    trusted = tuple(mask.copy() for mask in still.trusted)
    for i in np.unique(panel):
        trusted[i][slow[panel == i], fast[panel == i]] = False
    count = still.left_out.get(LEFT_OUT, 0) + len(panel)
    return replace(still, trusted=trusted, left_out=still.left_out | {LEFT_OUT: count})


def hot_pixels(found: Round) -> tuple[Ints, Ints, Ints]:
    """Panel, slow and fast (n,) of the hot pixels of a solved round."""
    boxes, local = found.objective.boxes, found.state.local
    used = boxes.used.numpy()
    variance = found.objective.variance(local)
    panel = boxes.panel[boxes.box].numpy()[used]
    slow, fast = boxes.slow.numpy()[used], boxes.fast.numpy()[used]
    residual = (boxes.data - local.background - local.bragg).numpy()[used]
    sigma, bragg = np.sqrt(variance.numpy()[used]), local.bragg.numpy()[used]
    bright = np.flatnonzero((residual > HUBER_Z * sigma) & (residual > BEYOND_SPOT * bragg))
    names, order = _sorted_names(panel, slow, fast)
    quiet = np.zeros(len(bright), dtype=np.int64)
    for share, up, along in zip(neighbour_shares(found), (0, 1), (1, 0), strict=True):
        for side in (-1, 1):
            known, there = _find(names, order, panel[bright], slow[bright] + side * up, fast[bright] + side * along)
            silent = np.abs(residual[there]) < QUIET_Z * sigma[there]
            quiet += known & silent & (share * residual[bright] > SEEN_Z * sigma[there])
    hot = bright[quiet >= QUIET_NEIGHBOURS]
    return panel[hot], slow[hot], fast[hot]


def neighbour_shares(found: Round) -> Floats:
    """What the neighbours along fast and along slow (2,) of a pixel get, over its own light, of the narrowest of the
    still's spots when it falls on the pixel's centre."""
    # what of a predicted size is the pixel's own width is no light beside it
    size = np.sqrt(np.maximum(found.predictions.sigma_px.min(0) ** 2 - 1 / 12, 1e-6))
    inner, outer = erf(0.5 / size / 2**0.5), erf(1.5 / size / 2**0.5)
    return np.asarray((outer - inner) / 2 / inner)


def _sorted_names(panel: Ints, slow: Ints, fast: Ints) -> tuple[Ints, Ints]:
    """One number for each pixel, sorted, and the order."""
    name = _name(panel, slow, fast)
    order = np.argsort(name)
    return name[order], order


def _name(panel: Ints, slow: Ints, fast: Ints) -> Ints:
    # neighbours of the first pixels are at -1
    return np.asarray((panel * (1 << 20) + slow + 1) * (1 << 20) + fast + 1)


def _find(names: Ints, order: Ints, panel: Ints, slow: Ints, fast: Ints) -> tuple[Bools, Ints]:
    """Whether each of these pixels is in the list, and its place (any place where it is not)."""
    sought = _name(panel, slow, fast)
    at = np.minimum(np.searchsorted(names, sought), len(names) - 1)
    return names[at] == sought, order[at]
