"""Pictures as PNG: single spots as data, model and residual; Z against N(0, 1); residuals against resolution."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure

from dbex.scoring import means, normal_density, percentiles, resolution_A, z_scores
from dbex.still import Floats, Ints, StillResult

PER_KIND = 3
KINDS = ("worst", "median", "best")
#: Bright spots are ranked; below this a correlation says more of the noise than of the model.
RANKED_ABOVE_SNR = 10.0
#: Shells of resolution.
BINS = 16
#: Z beyond this has the last colour.
Z_LIMIT = 5.0
#: Both maps keep their order of lightness for every kind of colour vision.
INTENSITY_MAP, RESIDUAL_MAP = "viridis", "PuOr_r"
UNUSED_COLOUR = (0.8, 0.8, 0.8, 1.0)
#: The picture's layout in pixels: a frame's edge, gaps between frames, between spots and rows, margins, dots per inch.
EDGE, GAP, SPOT_GAP, ROW_GAP, LEFT, TOP, RIGHT, BOTTOM, DPI = 168, 8, 30, 78, 44, 88, 110, 30, 110


def ranked_boxes(result: StillResult) -> dict[str, Ints]:
    """The boxes to show by kind, from the correlation of data and model: bright ones, or all where few are bright; and
    those that lost most of their weight, where any did."""
    boxes = result.boxes
    shown = np.isfinite(boxes.cc) & (boxes.pixels > 0)
    bright = shown & (boxes.signal_to_noise > RANKED_ABOVE_SNR)
    candidates = np.flatnonzero(bright if bright.sum() >= PER_KIND * len(KINDS) else shown)
    order = candidates[np.argsort(boxes.cc[candidates])]
    each = min(PER_KIND, max(1, len(order) // len(KINDS)))
    middle = max(0, (len(order) - each) // 2)
    parts = (order[:each], order[middle : middle + each], order[::-1][:each])
    ranked = dict(zip(KINDS, parts, strict=True))
    robbed = result.down_weighted()[:PER_KIND]
    return ranked | {"most down-weighted": robbed} if len(robbed) else ranked


def box_images(result: StillResult, box: int) -> tuple[Floats, Floats, Floats]:
    """Data, model with background (photons) and Z of a box (slow, fast); NaN where a pixel was not used."""
    x0, x1, y0, y1 = (int(edge) for edge in result.boxes.bbox[box])
    pixels = result.pixels
    mine = np.flatnonzero((pixels.box == box) & pixels.used)
    place = (pixels.slow[mine] - y0, pixels.fast[mine] - x0)
    model = pixels.background[mine] + pixels.bragg[mine]
    images = np.full((3, y1 - y0, x1 - x0), np.nan)
    images[0][place] = pixels.data[mine]
    images[1][place] = model
    images[2][place] = z_scores(pixels)[mine]
    return images[0], images[1], images[2]


def frames(result: StillResult, box: int) -> tuple[Floats, Floats, Floats]:
    """A spot's data and model, coloured on one scale, and Z, as pictures (slow, fast, 4) of red, green, blue, alpha."""
    data, model, z = box_images(result, box)
    low, high = (float(limit([data, model])) for limit in (np.nanmin, np.nanmax))
    # The square root makes the noise of photons equally visible at every brightness.
    norm = PowerNorm(0.5, vmin=low, vmax=max(high, low + 1.0))
    photons = [coloured(norm(image), image, INTENSITY_MAP) for image in (data, model)]
    return photons[0], photons[1], coloured((z + Z_LIMIT) / (2 * Z_LIMIT), z, RESIDUAL_MAP)


def coloured(part: Floats, image: Floats, colours: str) -> Floats:
    """Numbers from 0 to 1 as colours (slow, fast, 4); grey where `image` is NaN."""
    picture = np.asarray(colormaps[colours](np.nan_to_num(np.asarray(part, dtype=float))))
    picture[np.isnan(image)] = UNUSED_COLOUR
    return picture


def fitted(picture: Floats) -> Floats:
    """A picture enlarged by a whole factor, as far as EDGE allows; one that is larger loses rows and columns."""
    longest = max(picture.shape[:2])
    if longest > EDGE:
        picture = picture[:: -(-longest // EDGE), :: -(-longest // EDGE)]
    factor = max(1, EDGE // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def spots_figure(result: StillResult) -> Figure:
    """The worst, median and best spots by correlation, each as data and model on one scale, and Z."""
    ranked = ranked_boxes(result)
    count = max(1, *(len(chosen) for chosen in ranked.values()))
    spot_width = 3 * EDGE + 2 * GAP
    width = LEFT + count * spot_width + (count - 1) * SPOT_GAP + RIGHT
    height = TOP + len(ranked) * (EDGE + ROW_GAP) - ROW_GAP + BOTTOM
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    for row, (kind, chosen) in enumerate(ranked.items()):
        bottom = height - TOP - row * (EDGE + ROW_GAP) - EDGE
        label = f"{kind} CC" if kind in KINDS else kind
        figure.text(16 / width, (bottom + EDGE / 2) / height, label, rotation=90, weight="bold", fontsize=11,
                    ha="center", va="center")  # fmt: skip
        for place, box in enumerate(chosen):
            draw_spot(figure, result, int(box), LEFT + place * (spot_width + SPOT_GAP), bottom)
    residual = ScalarMappable(Normalize(-Z_LIMIT, Z_LIMIT), RESIDUAL_MAP)
    bar = figure.colorbar(residual, cax=figure.add_axes((1 - 78 / width, 0.12, 14 / width, 0.68)), extend="both")
    bar.set_label("Z = (data − model)/σ", fontsize=9)
    figure.suptitle(
        f"{result.name}: spots ranked by the correlation of data and model. "
        "Data and model share a scale (square root of photons); grey pixels were not used",
        fontsize=11,
    )
    return figure


def draw_spot(figure: Figure, result: StillResult, box: int, left: int, bottom: int) -> None:
    """Place a spot's data, model and Z with their words, from this pixel of the figure on to the right and up."""
    width, height = figure.get_size_inches() * figure.dpi
    boxes = result.boxes
    labels = ("data", "model", f"Z, χ²/px {boxes.chi2_per_pixel[box]:.2f}")
    for place, (frame, label) in enumerate(zip(frames(result, box), labels, strict=True)):
        picture = fitted(frame)
        x = left + place * (EDGE + GAP)
        across, down = (EDGE - picture.shape[1]) // 2, (EDGE - picture.shape[0]) // 2
        figure.figimage(picture, x + across, bottom + down, origin="upper")
        figure.text((x + EDGE / 2) / width, (bottom - 14) / height, label, fontsize=8, ha="center", va="center")
    data, model, _ = box_images(result, box)
    h, k, l = (int(index) for index in boxes.hkl[box])
    low, high = (float(limit([data, model])) for limit in (np.nanmin, np.nanmax))
    brightness = f"{round(low)} to {round(high)} photons, S/N {boxes.signal_to_noise[box]:.0f}"
    where = f", panel {boxes.panel[box]}" if len(result.detector) > 1 else ""
    middle = (left + 1.5 * EDGE + GAP) / width
    title = f"hkl {h} {k} {l}{where}   CC {boxes.cc[box]:.3f}\n{brightness}"
    figure.text(middle, (bottom + EDGE + 6) / height, title, fontsize=9, ha="center", va="bottom")


def z_histogram_figure(result: StillResult) -> Figure:
    """Z of the used pixels against a normal deviate, on a logarithmic scale."""
    z = z_scores(result.pixels)[result.pixels.used]
    figure = Figure(figsize=(7, 4.2), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    edges = np.linspace(-6, 6, 61)
    axes.hist(np.clip(z, -6, 6), edges, density=True, color="#56b4e9", label=f"{len(z)} pixels")
    axes.plot(edges, normal_density(edges), color="black", label="N(0, 1)")
    axes.set(yscale="log", ylim=(1e-5, 1), xlabel="Z = (data − model)/σ", ylabel="density",
             title=f"{result.name}: Z has mean {z.mean():+.3f}, sigma {z.std():.3f}")  # fmt: skip
    axes.legend()
    return figure


def profile_figure(result: StillResult) -> Figure:
    """Residuals against 1/d²: percentiles of Z, and χ² per pixel."""
    used = result.pixels.used
    z = z_scores(result.pixels)[used]
    inverse_square = (1 / resolution_A(result.boxes, result.beam_direction) ** 2)[result.pixels.box[used]]
    figure = Figure(figsize=(7, 5.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    bands, chi2 = percentiles(inverse_square, z, BINS), means(inverse_square, z**2, BINS)
    for level in (-2, -1, 0, 1, 2):
        above.axhline(level, color="0.6", linestyle="--", linewidth=1)
    for column, width in enumerate((1, 1.4, 2.4, 1.4, 1)):
        above.plot(bands.x, bands.values[:, column], color="#0072b2", linewidth=width, marker=".")
    above.set(ylim=(-4, 4), ylabel="Z at −2, −1, 0, 1, 2 sigma", title=f"{result.name}: residuals against 1/d²")
    below.errorbar(chi2.x, chi2.mean, chi2.esd, color="#0072b2", marker=".")
    below.axhline(1, color="0.6", linestyle="--", linewidth=1)
    below.set(xlabel="1/d² (1/Å²)", ylabel="χ² per pixel")
    return figure


#: The pictures by the names of their files.
PICTURES = {"spots.png": spots_figure, "z_histogram.png": z_histogram_figure, "residual_profile.png": profile_figure}


def write_picture(result: StillResult, name: str, folder: Path) -> Path:
    """Write one of the PICTURES as PNG into a folder; raises OSError."""
    PICTURES[name](result).savefig(folder / name, format="png")
    return folder / name
