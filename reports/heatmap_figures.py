"""Pictures of where networks look: how far each pair agrees, as a matrix, and heat maps over images, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from spectral_run.reports.figures import DPI, STYLE

_MATRIX_COLOURS = "cividis"  # made for the colour-blind; dark to light, so that it survives a black and white print
_HEAT_COLOURS = "plasma"  # no grey in it, unlike cividis, and as even in lightness
_OPAQUE = 0.65  # of the hottest pixel; a pixel of no heat shows the image as it is


def overlap_matrix(
    labels: Sequence[str], overlap: Float[np.ndarray, "models models"], *, chance: float, what: str
) -> Figure:
    """Every pair's overlap as a coloured square with its number in it, on a scale from 0 to 1; NaN is left white."""
    count = len(labels)
    if count == 0 or overlap.shape != (count, count):
        raise ValueError(f"overlap_matrix: overlap must be {count} by {count}, at least 1, got {overlap.shape}.")
    names = [_wrapped(label) for label in labels]
    longest = max(len(line) for name in names for line in name.splitlines())
    lines = max(name.count("\n") + 1 for name in names)
    cell = max(0.62, 0.15 * lines + 0.2)
    upright = longest * 0.085 > cell  # inches; names that don't fit over their column are turned
    colours, scale = mpl.colormaps[_MATRIX_COLOURS].with_extremes(bad="white"), Normalize(0.0, 1.0)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        margin = 0.085 * longest
        size = (
            max(3.4, cell * count + margin + 1.3),
            max(2.2, cell * count + (margin if upright else 0.2 * lines) + 0.6),
        )
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.imshow(np.ma.masked_invalid(overlap), cmap=colours, norm=scale)
        for (i, j), value in np.ndenumerate(overlap):
            if np.isfinite(value):
                ink = "black" if value > 0.55 else "white"
                axis.text(j, i, f"{value:.3f}", ha="center", va="center", color=ink, fontsize="small")
        axis.set_xticks(range(count), names, rotation=90 if upright else 0)
        axis.set_yticks(range(count), names)
        axis.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0)
        axis.spines[:].set_visible(False)
        bar = figure.colorbar(ScalarMappable(scale, colours), ax=axis, fraction=0.04, pad=0.02)
        told = [textwrap.fill(line, int(13 * size[0])) for line in what.splitlines()]
        figure.supxlabel("\n".join(told), fontsize="small")
        bar.ax.axhline(chance, color="white", linewidth=1.5)
        bar.ax.annotate("chance", (1.0, chance), (2, 0), xycoords=("axes fraction", "data"),
                        textcoords="offset points", va="center", fontsize="x-small", annotation_clip=False)  # fmt: skip
        bar.set_ticks([0.2, 0.4, 0.6, 0.8, 1.0])
        bar.outline.set_visible(False)
    return figure


def heat_map_grid(
    images: Shaped[np.ndarray, "rows height width"],
    maps: Float[np.ndarray, "rows models height width"],
    outlines: Bool[np.ndarray, "rows models height width"],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    note: str = "",
) -> Figure:
    """A row per image, a column per model, the image alone before them.

    Colour: heat, as a share of that map's largest; the line goes round the pixels of ``outlines``.  A map that is 0
    everywhere is said to be.
    """
    shape = (len(rows), len(columns), *images.shape[1:])
    if min(shape) == 0 or maps.shape != shape or outlines.shape != shape or len(images) != len(rows):
        raise ValueError(
            f"heat_map_grid: maps and outlines must be {shape}, none of them 0, got {maps.shape}, {outlines.shape}."
        )
    side = 1.5
    titles = [_wrapped(column) for column in columns]
    lines = max(title.count("\n") + 1 for title in titles)
    size = (side * (1 + len(columns)) + 1.4, side * len(rows) + 0.16 * lines + 0.5)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(rows), 1 + len(columns), squeeze=False)
        for i, row in enumerate(rows):
            for j, axis in enumerate(axes[i]):
                axis.imshow(images[i], cmap="gray")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if j:
                    _over(axis, maps[i, j - 1].astype(np.float64), outlines[i, j - 1])
            axes[i, 0].set_ylabel(textwrap.fill(row, 22), rotation=0, ha="right", va="center", fontsize="small")
        for axis, title in zip(axes[0], ["image", *titles], strict=True):
            axis.set_title(title, fontsize="small")
        bar = figure.colorbar(
            ScalarMappable(Normalize(0.0, 1.0), _HEAT_COLOURS), ax=axes, fraction=0.02, pad=0.01, aspect=30
        )
        bar.set_label("share of the map's largest")
        bar.outline.set_visible(False)
        if note:
            figure.supxlabel(textwrap.fill(note, int(11 * size[0])), fontsize="small")
    return figure


def _wrapped(label: str) -> str:
    return textwrap.fill(label, 18, break_long_words=False)


def _over(axis: Axes, heat: Float[np.ndarray, "height width"], chosen: Bool[np.ndarray, "height width"]) -> None:
    """One map over the image that is there."""
    largest = float(heat.max())
    if not largest > 0:
        axis.text(0.5, 0.04, "no heat", transform=axis.transAxes, ha="center", color="white", fontsize="x-small",
                  bbox={"facecolor": "black", "edgecolor": "none", "pad": 1.5})  # fmt: skip
        return
    share = heat / largest
    axis.imshow(share, cmap=_HEAT_COLOURS, norm=Normalize(0.0, 1.0), alpha=_OPAQUE * share)
    if chosen.any():
        # With a border of pixels that are not chosen, so that the line closes at the image's edge.
        places = [np.clip(np.arange(-1, n + 1), -0.5, n - 0.5) for n in chosen.shape[::-1]]
        axis.contour(*places, np.pad(chosen, 1).astype(np.float64), levels=[0.5], colors="black", linewidths=2.2)
        axis.contour(*places, np.pad(chosen, 1).astype(np.float64), levels=[0.5], colors="white", linewidths=1.0)
