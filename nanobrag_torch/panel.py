"""Panels of a detector: where pixels are, what solid angle they cover, what their sensor absorbs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanobrag_torch.config import DetectorConfig
from nanobrag_torch.tensors import as_tensor, dot


@dataclass(frozen=True)
class Panels:
    """Geometry of n panels, stacked: vectors (n, 3), the rest (n,). Lengths in mm, `mu` in 1/mm, `parallax` bool."""

    fast: Tensor
    slow: Tensor
    normal: Tensor
    distance: Tensor
    origin: Tensor
    pixel_size: Tensor
    thickness: Tensor
    mu: Tensor
    point_spread: Tensor
    parallax: Tensor


@dataclass(frozen=True)
class Pixels:
    """A list of pixels: `panel`, `slow` and `fast` (n,) are integers; the centre of a pixel is half a pixel on."""

    panel: Tensor
    slow: Tensor
    fast: Tensor

    def __len__(self) -> int:
        return len(self.panel)

    def __getitem__(self, part: slice | Tensor) -> "Pixels":
        return Pixels(self.panel[part], self.slow[part], self.fast[part])


def all_pixels(detector: Sequence[DetectorConfig], device: torch.device | str = "cpu") -> Pixels:
    """Every pixel of every panel, in the order panel, slow, fast."""
    parts = []
    for i, panel in enumerate(detector):
        slow, fast = torch.meshgrid(
            torch.arange(panel.shape[0], device=device), torch.arange(panel.shape[1], device=device), indexing="ij"
        )
        parts.append((torch.full_like(slow, i).flatten(), slow.flatten(), fast.flatten()))
    return Pixels(*(torch.cat(column) for column in zip(*parts, strict=True)))


def stack_panels(detector: Sequence[DetectorConfig], like: Tensor) -> Panels:
    """The panels' geometry as tensors, on the graph of whatever tensors the records hold."""

    def stacked(name: str) -> Tensor:
        return torch.stack([as_tensor(getattr(panel, name), like) for panel in detector])

    fast, slow = stacked("fast_axis"), stacked("slow_axis")
    normal = torch.linalg.cross(fast, slow)
    distance = stacked("distance_mm")
    origin = (
        stacked("origin_fast_mm")[:, None] * fast
        + stacked("origin_slow_mm")[:, None] * slow
        + distance[:, None] * normal
    )
    thickness, mu = stacked("sensor_thickness_mm"), stacked("sensor_mu_per_mm")
    parallax = torch.as_tensor([panel.parallax for panel in detector], device=like.device)
    return Panels(
        fast,
        slow,
        normal,
        distance,
        origin,
        stacked("pixel_size_mm"),
        thickness,
        mu,
        stacked("point_spread_mm"),
        parallax,
    )


def pixel_positions(
    panels: Panels, panel: Tensor, slow_px: Tensor, fast_px: Tensor, depth_mm: Tensor | float = 0.0
) -> Tensor:
    """Positions (n, 3), mm, in the laboratory, of points given in pixels from the outer corner of the first pixel.

    `depth_mm` is counted from the sensor's surface along the normal that points away from the crystal: a photon that
    is absorbed there is recorded under the pixel whose column it has reached, which is parallax.
    """
    size = panels.pixel_size[panel]
    outward = panels.normal[panel] * torch.sign(panels.distance)[panel, None]
    depth = torch.as_tensor(depth_mm, dtype=size.dtype, device=size.device).expand_as(size)
    return (
        panels.origin[panel]
        + (fast_px * size)[:, None] * panels.fast[panel]
        + (slow_px * size)[:, None] * panels.slow[panel]
        + depth[:, None] * outward
    )


def curved_positions(panels: Panels, panel: Tensor, slow_px: Tensor, fast_px: Tensor) -> Tensor:
    """Positions (n, 3), mm, of the same points on spheres of radius |distance| about the crystal.

    Offsets from where the normal meets the panel are lengths of arc u along fast and v along slow: the normal is turned
    towards fast by u/|D|, then about normal x slow by v/|D|.
    """
    radius = torch.abs(panels.distance)[panel]
    outward = panels.normal[panel] * torch.sign(panels.distance)[panel, None]
    fast, slow, size = panels.fast[panel], panels.slow[panel], panels.pixel_size[panel]
    u = (dot(panels.origin[panel], fast) + fast_px * size) / radius
    v = (dot(panels.origin[panel], slow) + slow_px * size) / radius
    upright = torch.cos(v)[:, None] * outward + torch.sin(v)[:, None] * slow
    return radius[:, None] * (torch.sin(u)[:, None] * fast + torch.cos(u)[:, None] * upright)


def obliquity(panels: Panels, panel: Tensor, s1: Tensor) -> Tensor:
    """|s1 . normal| (n,): the cosine of the angle at which unit rays s1 (n, 3) meet their panels."""
    return torch.abs(dot(s1, panels.normal[panel]))


def solid_angle(
    panels: Panels, panel: Tensor, position: Tensor, depth_mm: Tensor | float = 0.0, point_pixel: bool = False
) -> Tensor:
    """Solid angle (n,) of pixels at `position` (n, 3): p² |D| / R³; 1/R² in 1/m² for a point-like pixel."""
    squared = (position**2).sum(-1)
    if point_pixel:
        return 1e6 / squared
    return panels.pixel_size[panel] ** 2 * (torch.abs(panels.distance)[panel] + depth_mm) / squared**1.5


def captured(mu: Tensor, near_mm: Tensor, far_mm: Tensor, cosine: Tensor) -> Tensor:
    """Fraction of photons absorbed between two depths of a sensor, for rays at that cosine to its normal."""
    return torch.exp(-mu * near_mm / cosine) - torch.exp(-mu * far_mm / cosine)
