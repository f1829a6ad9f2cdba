"""The |F|² of dbex.refine_joint: which reflections share one, what is known of them, and the file that they go to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dbex.joint.solve import Joint
    from dbex.joint.solve_amplitudes import Known, Squares
    from dbex.joint.visits import Visitor
    from dbex.still import Amplitudes, Ints


@dataclass(frozen=True)
class Refined:
    """The |F|² that were refined, of the reflections `unique` (r, 4): h, k, l in the asymmetric unit and 1 for I(+)."""

    squares: "Squares"
    unique: "Ints"

    @property
    def told(self) -> dict[str, Any]:
        """What joint.json tells."""
        from dbex.joint.solve_amplitudes import told_of

        return told_of(self.squares)

    def write(self, path: Path, cell: tuple[float, ...], wavelength_A: float, space_group: str) -> None:
        """Write those that some still has; raises OSError."""
        from dbex.io.merged import write_merged
        from dbex.observations import Means

        seen, means = self.squares.means.count > 0, self.squares.means
        chosen = Means(means.value[seen], means.sigma[seen], means.count[seen])
        write_merged(path, self.unique[seen], chosen, cell, wavelength_A, space_group)


def refined_amplitudes(
    refine: Any, joint: "Joint", visitor: "Visitor", visits: Any, amplitudes: "Amplitudes", tell: Any
) -> "tuple[Joint, Refined]":
    """The joint solution with |F|² refined, and these. Raises BadInput."""
    from dbex.joint.solve_amplitudes import refine_squares

    known, unique = known_squares(refine, joint, visitor, amplitudes)
    joint, squares = refine_squares(joint, visitor, visits, known, tell)
    return joint, Refined(squares, unique)


def known_squares(refine: Any, joint: "Joint", visitor: "Visitor", amplitudes: "Amplitudes") -> "tuple[Known, Ints]":
    """What is known of the |F|², Friedel mates apart or merged, with the error of the list that the stills found."""
    from dbex.io.merged import groups_of, in_asymmetric_unit, resolution_A
    from dbex.joint.solve_amplitudes import Known
    from dbex.refinement.prior import known_of

    hkl, isym = in_asymmetric_unit(amplitudes.hkl, amplitudes.space_group)
    unique, classes = groups_of(hkl, isym if refine.structure_factors == "apart" else np.ones_like(isym))
    count = np.bincount(classes, minlength=len(unique))
    squares = np.bincount(classes, amplitudes.F**2) / count
    sd = None
    if refine.structure_factor_prior == "mtz":
        error = visitor.laid(joint.begun[0].index).model_error
        everything = np.arange(len(amplitudes.F))
        sd = np.bincount(classes, known_of(amplitudes, everything).prior_sd(error)) / count
    s2 = resolution_A(unique[:, :3], amplitudes.unit_cell) ** -2.0
    return Known(squares, sd, s2, classes), unique
