"""How far a still diffracts: the resolution to which reflections on the Ewald sphere stand out from their noise."""

from dataclasses import replace

import numpy as np
import torch

from dbex.refinement.predictions import predict
from dbex.refinement.problem import StillProblem
from dbex.refinement.rounds import (
    K_TAILS,
    Round,
    objective_for,
    reach_of_spots,
    solved_round,
    with_boxes,
)
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import shoeboxes
from dbex.refinement.tables import free_intensities
from dbex.still import Floats, Still

#: Full reflections: beyond one width of the sphere little is seen whatever the resolution.
FULL = 1.0
#: The mean significance at which reflections end, and the most that one of them counts for.
SIGNIFICANT, MOST_SIGNIFICANT = 2.0, 10.0


def looked_for_limit(still: Still, settings: Settings, found: Round) -> Still:
    """The still with the resolution limit that its pixels show under the model of a round; as it is where a limit was
    asked for."""
    if settings.d_min is not None:
        return still
    return replace(still, d_min_A=limit_from_data(still, found))


def limit_from_data(still: Still, found: Round) -> float:
    """Where significances fall below `SIGNIFICANT` in the mean, never coarser than the reach of the indexed spots nor
    finer than the amplitudes.

    Every listed reflection that the model puts within `FULL` widths of the Ewald sphere has a box and an intensity of
    its own, without prior.
    """
    map, x, finest = found.objective.map, found.solution.x, still.finest_A
    shapes = [panel.shape for panel in still.detector]
    everything = predict(map.models(torch.as_tensor(x)), still.amplitudes, finest, K_TAILS, shapes)
    chosen = everything.select(with_boxes(still, everything, FULL))
    boxes = shoeboxes(still, chosen, everything)
    coarsest = max(reach_of_spots(still), finest)
    if not len(boxes):
        return coarsest
    objective = objective_for(still, map, boxes, found.model_error, x)
    state = StillProblem(objective).start(x)
    solved = solved_round(replace(found, objective=objective, solution=replace(found.solution, state=state)))
    value, variance = free_intensities(solved)
    known = np.isfinite(value)
    hkl = objective.hkl[objective.boxes.node[:, 0]].numpy()[known]
    s = np.linalg.norm(still.q_as_read(hkl), axis=1)
    return float(np.clip(end_of(s, value[known] / np.sqrt(variance[known]), finest), finest, coarsest))


def end_of(s: Floats, significance: Floats, finest: float) -> float:
    """The spacing 1/s at which the significances (n,) of reflections at s (n,), 1/Å, end; `finest` where they do not.

    Those inside exceed `SIGNIFICANT` in every mean taken back from the limit, those outside fall short of it in every
    mean taken on from it: there the sum of what exceeds it is largest.
    """
    order = np.argsort(s)
    excess = np.cumsum(np.clip(significance[order], -MOST_SIGNIFICANT, MOST_SIGNIFICANT) - SIGNIFICANT)
    if not len(excess) or excess.argmax() == len(excess) - 1:
        return finest
    return float(1 / s[order][excess.argmax()])
