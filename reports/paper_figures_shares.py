"""Figure 5 of the spectral-radius paper: what the time of training with the penalty is spent on.

Shares of the phases that ``runner/clock.py`` books.  The paper has three quarters for power iteration, 15% for the
gradient of rho, 5 to 10% for results and statistics.  Its shares are of the whole run time; ours are of training
without evaluation, because that phase holds the final tests too, which belong to no algorithm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from spectral_run.reports.document import Document, FigureOut, TableOut, about
from spectral_run.reports.figures import COLOURS
from spectral_run.reports.paper_drawing import (
    DATA,
    DOUBLE,
    PRINT,
    SOLVERS,
    Drawn,
    canvas,
    data_of,
    drawn,
    not_drawn,
    sentences,
    solver_of,
    spread_of,
)
from spectral_run.reports.sweeps import Sweep

PHASES: Final[Mapping[str, tuple[str, str, str]]] = {  # name, colour, hatch
    "eigensolver": ("eigensolver", COLOURS[2], ""),
    "gradient of rho": ("gradient of ρ", COLOURS[1], "////"),
    "gradient": ("plain gradient", COLOURS[3], "...."),
    "other": ("rest", "#DDDDDD", ""),
}
PAPER: Final = {"eigensolver": 0.75, "gradient of rho": 0.15}  # "three-quarters", "about another 15%": section 5.4


def figure5(sweeps: Mapping[str, Sweep]) -> Document:
    """Shares of training in the eigensolver, the gradient of rho, the plain gradient and the rest."""
    rows = [row for sweep in sweeps.values() for model in drawn(sweep) for row in _shares(model, data_of(sweep))]
    frame = pd.DataFrame(rows).drop_duplicates(subset=["data", "model", "solver"]) if rows else pd.DataFrame()
    text, title = about(list(sweeps.values())), "Figure 5: what the training time is spent on"
    if frame.empty:
        line = "There is no picture: no finished run of these sweeps has a penalty that solved for an eigenvector."
        return Document("figure5", title, (line, *text), (), tuple(sweeps.values()))
    caption = sentences(
        "Shares of the time of training, evaluation apart, by phase; mean over seeds. First row and dashed lines: "
        "the paper's three quarters for power iteration and 15% for the gradient of ρ. Its rest is of the whole run "
        "time and holds 5 to 10% for results and statistics, which ours leaves out.",
        not_drawn(*sweeps.values()),
    )
    alt = "Stacked bars. " + "; ".join(
        f"{row['data']}, {row['model']}, {row['solver']}: {100 * row['eigensolver']:.0f}% eigensolver, "
        f"{100 * row['gradient of rho']:.0f}% gradient of ρ"
        for row in frame.to_dict("records")
    )
    parts = (
        FigureOut("figure5", caption, _draw5(frame), alt + "."),
        TableOut(
            "figure5_shares", "The shares of figure 5: mean ± standard deviation over seeds.", frame, _shown5(frame)
        ),
    )
    return Document("figure5", title, text, parts, tuple(sweeps.values()))


def _shares(model: Drawn, data: str) -> list[dict[str, Any]]:
    """A row for a model whose runs solved for an eigenvector; none for one without a penalty."""
    phases = [(result.get("train") or {}).get("seconds_by_phase") or {} for result in model.results]
    phases = [phase for phase in phases if phase.get("eigensolver", 0.0) > 0]
    if not phases:
        return []
    row: dict[str, Any] = {
        "data": DATA.get(data, data),
        "model": model.label.removeprefix(f"{model.method}, "),  # power, lanczos: the solver says it
        "solver": solver_of(model),
        "n": len(phases),
    }
    for name in PHASES:
        found = spread_of([phase.get(name, 0.0) / sum(phase.get(p, 0.0) for p in PHASES) for phase in phases])
        row |= {name: found.mean, f"{name} sd": found.sd}
    row["evaluation beside it"] = spread_of(
        [phase.get("evaluation", 0.0) / sum(phase.get(p, 0.0) for p in PHASES) for phase in phases]
    ).mean
    return [row]


def _draw5(frame: pd.DataFrame) -> Figure:
    rest = 1.0 - sum(PAPER.values())
    bars = [("Paper, power iteration", {**PAPER, "gradient": 0.0, "other": rest})]
    for row in frame.to_dict("records"):
        bars.append((f"{row['data']}, {row['solver']}\n{row['model']}", {name: row[name] for name in PHASES}))
    with mpl.rc_context(PRINT | {"axes.grid": False}):
        figure = canvas(DOUBLE, 22 + 8.0 * len(bars))
        axis = figure.subplots()
        for i, (_, shares) in enumerate(bars):
            left = 0.0
            for name, (_, colour, hatch) in PHASES.items():
                share = shares[name]
                axis.barh(i, share, left=left, height=0.62, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6)
                if share >= 0.045:
                    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
                    axis.text(
                        left + share / 2, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5, bbox=box
                    )
                left += share
        for edge in itertools.accumulate(PAPER.values()):
            axis.axvline(edge, color="black", linestyle="--", linewidth=0.9)
        axis.set_yticks(range(len(bars)), [label for label, _ in bars])
        axis.set_ylim(len(bars) - 0.5, -0.5)
        axis.set_xlim(0, 1)
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{100 * value:.0f}"))
        axis.set_xlabel("share of the time of training, %")
        signs = [Patch(facecolor=c, hatch=h, edgecolor="black", linewidth=0.6, label=n) for n, c, h in PHASES.values()]
        figure.legend(handles=signs, loc="outside lower center", ncols=len(signs), frameon=False)
    return figure


def _shown5(frame: pd.DataFrame) -> pd.DataFrame:
    def share(row: Mapping[Any, Any], name: str) -> str:
        sd = row[f"{name} sd"]
        return f"{100 * row[name]:.1f}" + (f" ± {100 * sd:.1f}" if math.isfinite(sd) else "") + "%"

    paper = {"data": "paper (both)", "model": "", "solver": SOLVERS["power"], "runs": ""}
    paper |= {PHASES[name][0]: f"{100 * PAPER[name]:.0f}%" if name in PAPER else "" for name in PHASES}
    rows = [
        {"data": row["data"], "model": row["model"], "solver": row["solver"], "runs": str(row["n"])}
        | {PHASES[name][0]: share(row, name) for name in PHASES}
        | {"evaluation, on top": f"{100 * row['evaluation beside it']:.0f}%"}
        for row in frame.to_dict("records")
    ]
    return pd.DataFrame([paper | {"evaluation, on top": "(5 to 10% of all)"}, *rows])
