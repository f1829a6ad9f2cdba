"""What a refinement is asked to do: which parameters move, on which reflections, from how far away."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dbex.errors import BadInput

CRYSTAL = ("orientation", "cell", "scale", "b_factor", "size", "mosaicity")
#: What moves on request only.
CRYSTAL_CHOICES = (*CRYSTAL, "cell_spread")
DETECTOR = ("distance", "shift", "tilt", "point_spread")
BEAM = ("wavelength", "direction", "bandwidth", "divergence")
TERMS = ("bandwidth", "square", "mosaic_tensor", "size_tensor", "component", "divergence", "point_spread")
TERM_CHOICES = (*TERMS, "cell_spread")
SOLVERS = ("levenberg_marquardt", "lbfgs")
STARTS = ("auto", "wide", "near")


@dataclass(frozen=True)
class Settings:
    """The choices of one refinement.

    `crystal`, `detector` and `beam` name the groups of parameters that move. Reflections finer than `d_min` (Å) are
    left out. `model_error` is the relative error of |F|² beyond the file's sigma, None estimates it from the data.
    `terms` of the model are tried one after the other and kept where the data pay for them. `start` is near to go
    without the search, wide to search; auto searches too: a search from a good start does no harm. `priors` are the
    standard deviations, in the reported unit, of normal priors of parameters about what was read, such as
    {"distance": 0.05}; without one a parameter has a wide prior that only keeps it in range. Raises BadInput.
    """

    crystal: tuple[str, ...] = CRYSTAL
    detector: tuple[str, ...] = ()
    beam: tuple[str, ...] = ()
    d_min: float | None = None
    max_iterations: int = 50
    model_error: float | None = None
    start: str = "auto"
    terms: tuple[str, ...] = TERMS
    solver: str = "levenberg_marquardt"
    priors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group, allowed in (("crystal", CRYSTAL_CHOICES), ("detector", DETECTOR), ("beam", BEAM)):
            for name in getattr(self, group):
                check_choice(f"refine.{group}", name, allowed)
        for name in self.terms:
            check_choice("refine.terms", name, TERM_CHOICES)
        self._check_radial()
        check_choice("refine.solver", self.solver, SOLVERS)
        for name, sd in self.priors.items():
            if not (math.isfinite(sd) and sd > 0):
                raise BadInput(f"the prior of {name} is {sd}: expected a standard deviation above 0")
        check_choice("refine.start", self.start, STARTS)
        if not (self.crystal or self.detector or self.beam):
            raise BadInput("nothing is free to move: name a part of refine.crystal, refine.detector or refine.beam")
        if self.d_min is not None and not (math.isfinite(self.d_min) and self.d_min > 0):
            raise BadInput(f"d_min is {self.d_min}: expected a resolution in Å above 0")
        if self.max_iterations < 1:
            raise BadInput(f"refine.max_iterations is {self.max_iterations}: expected at least 1")
        if self.model_error is not None and not (math.isfinite(self.model_error) and self.model_error >= 0):
            raise BadInput(f"refine.model_error is {self.model_error}: expected a relative error of 0 or more")

    def _check_radial(self) -> None:
        """Raise BadInput where a bandwidth and a spread of the cell are both asked for: one covariance on a still."""
        told = "on one still it spreads spots as a bandwidth does, and nothing tells the two apart"
        if "bandwidth" in self.beam and "cell_spread" in self.crystal:
            raise BadInput(
                f"refine.crystal=cell_spread and refine.beam=bandwidth are both free: {told}; expected one of them"
            )
        if {"bandwidth", "cell_spread"} <= set(self.terms):
            raise BadInput(f"refine.terms holds cell_spread and bandwidth: {told}; expected one of them")


def check_choice(key: str, name: str, allowed: tuple[str, ...]) -> None:
    """Raise BadInput, with the nearest valid choice, where `name` is none of `allowed`."""
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.0)[0]
        raise BadInput(f"{key} has no choice {name!r}: did you mean {near!r}? (any of {', '.join(allowed)})")
