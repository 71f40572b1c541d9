"""Figure 3 of the spectral-radius paper: how far the mean AUC falls on chest X-rays of other hospitals.

A drop is the mean AUC over six findings there less that on held-out NIH images, so further below 0 is worse (test
``chest_transfer``).  CheXpert and MIMIC-CXR are not free to pass on: where no run has met them, the report says so and
has no picture.  The paper prints drops on both validation parts alone (its tables 6 and 7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spectral_run.reports.document import Document, FigureOut, TableOut, about
from spectral_run.reports.paper_drawing import (
    DOUBLE,
    PRINT,
    Drawn,
    Spread,
    bars,
    canvas,
    drawn,
    few_ticks,
    not_drawn,
    one,
    over_seeds,
    sentences,
)
from spectral_run.reports.paper_numbers import by_method
from spectral_run.reports.sweeps import Sweep

SOURCES: Final = {
    "chexpert_train": "CheXpert train",
    "chexpert_valid": "CheXpert valid",
    "mimic_train": "MIMIC train",
    "mimic_validate": "MIMIC validate",
    "mimic_test": "MIMIC test",
}
STATED: Final = {"chexpert_valid": "table6", "mimic_validate": "table7"}
_OPEN: Final[dict[str, Any]] = {
    "linestyle": "none",
    "marker": "d",
    "markersize": 6,
    "markerfacecolor": "none",
    "markeredgecolor": "black",
}


def figure3(sweeps: Mapping[str, Sweep]) -> Document:
    """Drop of the mean AUC on each part of CheXpert and MIMIC-CXR that the runs have met."""
    sweep = one(sweeps, "figure3")
    found = drawn(sweep)
    drops = {
        source: [over_seeds(m.results, "generalization", "chest_transfer", f"drop_{source}") for m in found]
        for source in SOURCES
    }
    met = {source: spreads for source, spreads in drops.items() if any(spread.n for spread in spreads)}
    rho = [over_seeds(m.results, "rho") for m in found]
    auc = [over_seeds(m.results, "test", key="auc") for m in found]
    absent = [title for source, title in SOURCES.items() if source not in met]
    title = "Figure 3: drop in mean AUC on other hospitals' chest X-rays"
    frame, shown = _table(found, rho, auc, met)
    text = about([sweep])
    if not met:
        line = (
            "There is no picture: CheXpert and MIMIC-CXR were not at hand, so no run has been asked about them "
            "(`generalization=chest_transfer`). The claim that models of low rho drop less could not be tried."
        )
        table = TableOut("figure3_numbers", sentences("What there is of the models.", not_drawn(sweep)), frame, shown)
        return Document("figure3", title, (line, *text), (table,), (sweep,))
    caption = sentences(
        "Mean AUC over six findings less that on held-out NIH images, in points; further left is worse. Open diamonds: "
        "the paper's, where its tables 6 and 7 have them.",
        f"Bars: {bars(found)}." if bars(found) else "",
        "ρ: on the full training set.",
        f"Not at hand: {', '.join(absent)}." if absent else "",
        not_drawn(sweep),
    )
    least = ", ".join(
        f"{SOURCES[source]} {max((s.mean, m.label) for s, m in zip(spreads, found, strict=True) if s.n)[1]}"
        for source, spreads in met.items()
    )
    alt = f"A panel per data set, a row with a point and error bar per model. Smallest drop: {least}."
    parts = (
        FigureOut("figure3", caption, _draw(found, rho, met), alt),
        TableOut("figure3_numbers", "The numbers of figure 3; in brackets the paper's drop.", frame, shown),
    )
    return Document("figure3", title, text, parts, (sweep,))


def stated(source: str, model: Drawn) -> float:
    """The paper's drop as a difference of AUCs; NaN where it prints none."""
    if source not in STATED:
        return math.nan
    table = by_method(STATED[source])
    return float(table["perf_drop"].to_dict()[model.method]) / 100 if model.method in table.index else math.nan


def _draw(found: Sequence[Drawn], rho: Sequence[Spread], met: Mapping[str, Sequence[Spread]]) -> Figure:
    with mpl.rc_context(PRINT | {"axes.grid.axis": "x"}):
        figure = canvas(DOUBLE, 26 + 9.0 * len(found))
        axes = list(figure.subplots(1, len(met), sharey=True, sharex=True, squeeze=False).flat)
        for axis, (source, spreads) in zip(axes, met.items(), strict=True):
            _rows(axis, source, found, spreads)
            axis.axvline(0.0, color="black", linewidth=0.8)
            axis.set_title(SOURCES[source])
            axis.set_xlabel("AUC, points")
            axis.tick_params(axis="y", length=0)
        labels = [f"{m.label}\nρ = {r.text(False)}" for m, r in zip(found, rho, strict=True)]
        axes[0].set_yticks(range(len(found)), labels)
        few_ticks(axes[0])
        axes[0].set_ylim(len(found) - 0.5, -0.5)
        signs = [
            Line2D([], [], color="black", marker="o", markersize=4.5, linestyle="none", label="ours"),
            Line2D([], [], label="paper", **_OPEN),
        ]
        figure.legend(handles=signs, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _rows(axis: Axes, source: str, found: Sequence[Drawn], spreads: Sequence[Spread]) -> None:
    for row, (model, spread) in enumerate(zip(found, spreads, strict=True)):
        if math.isfinite(value := stated(source, model)):
            axis.plot([100 * value], [row + 0.18], **_OPEN)
        if spread.n:
            reach = [[100 * (spread.mean - spread.low)], [100 * (spread.high - spread.mean)]]
            axis.errorbar([100 * spread.mean], [row], xerr=reach, capsize=2, markersize=4.5, elinewidth=1, **model.look)
        else:
            axis.text(0.5, row, "–", transform=axis.get_yaxis_transform(), ha="center", va="center", color="0.4")


def _table(
    found: Sequence[Drawn], rho: Sequence[Spread], auc: Sequence[Spread], met: Mapping[str, Sequence[Spread]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    frame, shown = [], []
    for i, model in enumerate(found):
        row: dict[str, Any] = {"model": model.label, "method": model.method, "runs": len(model.results)}
        row |= {"rho": rho[i].mean, "rho_sd": rho[i].sd, "auc": auc[i].mean, "auc_sd": auc[i].sd}
        cells = {
            "model": model.label,
            "runs": model.model.runs,
            "ρ": rho[i].text(False),
            "test AUC": auc[i].text(False),
        }
        for source, spreads in met.items():
            value, paper = spreads[i], stated(source, model)
            row |= {
                f"drop_{source}{end and '_'}{end}": getattr(value, end or "mean") for end in ("", "sd", "low", "high")
            }
            row[f"drop_{source}_paper"] = paper
            cells[SOURCES[source]] = value.text(True) + (f" ({100 * paper:.2f}%)" if math.isfinite(paper) else "")
        frame.append(row)
        shown.append(cells)
    return pd.DataFrame(frame), pd.DataFrame(shown)
