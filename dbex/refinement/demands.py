"""What the data ask of parameters that were held: a score test on the normal equations, one parameter after another.

A held parameter is freed on paper, next to all that moved: by how much it would move, and by how many esds. The one
that the data ask for most is taken first, and the others are asked again as if it had moved. A parameter whose effect
those that moved can imitate is not asked at all; held ones that do the same are named together.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from dbex.refinement.jackknife import QUOTED_BEYOND, jackknife_covariance
from dbex.refinement.parameters import Parameter, Parametrisation, parametrisation
from dbex.refinement.rounds import cell_of
from dbex.refinement.tables import Solved
from dbex.refinement.uncertainty import SINGULAR
from dbex.refinement.widths import BARELY, WIDTHS, begun
from dbex.still import Bools, Floats
from nanobrag_torch.panel import stack_panels

#: A held parameter is worth freeing when the data would move it by this many esds.
ASKED_ESDS = 5.0
#: Two held parameters are alike when either takes this part of the other's fall of χ².
ALIKE = 0.9
#: A parameter is not asked when less than this part of its curvature is left once those that moved imitate it. What is
#: left then is in the spots' shapes, where models err: 1e-5 to 1e-4 for a wavelength beside a free cell or a direction
#: beside shift and tilt, 1e-3 for a direction beside the shift alone, 1e-2 for a distance beside a free cell.
IMITATED = 4e-4
#: What is asked of the detector and the beam. Other widths are asked as terms of the model, where those are chosen.
ASKED = (("distance", "shift", "tilt"), ("wavelength", "direction", "bandwidth"))
#: The same and the widths that are terms.
ASKED_OF_TERMS = (("distance", "shift", "tilt", "point_spread"), ("wavelength", "direction", "bandwidth", "divergence"))

#: How the step of a coordinate is told: unit and factor.
_UNITS = {
    "distance": ("mm", 1.0),
    "shift": ("mm", 1.0),
    "tilt": ("mrad", 1e3),
    "wavelength": ("%", 100.0),
    "direction": ("mrad", 1e3),
    "bandwidth": ("%", 100.0),
}


@dataclass(frozen=True)
class Demand:
    """A parameter of the `group` detector or beam that was held and that the data would move: by `step` in `unit`, by
    so many `esds`; `alike` are held parameters that would do the same."""

    name: str
    group: str
    step: float
    unit: str
    esds: float
    alike: tuple["Demand", ...] = ()

    @property
    def key(self) -> str:
        """The choice of refine.detector or refine.beam that frees it."""
        return self.name.split("_")[0]


@dataclass(frozen=True)
class Score:
    """What is left of the normal equations of the held parameters once those that moved follow: matrix (m, m) and
    gradient (m,). `can` (m,) is false for what those that moved imitate, `grows` (m,) true for what is only asked
    whether it should be more than nothing."""

    matrix: Floats
    gradient: Floats
    can: Bools
    grows: Bools

    @staticmethod
    def of(matrix: Floats, gradient: Floats, free: int, grows: Bools) -> "Score":
        """The score of all parameters but the `free` first ones."""
        # scaled to a unit diagonal: curvatures of lengths, angles and logarithms differ by many powers of ten
        scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
        scaled = matrix * np.outer(scale, scale)
        follow = np.linalg.pinv(scaled[:free, :free], rcond=SINGULAR, hermitian=True) @ scaled[:free, free:]
        left = scaled[free:, free:] - scaled[free:, :free] @ follow
        asked = (gradient * scale)[free:] - follow.T @ (gradient * scale)[:free]
        back = 1 / scale[free:]
        return Score(left * np.outer(back, back), asked * back, np.diag(left) > IMITATED, grows)

    def given(self, chosen: Sequence[int]) -> "Score":
        """The same once the chosen ones follow too."""
        if not len(chosen):
            return self
        among = self.matrix[np.ix_(chosen, chosen)]
        follow = np.linalg.solve(among, self.matrix[chosen])
        left = self.matrix - self.matrix[:, chosen] @ follow
        can = self.can & (np.diag(left) > IMITATED * np.diag(self.matrix))
        can[chosen] = False
        return replace(self, matrix=left, gradient=self.gradient - follow.T @ self.gradient[chosen], can=can)

    def esds(self) -> Floats:
        """By how many formal esds each (m,) would move if it alone were freed, with its sign; 0 where it cannot."""
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = np.where(self.can, self.gradient / np.sqrt(np.diag(self.matrix)), 0.0)
        return np.where(self.grows, np.maximum(moved, 0.0), moved)

    def steps(self) -> Floats:
        """By how much each (m,) would move if it alone were freed."""
        return self.esds() / np.sqrt(np.where(self.can, np.diag(self.matrix), 1.0))

    def selected(self, least_esds: float) -> list[int]:
        """Those that would move by so many esds: the one that asks most, then the others given that one, and so on."""
        chosen: list[int] = []
        while np.abs(esds := self.given(chosen).esds()).max() > least_esds:
            chosen.append(int(np.abs(esds).argmax()))
        return chosen

    def alike(self, i: int) -> list[int]:
        """Those that, each alone, would lower χ² nearly as much as i, and leave it nearly nothing to ask for."""
        falls = self.esds() ** 2
        rivals = [j for j in np.flatnonzero(falls > ALIKE * falls[i]).tolist() if j != i]
        return [j for j in rivals if self.given([j]).esds()[i] ** 2 < (1 - ALIKE) * falls[i]]


@dataclass(frozen=True)
class Asked:
    """What was held, free on paper: the problem with the held parameters after all that moved, its normal equations
    without the priors of what was held, and the score."""

    solved: Solved
    held: tuple[Parameter, ...]
    matrix: Floats
    gradient: Floats
    appears: Bools
    score: Score

    def value(self, name: str) -> float:
        """What a held parameter is asked from, in its reported unit."""
        return self.solved.objective.map.value(name, self.solved.x)


def asked_of(solved: Solved, groups: tuple[Sequence[str], Sequence[str]] = ASKED) -> Asked | None:
    """The held parameters of these groups of detector and beam asked; None where nothing is held or the equations are
    no numbers. Of a width that is nothing it is asked whether its square would grow."""
    free, wider = len(solved.objective.map), with_held(solved.objective.map, groups)
    held = wider.parameters[free:]
    if not held:
        return None
    x = torch.cat([solved.x, torch.zeros(len(held), dtype=solved.x.dtype)])
    asked = replace(solved, objective=replace(solved.objective, map=wider), x=x)
    normal = asked.objective.normal_equations(x, solved.variance, solved.local)
    # the priors of what is held keep it in range when it moves; here the data alone are asked
    matrix = normal.matrix - np.diag([0.0] * free + [p.prior**-2 for p in held])
    if not np.isfinite(matrix).all():
        return None
    value = wider.values(x)
    appears = np.array([p.name in WIDTHS and value[p.name] < 2 * BARELY[p.name] for p in held])
    score = Score.of(matrix, normal.gradient, free, appears)
    return Asked(asked, held, matrix, normal.gradient, appears, score)


@dataclass(frozen=True)
class Promise:
    """By how much χ² would fall if some widths were more than nothing, and how much they would be, in their units."""

    fall: float
    widths: Mapping[str, float]


@dataclass(frozen=True)
class Promises:
    """What the score test of one round promises: by how much χ² would fall if what is held of the geometry moved, and
    what widths that are nothing would do once it has."""

    geometry: float
    asked: Asked | None
    given_geometry: Score | None

    def of(self, names: Sequence[str]) -> Promise:
        """What these widths would do together, those of them that would grow."""
        best = Promise(0.0, {})
        if self.asked is None or self.given_geometry is None:
            return best
        score, place = self.given_geometry, {p.name: i for i, p in enumerate(self.asked.held)}
        able = [place[name] for name in names if name in place and score.can[place[name]]]
        for chosen in (list(some) for n in range(len(able)) for some in itertools.combinations(able, n + 1)):
            gradient, matrix = score.gradient[chosen], score.matrix[np.ix_(chosen, chosen)]
            # in units of the diagonal: what the square of next to nothing curves is next to nothing
            scale = 1 / np.sqrt(np.diag(matrix))
            step = scale * np.linalg.solve(matrix * np.outer(scale, scale), gradient * scale)
            if (step > 0).all() and gradient @ step > best.fall:
                found = {self.asked.held[i].name: by for i, by in zip(chosen, step.tolist(), strict=True)}
                widths = {name: grown(self.asked.value(name), by) for name, by in found.items()}
                best = Promise(float(gradient @ step), widths)
        return best


def promises(solved: Solved) -> Promises:
    """The score test of all that is held of detector and beam, widths included."""
    asked = asked_of(solved, ASKED_OF_TERMS)
    if asked is None:
        return Promises(0.0, None, None)
    moves = replace(asked.score, can=asked.score.can & np.array([p.name not in WIDTHS for p in asked.held]))
    chosen = moves.selected(ASKED_ESDS)
    if not chosen:
        return Promises(0.0, asked, asked.score)
    gradient = moves.gradient[chosen]
    fall = float(gradient @ np.linalg.solve(moves.matrix[np.ix_(chosen, chosen)], gradient))
    return Promises(fall, asked, asked.score.given(chosen))


def grown(width: float, step: float) -> float:
    """A width after this step of its logarithm, taken as one of its square, as it is where it was next to nothing."""
    return width * float(np.sqrt(1 + 2 * max(step, 0.0)))


def unmet_demands(solved: Solved, inflation: float) -> list[Demand]:
    """What the groups that were held would do, were they free; `solved` with the variances it was solved with.

    Each is told as if it were freed after those before it. Esds are those of the normal matrix times `inflation`, and
    times what the jackknife finds for the first if that is clearly more: all of them at once, hardly determined in a
    bad fit, would drown the one that explains it.
    """
    asked = asked_of(solved)
    if asked is None:
        return []
    held, score, appears = asked.held, asked.score, asked.appears
    chosen = score.selected(ASKED_ESDS * inflation)
    if not chosen:
        return []
    larger = inflation * _of_jackknife(asked, chosen[0], inflation)
    demands = []
    for k, i in enumerate(chosen):
        before = score.given(chosen[:k])
        esds, steps = np.abs(before.esds()) / larger, before.steps()
        alike = tuple(demand(held[j], steps[j], esds[j], bool(appears[j])) for j in before.alike(i))
        demands.append(replace(demand(held[i], steps[i], esds[i], bool(appears[i])), alike=alike))
    return [one for one in demands if one.esds > ASKED_ESDS]


def _of_jackknife(asked: Asked, i: int, inflation: float) -> float:
    """By which factor the jackknife's esd of held parameter i exceeds the inflated formal one; 1 where not clearly."""
    free = len(asked.solved.objective.map) - len(asked.held)
    covariance = jackknife_covariance(asked.solved, asked.matrix, asked.gradient, [*range(free), free + i])
    ratio = float(np.sqrt(covariance[-1, -1] * asked.score.matrix[i, i])) / inflation
    return ratio if ratio > QUOTED_BEYOND else 1.0


def with_held(map: Parametrisation, groups: tuple[Sequence[str], Sequence[str]] = ASKED) -> Parametrisation:
    """The parametrisation with what was held of these groups of detector and beam free too, after all that is free."""
    detector, beam = (
        tuple(group for group in some if group not in map.free_groups(kind))
        for kind, some in zip(("detector", "beam"), groups, strict=True)
    )
    held = parametrisation(
        map.crystal, map.detector, map.beam, cell_of(map), (), detector, beam, map.ln_scale
    ).parameters
    _, panels, lamp = begun(map.crystal, map.detector, map.beam, [p.name for p in held], BARELY)
    point_spread = stack_panels(panels, map.panels.origin).point_spread
    return replace(
        map, parameters=map.parameters + held, beam=lamp, panels=replace(map.panels, point_spread=point_spread)
    )


def demand(parameter: Parameter, step: float, esds: float, appears: bool | np.bool_) -> Demand:
    """A step of a parameter's coordinate as it is told; `appears` where it is ln of a bandwidth that was not there."""
    if appears:
        step = grown(BARELY[parameter.name], step)
    unit, factor = _UNITS[parameter.name.split("_")[0]]
    return Demand(parameter.name, parameter.group, float(step) * factor, unit, float(esds))
