"""Histograms of several sets over the same bins, for print and for the colour-blind: colour, marker and dash differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spectral_run.reports.collect import readable
from spectral_run.reports.figures import COLOURS, DPI, STYLE, percent

_DASHES: Sequence[Any] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def histogram_figure(table: pd.DataFrame, axis_title: str, filled: str) -> Figure:
    """A step line per ``set`` of the table (``low``, ``high``, ``share``), the area of ``filled`` in grey behind them.

    Rows that lack an edge are what lies outside all bins: the legend says how much that is.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        names = list(dict.fromkeys(table["set"]))
        handles: list[Any] = []
        styles = iter(zip(cycle(COLOURS), cycle(_DASHES), cycle(_MARKERS), strict=False))
        for name in sorted(names, key=lambda name: name == filled):
            rows = table[table["set"] == name]
            inside = rows.dropna(subset=["low", "high"])
            edges = [*inside["low"], inside["high"].iloc[-1]]
            text = readable(name).capitalize() if name == filled else readable(name).upper()
            outside = float(rows["share"].sum() - inside["share"].sum())
            if outside >= 5e-4:
                text += f" ({100 * outside:.1f}% outside)"
            if name == filled:
                handles.append(axes.stairs(inside["share"], edges, fill=True, color="0.82", zorder=0, label=text))
                continue
            colour, dash, marker = next(styles)
            axes.stairs(inside["share"], edges, color=colour, linestyle=dash, linewidth=1.3)
            sign: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.5}
            axes.plot((inside["low"] + inside["high"]) / 2, inside["share"], linestyle="none", **sign)
            handles.append(Line2D([], [], linestyle=dash, linewidth=1.3, label=text, **sign))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
        axes.set_xlabel(axis_title)
        axes.set_ylabel("share of the set's images")
        percent(axes)
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, handlelength=3.5)
    return figure
