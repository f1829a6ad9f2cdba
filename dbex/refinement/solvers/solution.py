"""What a solver returns."""

from dataclasses import dataclass
from typing import Any

from dbex.still import Floats


@dataclass(frozen=True)
class Step:
    """One iteration: its number, the merit before and after, the damping, and the step in units of the esds."""

    number: int
    merit: float
    damping: float
    step_in_esds: float
    accepted: bool


@dataclass(frozen=True)
class Solution:
    """Where a solver stopped, whether it converged, why, and the curvature there: matrix (n, n) of half the merit."""

    x: Floats
    converged: bool
    message: str
    history: tuple[Step, ...]
    matrix: Floats
    state: Any
