"""Pictures of the loss around a network: along lines and in a plane, training and test side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from spectral_run.reports.figures import COLOURS, DPI, STYLE, percent

_TRAIN: dict[str, Any] = {"color": COLOURS[0], "linestyle": "-"}
_TEST: dict[str, Any] = {"color": COLOURS[4], "linestyle": "--"}
_MODEL: dict[str, Any] = {"color": COLOURS[2], "linestyle": ":"}
_SHARES = (0.5, 0.8, 0.9, 0.95, 0.98)


def lines_figure(lines: pd.DataFrame, eigenvalues: Sequence[float]) -> Figure:
    """A column per eigenvector: loss above, with its quadratic model, and accuracy below where there are classes."""
    classes = "train_accuracy" in lines
    count = len(eigenvalues)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(4.2, 3.4 * count), 4.6 if classes else 2.8), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(1 + classes, count, squeeze=False, sharex=True, sharey="row")
        top = lines[["train_loss", "test_loss"]].to_numpy()
        for column, value in enumerate(eigenvalues):
            part = lines[lines["vector"] == column + 1]
            axis = grid[0][column]
            axis.plot(part["distance"], part["train_loss"], label="training", **_TRAIN)
            axis.plot(part["distance"], part["test_loss"], label="test", **_TEST)
            axis.plot(part["distance"], part["train_loss_quadratic"], label="quadratic model", **_MODEL)
            low, high = float(np.nanmin(top)), float(np.nanmax(top))
            axis.set_ylim(min(0.0, low), high + 0.05 * (high - low))  # the model leaves the picture where it fails
            axis.set_title(f"eigenvector {column + 1}, $\\lambda$ = {_short(value)}", loc="left")
            if classes:
                axis = grid[1][column]
                axis.plot(part["distance"], part["train_accuracy"], **_TRAIN)
                axis.plot(part["distance"], part["test_accuracy"], **_TEST)
                percent(axis)
            grid[-1][column].set_xlabel("distance along it")
        grid[0][0].set_ylabel("loss")
        if classes:
            grid[1][0].set_ylabel("accuracy")
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def plane_figure(plane: pd.DataFrame, eigenvalues: Sequence[float]) -> Figure:
    """Loss as colour on one scale for both splits, accuracy as lines; the network is the cross in the middle."""
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(7.2, 3.6), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes: Sequence[Axes] = figure.subplots(1, 2, sharex=True, sharey=True)
        losses = plane[["train_loss", "test_loss"]].to_numpy()
        finite = losses[np.isfinite(losses) & (losses > 0)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.1, 1.0)
        high = max(high, 1.01 * low)
        norm, levels = LogNorm(low, high), np.geomspace(low, high, 25)
        for axis, name, title in zip(axes, ("train", "test"), ("training", "test"), strict=True):
            x, y, loss = _grid(plane, f"{name}_loss")
            shades = axis.contourf(x, y, np.clip(loss, low, high), levels=levels, norm=norm, cmap="cividis_r")
            if f"{name}_accuracy" in plane:
                _accuracy_lines(axis, *_grid(plane, f"{name}_accuracy"))
            axis.plot([0], [0], marker="+", color="black", markersize=9, markeredgewidth=1.5)
            axis.set_title(title, loc="left")
            axis.set_xlabel(f"along eigenvector 1, $\\lambda$ = {_short(eigenvalues[0])}")
            axis.set_aspect("equal")
        axes[0].set_ylabel(f"along eigenvector 2, $\\lambda$ = {_short(eigenvalues[1])}")
        bar = figure.colorbar(shades, ax=axes, label="loss", shrink=0.8)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def valley_figure(line: pd.DataFrame, distance: float) -> Figure:
    """Loss and, of classes, accuracy along the line from the last iterate (0) to the average (1) and beyond."""
    panels = [name for name in ("loss", "accuracy") if f"train_{name}" in line]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(panels), 3.0), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes: Sequence[Axes] = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, name in zip(axes, panels, strict=True):
            axis.plot(line["t"], line[f"train_{name}"], label="training", **_TRAIN)
            axis.plot(line["t"], line[f"test_{name}"], label="test", **_TEST)
            for place in (0.0, 1.0):
                axis.axvline(place, color="grey", linewidth=0.8, zorder=0)
            axis.set_xticks([0.0, 1.0], ["last iterate", "average"])
            axis.set_title(name, loc="left")
            axis.set_xlabel(f"the two are {distance:.3g} apart")
            if name == "accuracy":
                percent(axis)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _accuracy_lines(axis: Axes, x: Any, y: Any, accuracy: Any) -> None:
    inside = [share for share in _SHARES if accuracy.min() < share < accuracy.max()]
    if inside:
        drawn = axis.contour(x, y, accuracy, levels=inside, colors="black", linewidths=0.8)
        axis.clabel(drawn, fmt=lambda share: f"{100 * share:.0f}%", fontsize=7)


def _grid(plane: pd.DataFrame, column: str) -> tuple[Any, Any, Any]:
    table = plane.pivot_table(index="distance_2", columns="distance_1", values=column, dropna=False)
    return table.columns.to_numpy(), table.index.to_numpy(), table.to_numpy()


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
