"""The way in from a bad start: indexed spots' centroids against the model's, before any pixel is looked at.

The observed centroids say where a reflection is, and that it was seen says that its node is near the Ewald sphere.
Both are smooth in the parameters however far off they are, so that this least-squares problem converges from starts
at which no pixel of a spot is where the model puts it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from dbex.refinement.parameters import Models, Parametrisation
from dbex.still import Floats, Still
from nanobrag_torch.jacobian import jacobian, with_jacobian
from nanobrag_torch.lattice import reciprocal_basis
from nanobrag_torch.profile import centroids, intersection_px
from nanobrag_torch.spread import node_covariance

#: Errors given to a centroid (pixels) and to the angle between a node and the Ewald sphere (radians).
CENTROID_ERROR_PX, EXCITATION_ERROR_RAD = 0.3, 0.002


@dataclass(frozen=True)
class Search:
    """Where the search ended: x, median distance of centroids before and after (pixels), the rms angle of the
    observed nodes to the Ewald sphere (degrees), and the fraction of spots that are explained."""

    x: Floats
    median_px_before: float
    median_px_after: float
    excitation_deg: float
    explained: float


def search(still: Still, map: Parametrisation, x: Floats) -> Search:
    """The x that brings centroids and nodes together, robust against spots that belong elsewhere."""
    moving = moving_places(map)
    hkl = torch.as_tensor(still.observed.hkl, dtype=torch.float64)
    panel = torch.as_tensor(still.observed.panel)
    xy = torch.as_tensor(still.observed.xy_px)
    widths = torch.as_tensor([map.parameters[i].prior for i in moving], dtype=torch.float64)
    places = torch.as_tensor(moving, dtype=torch.long)
    base = torch.as_tensor(x)

    def residuals(part: Tensor) -> tuple[Tensor]:
        models = map.models(base.index_copy(0, places, part))
        offset, angle = spot_offsets(models, hkl, panel, xy)
        return (torch.cat([offset.flatten() / CENTROID_ERROR_PX, angle / EXCITATION_ERROR_RAD, part / widths]),)

    @lru_cache(maxsize=1)
    def linearised(part: bytes) -> tuple[Floats, Floats]:
        """Residuals and their derivatives: of nearly every x both are asked for, one after the other."""
        (values,), (slopes,) = with_jacobian(residuals, torch.tensor(np.frombuffer(part)))
        return values.numpy(), slopes.numpy()

    start = base[places].numpy()
    before, _ = spot_offsets(map.models(base), hkl, panel, xy)
    best = base
    if moving:
        values, slopes = linearised(start.tobytes())
        # scipy scales what it is given in place
        found = least_squares(
            lambda v: linearised(v.tobytes())[0].copy(),
            start,
            jac=lambda v: linearised(v.tobytes())[1].copy(),
            loss="soft_l1",
            # the first step moves residuals by an error, in the mean
            x_scale=np.sqrt(len(values)) / np.linalg.norm(slopes, axis=0),
            max_nfev=200,
        )
        best = base.index_copy(0, places, torch.as_tensor(found.x))
    after, angle = spot_offsets(map.models(best), hkl, panel, xy)
    distance = torch.linalg.vector_norm(after, dim=-1)
    middle = torch.sqrt(torch.median(angle**2) / 0.4549)  # the median of χ² with one degree of freedom
    return Search(
        best.numpy(),
        float(torch.linalg.vector_norm(before, dim=-1).median()),
        float(distance.median()),
        float(torch.rad2deg(middle)),
        float((distance < 5 * CENTROID_ERROR_PX + 2 * float(distance.median())).double().mean()),
    )


def moving_places(map: Parametrisation) -> list[int]:
    """Where the parameters that move spots stand in x."""
    return [
        i
        for i, p in enumerate(map.parameters)
        if p.group in ("orientation", "cell", "detector") or p.name in ("wavelength", "direction_h", "direction_v")
    ]


def spot_equations(still: Still, map: Parametrisation, x: Floats) -> tuple[Floats, Floats]:
    """Gauss-Newton matrix and downhill gradient of the parameters that move spots, from the centroids of the indexed
    spots on trusted pixels and the angles of their nodes to the Ewald sphere; spots that belong elsewhere count
    little."""
    seen = np.array(
        [
            still.trusted[i][int(y), int(x)]
            for i, (x, y) in zip(still.observed.panel, still.observed.xy_px, strict=True)
        ],
        dtype=bool,
    )
    hkl = torch.as_tensor(still.observed.hkl[seen], dtype=torch.float64)
    panel, xy = torch.as_tensor(still.observed.panel[seen]), torch.as_tensor(still.observed.xy_px[seen])
    moving = moving_places(map)
    widths = np.array([map.parameters[i].prior for i in moving])

    def residuals(x: Tensor) -> Tensor:
        offset, angle = spot_offsets(map.models(x), hkl, panel, xy)
        return torch.cat([offset / CENTROID_ERROR_PX, angle[:, None] / EXCITATION_ERROR_RAD], 1)

    at = torch.as_tensor(x)
    found = residuals(at).numpy()
    slopes = jacobian(lambda x: (residuals(x),), at)[0].numpy()[..., moving]
    root = (1 + (found**2).sum(1)) ** -0.25  # of the weights of a soft absolute value
    rows = (slopes * root[:, None, None]).reshape(-1, len(moving))
    matrix = rows.T @ rows + np.diag(widths**-2.0)
    return matrix, -rows.T @ (found * root[:, None]).ravel() - np.asarray(x)[moving] / widths**2


def spot_offsets(models: Models, hkl: Tensor, panel: Tensor, xy_px: Tensor) -> tuple[Tensor, Tensor]:
    """Model's minus observed centroids (n, 2), pixels, and angles of the nodes to the Ewald sphere (n,), radians."""
    q = hkl @ reciprocal_basis(models.crystal, hkl).T
    found = centroids(q, node_covariance(models.crystal, models.beam, q), models.beam)
    return (
        intersection_px(models.panels, panel, found.s1) - xy_px,
        found.epsilon / torch.linalg.vector_norm(q, dim=-1),
    )
