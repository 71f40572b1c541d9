"""Figures from runs, for print and for the colour-blind: colour, marker and dash tell the models apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from spectral_run.reports.collect import curves, labels

# Okabe and Ito's palette, which survives the common kinds of colour blindness; black first.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_PANELS = (
    ("training loss", ("train/loss",)),
    ("validation accuracy", ("validation/accuracy",)),
    ("spectral radius", ("train/full_rho", "train/rho")),
)


@contextmanager
def _figure(columns: int) -> Iterator[tuple[Figure, list[Axes]]]:
    mpl.use("agg")
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "grid.alpha": 0.25, "savefig.dpi": 200}):  # fmt: skip
        figure, axes = plt.subplots(1, columns, figsize=(3.4 * columns, 3.0), layout="constrained", squeeze=False)
        try:
            yield figure, list(axes[0])
        finally:
            plt.close(figure)


def training_curves(results: list[dict[str, Any]], path: Path) -> Path | None:
    """Loss, validation accuracy and rho by epoch, a line per run; rho on the full training set where measured."""
    runs = [(label, curves(Path(r["folder"]))) for label, r in zip(labels(results), results, strict=True)]
    panels = [(title, keys) for title, keys in _PANELS if any(key in run for _, run in runs for key in keys)]
    if not panels:
        return None
    style = _styles([label for label, _ in runs])
    with _figure(len(panels)) as (figure, axes):
        for axis, (title, keys) in zip(axes, panels, strict=True):
            key = next(key for key in keys if any(key in run for _, run in runs))
            for label, run in runs:
                if key in run:
                    line = run[key].dropna()
                    axis.plot(line.index, line.to_numpy(), label=label, linewidth=1.4, **style[label])
            axis.set_xlabel("epoch")
            axis.set_title(title + (" (mean over batches)" if key == "train/rho" else ""), loc="left")
            if key != "validation/accuracy":
                axis.set_yscale("log")
                _plain_log(axis.yaxis)
            else:
                axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _one_legend(axes)
        figure.savefig(path)
    return path


def gap_against_rho(results: list[dict[str, Any]], path: Path) -> Path | None:
    """Each test's gap to the plain test accuracy against rho, a point per run with its 95% interval (figure 2)."""
    gaps = sorted({
        (test, metric)
        for result in results
        for test, metrics in result.get("generalization", {}).items()
        for metric in metrics
        if metric.startswith("gap") or metric == "relative_change"
    })  # fmt: skip
    if not gaps:
        return None
    named = list(zip(labels(results), results, strict=True))
    style = _styles([label for label, _ in named])
    with _figure(len(gaps)) as (figure, axes):
        for axis, (test, metric) in zip(axes, gaps, strict=True):
            for i, (label, result) in enumerate(named):
                value = result.get("generalization", {}).get(test, {}).get(metric)
                if value is None or not result["rho"]["value"]:
                    continue
                y = value["value"]
                error = [[max(0.0, y - value["ci_low"])], [max(0.0, value["ci_high"] - y)]]
                marker = _MARKERS[list(style).index(label) % len(_MARKERS)]
                first = label not in [earlier for earlier, _ in named[:i]]
                axis.errorbar(
                    result["rho"]["value"], y, yerr=error, fmt=marker, color=style[label]["color"],
                    capsize=2, markersize=5, label=label if first else None,
                )  # fmt: skip
            axis.set_xscale("log")
            axis.margins(x=0.2)
            _plain_log(axis.xaxis)
            axis.set_xlabel("spectral radius, full training set")
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
            axis.set_title(f"{test}: {metric.replace('_', ' ')}", loc="left")
        _one_legend(axes)
        figure.savefig(path)
    return path


def _plain_log(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of every decade, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _styles(names: list[str]) -> dict[str, dict[str, Any]]:
    distinct = list(dict.fromkeys(names))
    pairs = zip(distinct, cycle(_COLOURS), cycle(_DASHES), strict=False)
    return {name: {"color": colour, "linestyle": dash} for name, colour, dash in pairs}


def _one_legend(axes: list[Axes]) -> None:
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if len(found) > 1:
        axes[0].figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, frameon=False)
