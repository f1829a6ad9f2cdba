"""Intensities by summation: the pixels of a spot added up, as a check that rests on the profile's extent alone."""

import torch
from torch import Tensor

from dbex.refinement.objective import Local, Objective
from dbex.still import Floats

#: The spot is where its profile exceeds this part of its largest pixel: three sigma around a Gaussian one.
FOREGROUND = 0.01
#: Pixels around a spot that a plane of three numbers can be levelled on.
FEWEST_AROUND = 6


def summed(objective: Objective, variance: Tensor, local: Local) -> tuple[Floats, Floats]:
    """The full intensity of each box's own reflection (n,) as the sum of its spot's pixels over the sum of its profile,
    and its variance, for variances (N,) of pixels; NaN where no pixel of the spot is used, or hardly any around it.

    The box's plane, levelled anew on the pixels around the spot, and the light of other spots are taken off first.
    """
    boxes, basis = objective.boxes, objective.boxes.basis
    profile = objective.profiles_of(local.columns)[:, 0]
    spot = (boxes.used & (profile > FOREGROUND * boxes.largest(profile)[boxes.box])).to(profile.dtype)
    around = boxes.used * (1 - spot)
    residual = boxes.data - local.background - local.bragg
    weighted = basis * (around / variance)[:, None]
    inverse = torch.linalg.pinv(boxes.sums(weighted[:, :, None] * basis[:, None]), hermitian=True)
    below = boxes.sums(basis * spot[:, None])
    plane = (inverse @ boxes.sums(weighted * residual[:, None])[..., None])[..., 0]
    light = boxes.sums(profile * spot)
    own = local.intensity[boxes.node[:, 0]] * light
    photons = own + boxes.sums(residual * spot) - (below * plane).sum(1)
    spread = boxes.sums(variance * spot) + (below * (inverse @ below[..., None])[..., 0]).sum(1)
    known = (light > 0) & (boxes.sums(around) >= FEWEST_AROUND)
    over, nothing = light.where(known, torch.ones_like(light)), torch.full_like(light, torch.nan)
    return photons.div(over).where(known, nothing).numpy(), spread.div(over**2).where(known, nothing).numpy()
