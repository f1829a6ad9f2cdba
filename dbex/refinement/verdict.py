"""Whether a fit can be used, in words: a plausible picture is not enough."""

from dbex.refinement.parameters import Parametrisation
from dbex.refinement.uncertainty import Curvature, Demand
from dbex.still import Verdict

#: Limits of a good fit: χ² over all and over core pixels, the median correlation of strong boxes, the relative error of
#: F².
CORE_LIMIT, CC_LIMIT, MODEL_ERROR_LIMIT = 2.0, 0.8, 1.0
#: Least rank correlation of strong intensities with F²: 0 within 1/√n for the structure factors of something else,
#: however well free intensities fit the pixels; above 0.5 on real stills.
INTENSITY_CC_LIMIT = 0.3
#: Fewer strong boxes than this prove nothing.
FEWEST_STRONG = 10
#: A held parameter is worth freeing when the data would move it by this many esds.
ASKED_ESDS = 5.0
#: Above this condition number the worst direction is named.
ILL_CONDITIONED = 1e8

#: Held parameters are asked one at a time.
_EACH = ", each if it alone were freed"
_UNITS = {"distance": ("mm", 1.0), "shift": ("mm", 1.0), "tilt": ("mrad", 1e3)}


def judge(
    converged: bool, figures: dict[str, float], wanted: list[Demand], bend: Curvature, map: Parametrisation
) -> Verdict:
    """The verdict on a refined still."""
    reasons = []
    if figures["boxes_cc"] < FEWEST_STRONG:
        reasons.append(f"only {figures['boxes_cc']:.0f} boxes stand out from their background by 10 sigma")
    elif not figures["median_cc"] >= CC_LIMIT:
        reasons.append(
            f"model and data correlate with {figures['median_cc']:.2f} in the median strong box (good: {CC_LIMIT})"
        )
    if not figures["chi2_per_pixel"] <= CORE_LIMIT:
        reasons.append(f"chi2 per pixel is {figures['chi2_per_pixel']:.2f} (good: up to {CORE_LIMIT})")
    if not figures["chi2_core"] <= CORE_LIMIT:
        reasons.append(f"chi2 per core pixel is {figures['chi2_core']:.2f} (good: up to {CORE_LIMIT})")
    doubts = []
    if figures["boxes_cc"] >= FEWEST_STRONG and not figures["intensity_cc"] >= INTENSITY_CC_LIMIT:
        doubts.append(f"have a rank correlation of {figures['intensity_cc']:.2f} with F^2 (good: {INTENSITY_CC_LIMIT})")
    if figures["relative_model_error"] > MODEL_ERROR_LIMIT:
        doubts.append(f"differ from F^2 by {100 * figures['relative_model_error']:.0f} %")
    if doubts:
        reasons.append(
            f"intensities {' and '.join(doubts)}: are these the structure factors of this crystal, and is this the "
            "right one of its possible indexings?"
        )
    state = "not converged" if not converged else "poor" if reasons else "good"
    if not converged:
        reasons.insert(0, "the last steps were still large compared with the esds")
    if not reasons:
        reasons = ["model and pixels agree within the noise"]
    return Verdict(state, tuple(reasons), tuple(_advice(wanted, bend, map.free_groups("detector"))))


def _advice(wanted: list[Demand], bend: Curvature, free: tuple[str, ...]) -> list[str]:
    advice = []
    asked = [demand for demand in sorted(wanted, key=lambda d: -d.esds) if demand.esds > ASKED_ESDS]
    if asked:
        moves = []
        for demand in asked:
            unit, factor = _UNITS[demand.name.split("_")[0]]
            name = demand.name.replace("_", " ")
            moves.append(f"{name} ({demand.step * factor:+.3f} {unit}, {demand.esds:.0f} esds)")
        groups = [group for group in _UNITS if group in free or any(d.name.startswith(group) for d in asked)]
        advice.append(
            f"the data ask for another {', '.join(moves)}{_EACH if len(moves) > 1 else ''}: "
            f"refine.detector={','.join(groups)} would find out"
        )
    if bend.condition_number > ILL_CONDITIONED:
        advice.append(f"this still hardly determines the combination {bend.worst_direction}")
    return advice
