"""Intensities by summation: the pixels of a spot added up, as a check that rests on the profile's extent alone."""

import torch
from torch import Tensor

from dbex.refinement.groups import FIRST_NODE
from dbex.refinement.objective import Local, Objective
from dbex.still import Floats

#: The spot is where its profile exceeds this part of its largest pixel: three sigma around a Gaussian one.
FOREGROUND = 0.01
#: Pixels around a spot that a plane of three numbers can be levelled on.
FEWEST_AROUND = 6


def summed(objective: Objective, variance: Tensor, local: Local) -> tuple[Floats, Floats]:
    """The full intensity of each box's own reflection (n,) as the sum of its spot's pixels over the sum of its profile,
    and its variance, for variances (n, p) of pixels; NaN where no pixel of the spot is used, or
    hardly any around it.

    The box's plane, levelled anew on the pixels around the spot, and the light of other spots are taken off first.
    """
    boxes = objective.boxes
    profile = torch.zeros_like(variance)
    for group, columns in zip(objective.groups.groups, local.columns, strict=True):
        profile[group.part, : group.pixels] = columns[:, FIRST_NODE]
    spot = boxes.used & (profile > FOREGROUND * profile.amax(1, keepdim=True))
    around = boxes.used & ~spot
    residual = boxes.data - local.background - local.bragg
    weighted = boxes.basis.transpose(1, 2) * (around / variance)[:, None]
    inverse = torch.linalg.pinv(weighted @ boxes.basis, hermitian=True)
    below = (boxes.basis * spot[..., None]).sum(1)
    plane = (inverse @ weighted @ residual[..., None])[..., 0]
    light = (profile * spot).sum(1)
    own = local.intensity[boxes.node[:, 0]] * light
    photons = own + (residual * spot).sum(1) - (below * plane).sum(1)
    spread = (variance * spot).sum(1) + (below * (inverse @ below[..., None])[..., 0]).sum(1)
    known = (light > 0) & (around.sum(1) >= FEWEST_AROUND)
    over, nothing = light.where(known, torch.ones_like(light)), torch.full_like(light, torch.nan)
    return photons.div(over).where(known, nothing).numpy(), spread.div(over**2).where(known, nothing).numpy()
