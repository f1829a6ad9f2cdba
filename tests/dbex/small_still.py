"""Small stills of random geometry, for derivatives: two little panels, each where a reflection strikes it.

One panel's normal points back to the crystal; their sensors are thick, one of them without parallax. The crystal is
triclinic, the beam off every axis. Each panel has two boxes that overlap and cut the spot.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbex.physics.forward import simulate_forward_torch
from dbex.refinement.inputs import prepare_refinement_inputs
from dbex.still import RefinementInputs

PIXELS, PIXEL_MM = 24, 0.2
BOXES = ((5, 15, 6, 16), (12, 19, 9, 18))
SIZE_A, MOSAICITY_DEG = 600.0, 0.15


@dataclass(frozen=True)
class SmallStill:
    """dxtbx's models, the inputs, a list of reflections, those which strike the panels (2, 3), and fixed random
    weights (n,) of the boxes' pixels."""

    detector: object
    beam: object
    crystal: object
    inputs: RefinementInputs
    hkl: Tensor
    F: Tensor
    struck: Tensor
    inside: tuple[Tensor, Tensor, Tensor]
    weight: Tensor

    def predicted(self, crystal=None, detector=None, beam=None, F=None, dtype=torch.float64, **more):
        """The image under overrides of the three records; small blocks unless the overrides say otherwise."""
        return simulate_forward_torch(
            self.inputs,
            self.detector,
            self.beam,
            self.crystal,
            None,
            self.hkl,
            self.F if F is None else F,
            **({"spot_scale_override": 1.0} | more),
            crystal_overrides={"domain_size_A": SIZE_A, "mosaicity_deg": MOSAICITY_DEG} | (crystal or {}),
            detector_overrides=detector,
            beam_overrides=beam,
            dtype=dtype,
        )

    def number(self, **overrides):
        """One number of the image to which no pixel is indifferent: its sum with random weights."""
        image = self.predicted(**overrides)
        return (image[self.inside] * self.weight.to(image.dtype)).sum() / self.weight.abs().sum()


def small_still(seed):
    """A still of its own for every seed."""
    from dxtbx.model import Beam, Crystal

    rng = np.random.default_rng(seed)
    direction = np.array([0.05, -0.03, -1.0]) + rng.normal(0, 0.05, 3)
    s0 = direction / np.linalg.norm(direction)
    wavelength = rng.uniform(0.9, 1.3)
    normal = np.cross(s0, rng.normal(size=3))
    beam = Beam(tuple(-s0), wavelength)
    beam.set_polarization_normal(tuple(normal / np.linalg.norm(normal)))
    beam.set_polarization_fraction(rng.uniform(0.6, 0.99))
    crystal = Crystal(*(tuple(v) for v in real_basis(rng)), "P 1")
    steps = np.arange(-8, 9)
    hkl = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    struck, s1 = diffracting(hkl, np.array(crystal.get_A()).reshape(3, 3), s0 / wavelength)
    detector = two_panels(s1, rng)
    image = np.zeros((2, PIXELS, PIXELS))
    inputs = prepare_refinement_inputs(
        image + 5.0,
        image + 1.0,
        image == 0,
        np.array(BOXES * 2),
        np.repeat([0, 1], len(BOXES)),
        detector,
        sigma_readout=1.0,
    )
    inside = np.zeros(image.shape, bool)
    for panel, (x0, x1, y0, y1) in inputs.panel_slices:
        inside[panel, y0:y1, x0:x1] = True
    where = tuple(torch.as_tensor(column) for column in np.nonzero(inside))
    return SmallStill(
        detector,
        beam,
        crystal,
        inputs,
        torch.as_tensor(hkl),
        torch.as_tensor(rng.uniform(20, 120, len(hkl))),
        torch.as_tensor(hkl[struck]),
        where,
        torch.as_tensor(rng.normal(size=int(inside.sum()))),
    )


def real_basis(rng):
    """a, b, c (3, 3) of a random triclinic cell of 30 to 45 Å and angles of 75 to 105 degrees, turned at random."""
    lengths = rng.uniform(30, 45, 3)
    cos_al, cos_be, cos_ga = np.cos(np.radians(rng.uniform(75, 105, 3)))
    sin_ga = np.sqrt(1 - cos_ga**2)
    c_y = (cos_al - cos_be * cos_ga) / sin_ga
    rows = np.array([[1, 0, 0], [cos_ga, sin_ga, 0], [cos_be, c_y, np.sqrt(1 - cos_be**2 - c_y**2)]])
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return lengths[:, None] * rows @ (turn * np.linalg.det(turn)).T


def diffracting(hkl, A, k0):
    """The two reflections that diffract best, not too close to the beam or to each other, and their unit s1 (2, 3)."""
    q = hkl @ A.T
    s1 = q + k0
    epsilon = np.abs(np.linalg.norm(s1, axis=1) - np.linalg.norm(k0))
    length = np.linalg.norm(q, axis=1)
    order = np.argsort(np.where((length > 0.12) & (length < 0.4), epsilon, np.inf))
    s1 = s1 / np.linalg.norm(s1, axis=1, keepdims=True)
    second = next(i for i in order if s1[i] @ s1[order[0]] < 0.97)
    best = [order[0], second]
    return best, s1[best]


def two_panels(struck, rng):
    """Panels about 90 mm away and 10 degrees oblique, each with its middle near where a ray strikes."""
    from dxtbx.model import Detector, ParallaxCorrectedPxMmStrategy

    detector = Detector()
    for number, ray in enumerate(struck):
        facing = ray + rng.normal(0, 0.1, 3)
        fast = np.cross(facing, rng.normal(size=3))
        fast /= np.linalg.norm(fast)
        slow = np.cross(facing, fast) * (1 if number == 0 else -1)
        slow /= np.linalg.norm(slow)
        centre = (PIXELS / 2 + rng.uniform(-2, 2, 2)) * PIXEL_MM
        origin = ray * rng.uniform(80, 100) - centre[0] * fast - centre[1] * slow
        panel = detector.add_panel()
        panel.set_name(f"panel {number}")
        panel.set_local_frame(tuple(fast), tuple(slow), tuple(origin))
        panel.set_pixel_size((PIXEL_MM, PIXEL_MM))
        panel.set_image_size((PIXELS, PIXELS))
        panel.set_thickness(0.3)
        panel.set_mu(2.5)
        if number == 0:
            panel.set_px_mm_strategy(ParallaxCorrectedPxMmStrategy(2.5, 0.3))
    return detector
