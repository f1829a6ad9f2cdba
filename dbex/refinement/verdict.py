"""Whether a fit can be used, in words: a plausible picture is not enough."""

from dbex.refinement.demands import ASKED_ESDS, Demand
from dbex.refinement.parameters import Parametrisation
from dbex.refinement.settings import BEAM, DETECTOR
from dbex.refinement.uncertainty import Curvature
from dbex.still import Verdict

#: Limits of a good fit: χ² over all and over core pixels, the median correlation of strong boxes, the relative error of
#: F².
CORE_LIMIT, CC_LIMIT, MODEL_ERROR_LIMIT = 2.0, 0.8, 1.0
#: Up to this χ² over all pixels a fit that misses only the noise of its bright spots is fair.
FAIR_LIMIT = 3.0
#: So small a part of the pixels that are more than 6 sigma off, down-weighted, is light of something else.
FOREIGN_PIXELS = 0.01
#: Of good indices more than this part is where the model puts them.
EXPLAINED_LIMIT = 0.75
#: Least rank correlation of strong intensities with F², both in units of the mean F² of their resolution: 0 within 1/√n
#: for the structure factors of something else, however well free intensities fit the pixels; above 0.7 on real stills.
INTENSITY_CC_LIMIT = 0.3
#: At this correlation they are those of this crystal, by three esds of thirty spots, whatever the size of their error:
#: calculated structure factors differ from those of a real crystal by about themselves.
INTENSITY_CC_SURE = 0.5
#: A model that leaves indexed spots, in the median, so many pixels from where they are has not found them.
SPOTS_PX_LIMIT = 3.0
#: Spots were found on pixels that could be used: of those of one image a mask made for it hides none, that of another
#: run about as many as its gaps take of the area. More than this part, and more spots than these, is no accident.
HIDDEN_SPOTS, FEWEST_HIDDEN = 0.05, 2
#: A mask of this detector knows the dead pixels that the image marks, or none of them: not some.
DEAD_TRUSTED = (0.01, 0.9)
#: Fewer strong boxes than this prove nothing.
FEWEST_STRONG = 10
#: How far σ-Z of the background may be off, beyond what chance explains.
SIGMA_Z_LIMIT, SIGMA_Z_ESDS = 0.03, 3.0
#: Above this condition number the worst direction is named.
ILL_CONDITIONED = 1e8


def judge(
    converged: bool, figures: dict[str, float], wanted: list[Demand], bend: Curvature, map: Parametrisation
) -> Verdict:
    """The verdict on a refined still."""
    reasons = [*of_strong_boxes(figures), *of_intensities(figures), *of_spots(figures), *of_mask(figures)]
    misfit = [
        f"chi2 per {'core ' if name == 'chi2_core' else ''}pixel is {figures[name]:.2f} (good: up to {CORE_LIMIT})"
        for name in ("chi2_per_pixel", "chi2_core")
        if not figures[name] <= CORE_LIMIT
    ]
    foreign = of_foreign_light(figures)
    fair = not reasons and bool(figures["chi2_per_pixel"] <= FAIR_LIMIT)
    state = "not converged" if not converged else "good" if not (reasons or misfit) else "fair" if fair else "poor"
    reasons += misfit
    if foreign:
        reasons.append(foreign)
    elif state == "fair":
        reasons.append("the crystal is more than the model, as real ones are: intensities can be used")
    if not converged:
        reasons.insert(0, "the last steps were still large compared with the esds")
    if not reasons:
        reasons = ["model and pixels agree within the noise"]
    if state == "good" and wanted:
        state = "incomplete"
        reasons = [
            f"what was held is wrong by more than {ASKED_ESDS:.0f} esds, and what moved makes up for it: "
            + ", ".join(f"{in_words(demand)} by {demand.esds:.0f} esds" for demand in wanted)
        ]
    return Verdict(state, tuple(reasons), tuple(_advice(figures, wanted, bend, map)))


def of_strong_boxes(figures: dict[str, float]) -> list[str]:
    """Why what is bright speaks against the model, if it does."""
    if figures["boxes_cc"] < FEWEST_STRONG:
        return [
            f"only {figures['boxes_cc']:.0f} boxes stand out from their background by 10 sigma, of "
            f"{figures['indexed_spots']:.0f} indexed spots"
        ]
    if not figures["median_cc"] >= CC_LIMIT:
        return [f"model and data correlate with {figures['median_cc']:.2f} in the median strong box (good: {CC_LIMIT})"]
    return []


def of_intensities(figures: dict[str, float]) -> list[str]:
    """Why the structure factors cannot be those of this crystal as it is indexed, if so."""
    doubts = []
    if figures["boxes_cc"] >= FEWEST_STRONG and not figures["intensity_cc"] >= INTENSITY_CC_LIMIT:
        doubts.append(f"have a rank correlation of {figures['intensity_cc']:.2f} with F^2 (good: {INTENSITY_CC_LIMIT})")
    if figures["relative_model_error"] > MODEL_ERROR_LIMIT and not figures["intensity_cc"] >= INTENSITY_CC_SURE:
        doubts.append(f"differ from F^2 by {100 * figures['relative_model_error']:.0f} %")
    if not doubts:
        return []
    return [
        f"intensities {' and '.join(doubts)}: are these the structure factors of this crystal, and is this the "
        "right one of its possible indexings?"
    ]


def of_foreign_light(figures: dict[str, float]) -> str:
    """What χ² comes from where few pixels, which the robust weights hold down, carry all of its excess; else empty."""
    count, pixels = figures.get("down_weighted_pixels", 0.0), figures.get("pixels", 0.0)
    if figures["chi2_per_pixel"] <= CORE_LIMIT or not 0 < count <= FOREIGN_PIXELS * pixels:
        return ""
    if not (figures["chi2_reduced"] <= CORE_LIMIT and figures["chi2_core"] <= CORE_LIMIT):
        return ""
    return (
        f"{count:.0f} pixels more than 6 sigma off carry it, hot ones, ice or another lattice, and were down-weighted: "
        f"with their weights it is {figures['chi2_reduced']:.2f}"
    )


def of_spots(figures: dict[str, float]) -> list[str]:
    """Why the indices cannot be right, if so."""
    away = figures["spots_median_px"]
    if away <= SPOTS_PX_LIMIT:
        return []
    return [f"indexed spots lie {away:.1f} pixels (median) from where the model puts them: are their indices right?"]


def of_mask(figures: dict[str, float]) -> list[str]:
    """Why the mask cannot be that of this image, if so."""
    found = []
    hidden, spots = figures.get("spots_under_mask", 0.0), figures["indexed_spots"]
    if hidden > HIDDEN_SPOTS and hidden * spots > FEWEST_HIDDEN:
        found.append(f"hides {hidden * spots:.0f} of {spots:.0f} indexed spots")
    trusted = figures.get("dead_pixels_trusted", 0.0)
    if DEAD_TRUSTED[0] < trusted < DEAD_TRUSTED[1]:
        found.append(f"trusts {100 * trusted:.0f} % of the pixels that the image marks as dead")
    return [f"the mask {' and '.join(found)}: is it the mask of this run?"] if found else []


def _advice(figures: dict[str, float], wanted: list[Demand], bend: Curvature, map: Parametrisation) -> list[str]:
    advice = []
    if abs(figures["sigma_z"] - 1) > max(SIGMA_Z_LIMIT, SIGMA_Z_ESDS * figures["sigma_z_esd"]):
        advice.append(
            f"the background scatters {figures['sigma_z']:.2f} times as much as gain and read-out noise say: look at "
            "gain= and sigma_readout=, which dbex.estimate_noise measures"
        )
    if figures.get("dead_pixels_trusted", 0.0) >= DEAD_TRUSTED[1]:
        advice.append("the mask trusts what the image marks as dead, which was left out all the same")
    if figures.get("explained_spots", 1.0) < EXPLAINED_LIMIT:
        astray = (1 - figures["explained_spots"]) * figures["indexed_spots"]
        advice.append(
            f"{astray:.0f} of {figures['indexed_spots']:.0f} indexed spots are not where this lattice puts them: look "
            "for wrong indices"
        )
    if wanted:
        moves = [" or else ".join(told(one) for one in (demand, *demand.alike)) for demand in wanted]
        advice.append(f"the data ask for another {', '.join(moves)}: {_keys(wanted, map)} would find out")
    if bend.condition_number > ILL_CONDITIONED:
        advice.append(f"this still hardly determines the combination {bend.worst_direction}")
    return advice


def told(demand: Demand) -> str:
    """A demand with its size: distance (+0.150 mm, 14 esds)."""
    return f"{in_words(demand)} ({demand.step:+.3f} {demand.unit}, {demand.esds:.0f} esds)"


def in_words(demand: Demand) -> str:
    """The name of what was held."""
    return demand.name.replace("_", " ")


def _keys(wanted: list[Demand], map: Parametrisation) -> str:
    """The parameters of the command that free what is wanted beside what is free, and those that free what is alike."""
    asked: list[Demand] = [*wanted, *(other for demand in wanted for other in demand.alike)]
    found = []
    for kind, groups in (("detector", DETECTOR), ("beam", BEAM)):
        mine = {demand.key for demand in asked if demand.group == kind}
        if mine:
            mine |= set(map.free_groups(kind))
            found.append(f"refine.{kind}={','.join(group for group in groups if group in mine)}")
    return " or ".join(found)
