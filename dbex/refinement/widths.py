"""Which widths a crystal needs, chosen by its data: each richer description is tried and kept when it pays.

Two descriptions are compared on the same boxes by -2 ln likelihood, Σ (Z² + ln V) with the priors, and the richer one
must lower it by more than ln(pixels) for each further parameter (Schwarz 1978), after χ² is scaled to the noise that
the poorer one leaves: misfit counts as noise until something explains it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dbex.refinement.parameters import Parametrisation, parametrisation
from dbex.refinement.problem import StillProblem
from dbex.refinement.rounds import ROUGH_ESDS, Progress, Round, cell_of, printer
from dbex.refinement.settings import Settings
from dbex.refinement.solvers.levenberg_marquardt import minimise
from dbex.still import Floats

#: The richer description of each group of widths, in the order in which they are tried.
RICHER = {"mosaicity": "mosaic_tensor", "size": "size_tensor"}


@dataclass(frozen=True)
class Trial:
    """A description that was tried: its name, by how much -2 ln likelihood fell, its cost, and whether it was kept."""

    name: str
    gain: float
    cost: float

    @property
    def kept(self) -> bool:
        """Whether it paid."""
        return self.gain > self.cost


def choose_widths(found: Round, settings: Settings, report: Progress) -> tuple[Round, list[Trial]]:
    """The round with the widths that pay, on the boxes of `found`, and what was tried."""
    trials = []
    for simple, rich in RICHER.items():
        if simple not in settings.crystal:
            continue
        map, x = enriched(found.objective.map, found.solution.x, simple, rich)
        objective = replace(found.objective, map=map).prepared()
        solution = minimise(
            StillProblem(objective), x, settings.max_iterations, ROUGH_ESDS, printer(f"trying {rich}", objective, report)
        )
        richer = Round(objective, solution, found.predictions)
        further = len(map) - len(found.objective.map)
        noise = found.problem.noise(found.state) ** 2
        pixels = float(objective.boxes.used.sum())
        gain = (minus_two_ln_likelihood(found) - minus_two_ln_likelihood(richer)) / noise
        trials.append(Trial(rich, gain, further * float(np.log(pixels))))
        if trials[-1].kept:
            found = richer
    return found, trials


def minus_two_ln_likelihood(found: Round) -> float:
    """Σ (Z² + ln V) over used pixels, and the priors' terms."""
    used = found.objective.boxes.used
    return found.state.local.merit + float(torch.log(found.state.variance[used]).sum())


def enriched(map: Parametrisation, x: Floats, simple: str, rich: str) -> tuple[Parametrisation, Floats]:
    """The parametrisation with one group of widths replaced by a richer one that begins where the simple one ended."""
    models = map.models(torch.as_tensor(x))
    start = {"mosaicity": "mosaicity_deg", "size": "domain_size_A"}[simple]
    crystal = replace(map.crystal, **{start: float(getattr(models.crystal, start))})
    groups = [rich if group == simple else group for group in map.free_groups("crystal")]
    wider = parametrisation(
        crystal, map.detector, map.beam, cell_of(map), groups, map.free_groups("detector"), map.free_groups("beam"), map.ln_scale
    )
    known = {p.name: value for p, value in zip(map.parameters, x, strict=True)}
    return wider, np.array([known.get(p.name, 0.0) for p in wider.parameters])
