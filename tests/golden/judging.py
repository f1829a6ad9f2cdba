"""A golden case computed by this program, and how far it is from the image of the C program."""

import numpy as np
import torch

from nanobrag_torch.background import amorphous, water
from nanobrag_torch.simulate import simulate
from tests.golden.cases import ALL
from tests.golden.command import parse, parse_amorphous


def computed(name, folder, dtype=torch.float64):
    case = ALL[name]
    if case["program"] == "nonBragg":
        of = parse_amorphous(case["argv"], folder)
        like = torch.zeros((), dtype=dtype)
        return amorphous(of.detector, of.beam, of.factor, of.molecules, like).reshape(of.detector.shape).numpy()
    path = case.get("mosaic_rotations")
    command = parse(case["argv"], folder, torch.as_tensor(np.load(folder / path)) if path else None)
    arguments, options = command.arguments()
    image = simulate(*arguments, **options, dtype=dtype).reshape(command.detector.shape)
    if command.water_um is not None:
        background = water(command.detector, command.beam, command.water_um, torch.zeros((), dtype=dtype))
        image = image + background.reshape(image.shape)
    return torch.where(command.used, image, torch.zeros_like(image)).numpy()


def largest_difference(image, name, images):
    """Largest relative difference over the pixels that the case judges."""
    reference = images[name].astype(np.float64)
    judged = reference > ALL[name]["tolerance"]["above"] * reference.max()
    assert judged.sum() >= 0.9 * ALL[name]["judged_pixels"]
    return (np.abs(image - reference)[judged] / reference[judged]).max()


def rois(reference, half=4):
    """Boxes (slow, fast) of nine by nine pixels around the local maxima above 0.3 % of an image's maximum."""
    padded = np.pad(reference, 1, constant_values=-np.inf)
    around = [
        padded[1 + i : padded.shape[0] - 1 + i, 1 + j : padded.shape[1] - 1 + j]
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
        if (i, j) != (0, 0)
    ]
    peaks = (reference > np.max(around, axis=0)) & (reference > 3e-3 * reference.max())
    return [
        (slice(max(y - half, 0), y + half + 1), slice(max(x - half, 0), x + half + 1)) for y, x in np.argwhere(peaks)
    ]
