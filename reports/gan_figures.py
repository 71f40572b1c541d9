"""Samples of a generator beside real images, a row per class."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from spectral_run.reports.figures import DPI, STYLE

GAP = 2  # pixels between images


def samples_figure(
    generated: Sequence[Tensor], real: Sequence[Tensor], limits: tuple[float, float], caption: str
) -> Figure:
    """``generated[c]`` and ``real[c]`` are images ``(n, 1, height, width)`` of class c, drawn as they come."""
    rows, columns = len(generated), max(len(images) for images in (*generated, *real))
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(7.2, 0.3 + 3.3 * rows / columns), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes: Sequence[Axes] = figure.subplots(1, 2)
        for axis, images, title in zip(
            axes, (generated, real), (f"generated ({caption})", "training set"), strict=True
        ):
            sheet = _sheet(images, columns, limits[0])
            side = (sheet.shape[0] + GAP) / rows
            axis.imshow(sheet, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
            axis.set_yticks(
                [side * row + (side - GAP) / 2 - 0.5 for row in range(rows)], [str(row) for row in range(rows)]
            )
            axis.set_xticks([])
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(title, loc="left", fontsize="medium")
        axes[0].set_ylabel("class asked for")
    return figure


def _sheet(images: Sequence[Tensor], columns: int, empty: float) -> NDArray[np.float32]:
    """All images in one, a row per class; a class with fewer leaves its row open."""
    height, width = (side + GAP for side in images[0].shape[-2:])
    sheet = np.full((len(images) * height, columns * width), empty, dtype=np.float32)
    for row, group in enumerate(images):
        for column, image in enumerate(group):
            top, left = row * height, column * width
            sheet[top : top + height - GAP, left : left + width - GAP] = image[0].numpy()
    return sheet[:-GAP, :-GAP]
