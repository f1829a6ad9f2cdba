"""What dbex.refine_joint writes: each still concluded in whatever process, then all of them together.

What takes time to import is imported where it is used.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbex.memory import give_back_memory

if TYPE_CHECKING:
    from dbex.cli.joint_amplitudes import Refined
    from dbex.joint.shared import Common
    from dbex.joint.solve import Joint
    from dbex.joint.visits import Visitor
    from dbex.observations import Observations
    from dbex.still import Floats


@dataclass(frozen=True)
class Ended:
    """A still of the joint solution: what the table tells of it, its cell and its intensities."""

    told: dict[str, Any]
    cell: tuple[float, ...]
    found: "Observations"


@dataclass(frozen=True)
class Ending:
    """Concludes stills and writes their models into folders of their own."""

    visitor: "Visitor"
    folder: Path

    def __call__(self, task: "tuple[int, tuple[int, Common, Floats]]") -> Ended:
        """The still of a task (its place in the results, the visitor's task)."""
        from dbex.io.results import write_models
        from dbex.joint.conclude import conclude
        from dbex.joint.merging import observations

        place, visit = task
        still, final = self.visitor.ended(visit)
        refined = conclude(still, self.visitor.settings, final)
        folder = self.folder / f"{place:07d}"
        folder.mkdir()
        write_models(refined, folder)
        cell = tuple(float(getattr(refined.crystal, f"cell_{n}")) for n in ("a", "b", "c", "alpha", "beta", "gamma"))
        told = {
            "index": still.index,
            "still": still.name,
            "figures": refined.figures,
            "estimates": [asdict(e) for e in refined.estimates if not e.name.endswith("]")],  # units are told once
            "left_out": refined.left_out,
        }
        found = observations(refined.boxes, place, refined.figures["esd_inflation"])
        give_back_memory()
        return Ended(told, cell, found)


def write_joint(
    staging: Path,
    models: Path,
    visitor: "Visitor",
    joint: "Joint",
    ended: list[Ended],
    run: Any,
    sweep: dict[str, Any] | None,
    squares: "Refined | None",
) -> dict[str, Any]:
    """Write the files of the joint solution; gives the content of joint.json. `models` holds a folder a still, `sweep`
    tells of the sweep that was begun with, `squares` are |F|² that were refined."""
    from dbex.io.record import provenance, write_json
    from dbex.io.results import write_composite, write_geometry
    from dbex.joint.conclude import conclude, shared_estimates
    from dbex.joint.merging import median_cell
    from dbex.joint.outliers import OUTLIER_RULE

    still, final = visitor.ended(joint.task(0))
    refined = conclude(still, visitor.settings, final)
    shared, covariance = shared_estimates(joint, still, final, visitor.detector)
    units = visitor.sharing.units
    merging = merge(staging, ended, still.amplitudes, float(refined.beam.wavelength_A))
    folders = [models / f"{place:07d}" for place in range(len(ended))]
    write_composite(folders, staging, "joint", merging["relative_model_error"])
    write_geometry(refined, staging / "detector.expt")
    content = {
        "shared": [asdict(estimate) for estimate in shared],
        "covariance": covariance,
        "units": []
        if units is None
        else [
            {"unit": number, "name": name, "panels": list(panels)}
            for number, (name, panels) in enumerate(zip(units.names, units.panels, strict=True))
        ],
        "held": [gauge.words for gauge in joint.gauges],
        "undetermined": list(joint.undetermined),
        "converged": joint.solution.converged,
        "message": joint.solution.message,
        "outlier_rule": OUTLIER_RULE,
        "stills": [
            {"id": place, "weight": weight, "pull": pull, "outlier": bool(weight < 1), "converged": told.converged}
            | end.told
            for place, (end, told, weight, pull) in enumerate(
                zip(ended, joint.state.visited, joint.state.weights, joint.state.pulls, strict=True)
            )
        ],
        "sweep": sweep,
        "structure_factors": None if squares is None else squares.told,
        "left_out": [{"index": b.index, "still": b.name, "reason": b.reason} for b in joint.left_out],
        "merging": merging,
        "steps": [{"round": number, **asdict(step)} for number, step in joint.steps],
        **provenance(run),
    }
    if squares is not None:
        cell, wavelength_A = median_cell([end.cell for end in ended]), float(refined.beam.wavelength_A)
        squares.write(staging / "structure_factors.mtz", cell, wavelength_A, still.amplitudes.space_group)
    write_json(content, staging / "joint.json")
    return content


def merge(staging: Path, ended: list[Ended], amplitudes: Any, wavelength_A: float) -> dict[str, Any]:
    """Write unmerged.mtz and merged.mtz; gives the error of the model, and the agreement of random halves by
    shells of resolution, all last."""
    from dbex.io.merged import groups_of, in_asymmetric_unit, resolution_A, write_merged, write_unmerged
    from dbex.joint.merging import half_shells, known_squares, median_cell, merged, with_model_error
    from dbex.observations import together

    found, group_name = together([end.found for end in ended]), amplitudes.space_group
    cells = [end.cell for end in ended]
    cell = median_cell(cells)
    hkl, isym = in_asymmetric_unit(found.hkl, group_name)
    unique, group = groups_of(hkl, isym)
    squares = known_squares(found, group, len(unique), amplitudes)
    found, model_error = with_model_error(found, group)
    means = merged(found, group, len(unique))
    write_unmerged(staging / "unmerged.mtz", found, means.value[group], cells, wavelength_A, group_name)
    write_merged(staging / "merged.mtz", unique, means, cell, wavelength_A, group_name)
    shells = half_shells(found, group, len(unique), resolution_A(unique[:, :3], cell), squares)
    return {"relative_model_error": model_error, "shells": [asdict(shell) for shell in shells]}


def lines_of(content: dict[str, Any]) -> list[str]:
    """What was found, in a few lines."""
    lines = ["", f"{'shared':16}{'before':>14}{'after':>14}{'esd':>12}  unit"]
    lines += [
        f"{e['name']:16}{e['before']:14.5f}{e['after']:14.5f}{e['esd']:12.2g}  {e['unit']}" for e in content["shared"]
    ]
    lines += [f"held, for nothing tells it: {words}" for words in content["held"]]
    if content["undetermined"]:
        lines.append(f"not determined, known by its prior alone: {', '.join(content['undetermined'])}")
    lines.append("" if content["converged"] else f"not converged: {content['message']}")
    outliers = [
        f"{s['still']} ({s['pull']:.1f} esds, weight {s['weight']:.2f})" for s in content["stills"] if s["outlier"]
    ]
    lines.append(f"outliers ({content['outlier_rule']}): {', '.join(outliers) or 'none'}")
    lines += [f"left out: {left['still']}: {left['reason']}" for left in content["left_out"]]
    if content["structure_factors"]:
        found = content["structure_factors"]
        lines.append(
            f"|F|² of {found['reflections']} reflections, {found['on_several_stills']} of them on several stills, "
            f"about which intensities scatter by {100 * found['spread_of_intensities']:.1f} %"
        )
        lines += [f"held, for nothing tells it: {words}" for words in found["held"]]
    if content["merging"]["shells"]:
        whole = content["merging"]["shells"][-1]
        lines.append(
            f"merged {whole['d_max_A']:.2f} to {whole['d_min_A']:.2f} Å: CC½ {whole['cc_half']:.3f}, R of halves "
            f"{whole['r_half']:.3f} over {whole['reflections']} reflections seen {whole['multiplicity']:.1f} times"
        )
    return lines
