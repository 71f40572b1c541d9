"""Figures from runs, for print and for the colour-blind: colour, marker and dash tell the models apart."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from spectral_run.reports.collect import curves, number, readable
from spectral_run.reports.labels import labels
from spectral_run.runner.files import write_whole

DPI = 200
# Okabe and Ito's palette, which survives the common kinds of colour blindness; black first. More models than it has
# colours are usually values of one setting, in order: they get shades of cividis, dark to light.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_BANDS = 4  # models at most that get a band over their seeds: more would cover each other
STYLE: Any = {  # of all figures
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}
_STEPS = [1, 2, 2.5, 5, 10]
_PANELS = (
    ("training loss", ("train/loss",)),
    ("validation accuracy", ("validation/accuracy",)),
    ("validation AUC, mean over findings", ("validation/auc",)),
    ("spectral radius", ("train/full_rho", "train/rho")),
)


@dataclass(frozen=True)
class Model:
    """Runs that differ in the seed only, and how they are drawn; ``runs`` are those that are done."""

    label: str
    runs: Sequence[dict[str, Any]]
    started: int
    style: dict[str, Any]

    @property
    def caption(self) -> str:
        """The label, and how many runs stand behind it where some are missing."""
        text = self.label
        if len(self.runs) < self.started:
            text += f" ({len(self.runs)} of {self.started} runs)"
        return textwrap.fill(text, 60)


def models(results: Sequence[dict[str, Any]]) -> list[Model]:
    """The results by label, in order, each with a style of its own."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for label, result in zip(labels(results), results, strict=True):
        groups.setdefault(label, []).append(result)
    colours: Iterable[Any] = cycle(COLOURS)
    if len(groups) > len(COLOURS):
        colours = mpl.colormaps["cividis"](np.linspace(0.0, 0.9, len(groups)))
    styles = zip(colours, cycle(_DASHES), cycle(_MARKERS), strict=False)
    return [
        Model(label, [r for r in runs if r.get("status") == "done"], len(runs),
              {"color": colour, "linestyle": dash, "marker": marker})
        for (label, runs), (colour, dash, marker) in zip(groups.items(), styles, strict=False)
    ]  # fmt: skip


def training_curves(results: Sequence[dict[str, Any]]) -> Figure | None:
    """Loss, validation accuracy or AUC and rho by epoch, a line per model: the mean over its finished seeds.

    Rho is that of the full training set where some run has it, else the mean over the batches.
    """
    drawn = models(results)
    records = [[curves(Path(run["folder"])) for run in model.runs] for model in drawn]
    found = {key for runs in records for run in runs for key in run.columns}
    panels = [(title, key) for title, keys in _PANELS for key in [k for k in keys if k in found][:1]]
    if not panels:
        return None
    several = max(len(model.runs) for model in drawn) > 1
    bands = several and len(drawn) <= _BANDS
    note = "mean over seeds" + ("; band: smallest to largest" if bands else "") if several else None
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(panels), [model.caption for model in drawn])
        for axis, (title, key) in zip(axes, panels, strict=True):
            for i, (model, runs) in enumerate(zip(drawn, records, strict=True)):
                columns = [run[key] for run in runs if key in run]
                if columns:
                    _line(axis, pd.concat(columns, axis=1), model, first_marker=i, band=bands)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=_STEPS))
            axis.set_title(title + (", mean over batches" if key == "train/rho" else ""), loc="left")
            if key == "validation/accuracy":
                percent(axis)
            else:
                _scale(axis, "y", [y for line in axis.get_lines() for y in np.asarray(line.get_ydata(), dtype=float)])
        signs = {
            model.label: model.style
            for model, runs in zip(drawn, records, strict=True)
            if any(key in run for run in runs for _, key in panels)
        }
        _legend(figure, drawn, signs, note)
    return figure


def gap_against_rho(results: Sequence[dict[str, Any]]) -> Figure | None:
    """Each test's gap to the plain test accuracy against rho (figure 2).

    A model's single run is a point with its 95% interval; several are faint points, with their mean ± sd.
    """
    drawn = models(results)
    tests = dict.fromkeys(
        (test, metric)
        for model in drawn
        for run in model.runs
        for test, metrics in (run.get("generalization") or {}).items()
        for metric in metrics
        if metric.startswith("gap") or metric == "relative_change"
    )
    points = {key: [(model, _points(model, *key)) for model in drawn] for key in tests}
    points = {key: found for key, found in points.items() if any(len(rows) for _, rows in found)}
    if not points:
        return None
    several = any(len(rows) > 1 for found in points.values() for _, rows in found)
    single = any(len(rows) == 1 for found in points.values() for _, rows in found)
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(points), [model.caption for model in drawn])
        for axis, ((test, metric), found) in zip(axes, points.items(), strict=True):
            for model, rows in found:
                _point(axis, rows, model)
            _scale(axis, "x", np.concatenate([rows[:, 0] for _, rows in found if len(rows)]))
            axis.margins(x=0.12)
            axis.set_xlabel("spectral radius, training set")
            percent(axis)
            axis.set_title(f"{readable(test)}: {readable(metric)}", loc="left")
        axes[0].set_ylabel("relative change of accuracy")
        notes = ["bars: ± sd over seeds (faint points)"] * several + ["bars: 95% interval of the one run"] * single
        signs = {
            m.label: m.style | {"linestyle": "none"} for found in points.values() for m, rows in found if len(rows)
        }
        _legend(figure, drawn, signs, "; ".join(notes))
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG or PDF, as the name says, whole; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    kind = path.suffix.removeprefix(".")
    figure.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
    write_whole(path, buffer.getvalue())


def _line(axis: Axes, seeds: pd.DataFrame, model: Model, *, first_marker: int, band: bool) -> None:
    seeds = seeds.sort_index().dropna(how="all")
    mean, epochs = seeds.mean(axis=1).to_numpy(), seeds.index.to_numpy()
    step = max(1, len(epochs) // 6)
    axis.plot(epochs, mean, linewidth=1.3, markersize=3.5, markevery=(first_marker % step, step), **model.style)
    if band and seeds.shape[1] > 1:
        low, high = seeds.min(axis=1).to_numpy(), seeds.max(axis=1).to_numpy()
        axis.fill_between(epochs, low, high, color=model.style["color"], alpha=0.15, linewidth=0)


def _points(model: Model, test: str, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rho, gap and the interval's ends, a row per run that has the first two; a missing end is the gap itself."""
    rows = []
    for run in model.runs:
        rho, gap = number(run, "rho", "value"), number(run, "generalization", test, metric, "value")
        ends = [number(run, "generalization", test, metric, end) for end in ("ci_low", "ci_high")]
        if math.isfinite(rho) and math.isfinite(gap):
            rows.append([rho, gap, *(end if math.isfinite(end) else gap for end in ends)])
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def _point(axis: Axes, rows: np.ndarray[Any, np.dtype[np.float64]], model: Model) -> None:
    if not len(rows):
        return
    rho, gap = rows[:, :2].mean(axis=0)
    look = {"color": model.style["color"], "marker": model.style["marker"], "linestyle": "none"}
    if len(rows) > 1:
        axis.plot(rows[:, 0], rows[:, 1], markersize=3, alpha=0.35, **look)
        error = np.full((2, 1), rows[:, 1].std(ddof=1))
    else:
        error = np.maximum(0.0, [[gap - rows[0, 2]], [rows[0, 3] - gap]])
    axis.errorbar([rho], [gap], yerr=error, capsize=2, markersize=5, elinewidth=1.0, **look)


def _panels(count: int, captions: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, three in a row, and room for the legend below them."""
    columns, rows = min(3, count), math.ceil(count / 3)
    width = max(4.2, 3.4 * columns)
    lines = sum(caption.count("\n") + 1 for caption in captions)
    height = 3.0 * rows + 0.17 * math.ceil(lines / _legend_columns(width, captions)) + 0.25
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _legend_columns(width: float, captions: Sequence[str]) -> int:
    longest = max(len(line) for caption in captions for line in caption.splitlines())
    return max(1, min(6, int(width / (0.6 + 0.075 * longest))))  # inches: the handle, and a character at 9 points


def _scale(axes: Axes, name: str, values: Iterable[float]) -> None:
    """Logarithmic with plain numbers where the values span a decade; 0 has no place there, so linear with one."""
    axis: Axis = getattr(axes, f"{name}axis")
    finite = [value for value in values if math.isfinite(value)]
    if not finite or min(finite) <= 0 or max(finite) < 10 * min(finite):
        axis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        return
    axes.set(**{f"{name}scale": "log"})
    short = max(finite) < 300 * min(finite)
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def percent(axes: Axes) -> None:
    """Shares as percentages, with as many decimals as the ticks need."""
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{100 * value:.6g}%".replace("-", "−")))


def _legend(figure: Figure, drawn: Sequence[Model], signs: Mapping[str, dict[str, Any]], note: str | None) -> None:
    """One legend below all axes; a model of which nothing is drawn is there too, without a sign."""
    if len(drawn) == 1 and not note:
        return
    styles = [signs.get(model.label, {"linestyle": "none"}) for model in drawn]
    handles = [
        Line2D([], [], markersize=4, label=model.caption, **style) for model, style in zip(drawn, styles, strict=True)
    ]
    columns = _legend_columns(figure.get_size_inches()[0], [model.caption for model in drawn])
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(columns, len(drawn)), frameon=False, title=note,
        title_fontsize="small", handlelength=3.0 if any(style["linestyle"] != "none" for style in styles) else 1.0,
    )  # fmt: skip
