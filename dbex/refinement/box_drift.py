"""How far the solution drifts when boxes are larger: what noise cannot explain, a misfit of the tails does."""

import numpy as np
import torch

from dbex.refinement.predictions import predict
from dbex.refinement.problem import StillProblem
from dbex.refinement.rounds import K_BOXES, K_TAILS, Round, objective_for, resolution_limit
from dbex.refinement.settings import Settings
from dbex.refinement.shoeboxes import MARGIN_PX, shoeboxes
from dbex.still import Floats, Still

#: Boxes are larger by so many pixels to each side, where neighbours leave room.
WIDER_PX = 2


def box_drift(still: Still, settings: Settings, final: Round) -> Floats:
    """One Gauss-Newton step (n,) of x from the solution when every box is `WIDER_PX` wider to each side."""
    x = final.solution.x
    models = final.objective.map.models(torch.as_tensor(x))
    shapes = [panel.shape for panel in still.detector]
    everything = predict(models, still.amplitudes, resolution_limit(still, settings), K_TAILS, shapes)
    chosen = everything.select(np.abs(everything.k) < K_BOXES)
    wider = shoeboxes(still, chosen, everything, MARGIN_PX + WIDER_PX)
    objective = objective_for(still, final.objective.map, wider, final.model_error, final.solution.x)
    problem = StillProblem(objective)
    matrix, gradient = problem.normal(x, problem.start(x))
    return np.asarray(np.linalg.solve(matrix, gradient))
