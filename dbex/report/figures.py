"""Pictures of single spots: data, model and the residual between them."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from dbex.still import Floats, Ints, Refined

PER_KIND = 3
KINDS = ("worst", "median", "best")
#: Bright spots are ranked; below this a correlation says more of the noise than of the model.
RANKED_ABOVE_SNR = 10.0
#: Z beyond this has the last colour.
Z_LIMIT = 5.0
#: Both maps keep their order of lightness for every kind of colour vision.
INTENSITY_MAP, RESIDUAL_MAP = "viridis", "PuOr_r"
UNUSED_COLOUR = "0.8"


def ranked_boxes(refined: Refined) -> dict[str, Ints]:
    """The boxes to show by kind, from the correlation of data and model: bright ones, or all where few are bright; and
    those that lost most of their weight, where any did."""
    boxes = refined.boxes
    shown = np.isfinite(boxes.cc) & (boxes.pixels > 0)
    bright = shown & (boxes.signal_to_noise > RANKED_ABOVE_SNR)
    candidates = np.flatnonzero(bright if bright.sum() >= PER_KIND * len(KINDS) else shown)
    order = candidates[np.argsort(boxes.cc[candidates])]
    each = min(PER_KIND, max(1, len(order) // len(KINDS)))
    middle = max(0, (len(order) - each) // 2)
    parts = (order[:each], order[middle : middle + each], order[::-1][:each])
    ranked = dict(zip(KINDS, parts, strict=True))
    robbed = refined.down_weighted()[:PER_KIND]
    return ranked | {"most down-weighted": robbed} if len(robbed) else ranked


def box_images(refined: Refined, box: int) -> tuple[Floats, Floats, Floats]:
    """Data, model with background (photons) and Z of a box (slow, fast); NaN where a pixel was not used."""
    x0, x1, y0, y1 = (int(edge) for edge in refined.boxes.bbox[box])
    pixels = refined.pixels
    mine = np.flatnonzero((pixels.box == box) & pixels.used)
    place = (pixels.slow[mine] - y0, pixels.fast[mine] - x0)
    model = pixels.background[mine] + pixels.bragg[mine]
    images = np.full((3, y1 - y0, x1 - x0), np.nan)
    images[0][place] = pixels.data[mine]
    images[1][place] = model
    images[2][place] = (pixels.data[mine] - model) / np.sqrt(pixels.variance[mine])
    return images[0], images[1], images[2]


def spots_figure(refined: Refined) -> Figure:
    """The worst, median and best spots by correlation, each as data and model on one scale, and Z."""
    ranked = ranked_boxes(refined)
    count = max(1, *(len(chosen) for chosen in ranked.values()))
    figure = Figure(figsize=(4.9 * count + 1.3, 2.25 * len(ranked) + 0.7), dpi=110)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(ranked), 4 * count, left=0.04, right=0.94, top=0.87, bottom=0.04, wspace=0.08, hspace=0.42,
        width_ratios=[1, 1, 1, 0.2] * count,
    )  # fmt: skip
    residual = None
    for row, (kind, chosen) in enumerate(ranked.items()):
        for place, box in enumerate(chosen):
            axes = [figure.add_subplot(grid[row, 4 * place + column]) for column in range(3)]
            residual = draw_spot(axes, refined, int(box))
            if place == 0:
                axes[0].set_ylabel(f"{kind} CC" if kind in KINDS else kind, fontsize=12, weight="bold")
    if residual is not None:
        bar = figure.colorbar(residual, cax=figure.add_axes((0.945, 0.12, 0.009, 0.68)), extend="both")
        bar.set_label("Z = (data − model)/σ", fontsize=9)
    figure.suptitle(
        f"{refined.still.name}: spots ranked by the correlation of data and model. "
        "Data and model share a scale (square root of photons); grey pixels were not used",
        fontsize=11,
    )
    return figure


def draw_spot(axes: list[Any], refined: Refined, box: int) -> Any:
    """Fill three axes with a spot's data, model and Z; gives back the image of Z for a colour bar."""
    data, model, z = box_images(refined, box)
    boxes = refined.boxes
    low, high = np.nanmin([data, model]), np.nanmax([data, model])
    # The square root makes the noise of photons equally visible at every brightness.
    norm = PowerNorm(0.5, vmin=low, vmax=max(high, low + 1.0))
    images = [axes[0].imshow(data, norm=norm, cmap=INTENSITY_MAP), axes[1].imshow(model, norm=norm, cmap=INTENSITY_MAP),
              axes[2].imshow(z, vmin=-Z_LIMIT, vmax=Z_LIMIT, cmap=RESIDUAL_MAP)]  # fmt: skip
    labels = ("data", "model", f"Z, χ²/px {boxes.chi2_per_pixel[box]:.2f}")
    for axis, label in zip(axes, labels, strict=True):
        axis.set_facecolor(UNUSED_COLOUR)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(label, fontsize=8)
    h, k, l = (int(index) for index in boxes.hkl[box])
    brightness = f"{round(low)} to {round(high)} photons, S/N {boxes.signal_to_noise[box]:.0f}"
    where = f", panel {boxes.panel[box]}" if len(refined.detector) > 1 else ""
    axes[1].set_title(f"hkl {h} {k} {l}{where}   CC {boxes.cc[box]:.3f}\n{brightness}", fontsize=9)
    return images[2]


def write_spots(refined: Refined, file: Path) -> None:
    """Write the picture of the spots as PNG; raises OSError."""
    spots_figure(refined).savefig(file, format="png")
