"""Figure 1 of the spectral-radius paper: accuracy of USPS networks on changed and on foreign images.

Points in a panel per data set, each with its own scale: in bars from 0 a difference of a point is
not to be seen.  The paper's numbers are those that its text states (``paper/figure1_usps_stated_in_text.csv``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from spectral_run.reports.beside import Line, differences
from spectral_run.reports.document import Document, FigureOut, TableOut, about
from spectral_run.reports.paper_columns import USPS, USPS_TESTS
from spectral_run.reports.paper_drawing import (
    DOUBLE,
    FAMILIES,
    PRINT,
    Drawn,
    Spread,
    bars,
    canvas,
    drawn,
    few_ticks,
    no_runs,
    not_drawn,
    one,
    over_seeds,
    sentences,
)
from spectral_run.reports.paper_numbers import numbers
from spectral_run.reports.paper_tables import PAIRED
from spectral_run.reports.sweeps import Sweep

TESTS: Final[Mapping[str, tuple[str, ...]]] = {"test": ("test",), **USPS_TESTS}
TITLES: Final = {"test": "Test", "at1": "AT1", "at2": "AT2", "mnist": "MNIST", "gan1": "GAN1", "gan2": "GAN2",
                 "const1": "Const1", "const2": "Const2"}  # fmt: skip
_FAR = 3.0  # quartile ranges below the lower quartile: Tukey's far out, named at the edge and not scaled to


def accuracy(model: Drawn, test: str) -> Spread:
    """Accuracy on one of ``TESTS`` over the model's seeds."""
    return over_seeds(model.results, *TESTS[test], key="accuracy" if test == "test" else "value")


def stated(model: Drawn, metric: str) -> float:
    """What the paper's text says of this model, as a share (rho as it is); NaN where it says nothing."""
    facts = numbers("figure1")
    if model.family == "penalty":
        rows = facts[(facts["mu"] == model.mu) & (facts["K"] == model.K) & (facts["model"] == "Power iteration")]
    else:
        rows = facts[(facts["model"] == FAMILIES[model.family][0]) & facts["mu"].isna()]
    found = rows.loc[rows["metric"] == metric, "value"]
    if found.empty:
        return math.nan
    return float(found.iloc[0]) / (1.0 if metric == "rho" else 100.0)


def figure1(sweeps: Mapping[str, Sweep]) -> Document:
    """Accuracy of the USPS models on the test set, AT1 and AT2, and on MNIST, GAN1, GAN2, Const1 and Const2."""
    sweep = one(sweeps, "figure1")
    found = drawn(sweep)
    title = "Figure 1: accuracy of models trained on USPS"
    if not any(model.results for model in found):
        return no_runs("figure1", title, [sweep])
    shown = {test: [accuracy(model, test) for model in found] for test in TESTS}
    rho = [over_seeds(model.results, "rho") for model in found]
    caption = sentences(
        "Accuracy of the USPS models, in %: on the test images and two augmentations of them (left), and on images of "
        "other origin (right). Filled: ours. Open diamonds and grey bands: what the paper's text states, bands where "
        "it gives a range over models.",
        f"Bars: {bars(found)}." if bars(found) else "",
        "ρ: on the full training set. Each panel has a scale of its own; a value far below the others is "
        "written at the left edge.",
        not_drawn(sweep),
    )
    best = [f"{TITLES[test]} {found[i].label}" for test, i in _best(shown).items()]
    alt = (
        f"Eight panels of points with error bars, a row per model ({'; '.join(model.label for model in found)}). "
        f"Highest mean: {', '.join(best) or 'none'}."
    )
    parts: tuple[TableOut | FigureOut, ...] = (
        FigureOut("figure1", caption, _draw1(found, rho, shown), alt),
        _table1(found, rho, shown),
        *_differences(found),
    )
    return Document("figure1", title, about([sweep]), parts, (sweep,))


def _differences(found: Sequence[Drawn]) -> list[TableOut]:
    lines = [Line(label=model.label, model=model.model) for model in found]
    reference = next((line for line, model in zip(lines, found, strict=True) if model.family == "unregularized"), None)
    if reference is None or len(lines) < 2:
        return []
    caption = f"Difference to the unregularized network in points, rho as it is: {PAIRED}. n/a: fewer than two pairs."
    return [differences("figure1_differences", caption, "model", lines, USPS, reference)]


def _best(shown: Mapping[str, Sequence[Spread]]) -> dict[str, int]:
    best = {}
    for test, spreads in shown.items():
        means = [spread.mean if spread.n else -math.inf for spread in spreads]
        if any(math.isfinite(mean) for mean in means):
            best[test] = int(np.argmax(means))
    return best


def _draw1(found: Sequence[Drawn], rho: Sequence[Spread], shown: Mapping[str, Sequence[Spread]]) -> Figure:
    facts = numbers("figure1").set_index("metric")["value"]
    penalized = [i for i, model in enumerate(found) if model.family in ("penalty", "lobpcg")]
    with mpl.rc_context(PRINT | {"axes.grid.axis": "x"}):
        figure = canvas(DOUBLE, 34 + 8.5 * len(found))
        grid = figure.subplots(1, len(TESTS) + 1, sharey=True, width_ratios=[*[1] * 3, 0.12, *[1] * 5])
        grid[3].remove()  # a gap between left and right
        axes = [*grid[:3], *grid[4:]]
        for axis, (test, spreads) in zip(axes, shown.items(), strict=True):
            if f"{test}_min" in facts.index:
                rows = list(range(len(found))) if test == "test" else penalized
                if rows:
                    ends = [facts[f"{test}_min"], facts[f"{test}_max"]]
                    axis.fill_betweenx([rows[0] - 0.45, rows[-1] + 0.45], *ends, color="0.88", linewidth=0, zorder=0)
            _rows1(axis, found, spreads, [stated(model, test) for model in found])
            axis.set_title(TITLES[test])
            axis.tick_params(axis="y", length=0)
        axes[0].set_yticks(
            range(len(found)), [f"{m.label}\nρ = {r.text(False)}" for m, r in zip(found, rho, strict=True)]
        )
        axes[0].set_ylim(len(found) - 0.5, -0.5)
        signs: list[Line2D | Patch] = [
            Line2D([], [], linestyle="none", markersize=4.5, label=name, color=colour, marker=marker)
            for family, (name, colour, marker) in FAMILIES.items()
            if any(model.family == family for model in found)
        ]
        signs.append(Line2D([], [], label="paper, stated", **_OPEN))
        signs.append(Patch(color="0.88", label="paper, range over models"))
        figure.legend(handles=signs, loc="outside lower center", ncols=5, frameon=False, handlelength=1.2)
    return figure


_OPEN: Final[dict[str, Any]] = {
    "linestyle": "none", "marker": "d", "markersize": 6, "markerfacecolor": "none", "markeredgecolor": "black",
}  # fmt: skip


def _rows1(axis: Axes, found: Sequence[Drawn], spreads: Sequence[Spread], paper: Sequence[float]) -> None:
    """A point per row, the paper's beside it, and the scale that shows all but what is far out."""
    means = np.array([100 * spread.mean for spread in spreads])
    there = means[np.isfinite(means)]
    low, high = np.percentile(there, (25, 75)) if len(there) else (0.0, 100.0)
    far = means < low - _FAR * max(high - low, 1.0)  # one point at least, where most models are alike
    for row, (model, spread, value) in enumerate(zip(found, spreads, paper, strict=True)):
        if math.isfinite(value):
            axis.plot([100 * value], [row + 0.27], **_OPEN)
        if not spread.n:
            axis.text(0.5, row, "–", transform=axis.get_yaxis_transform(), ha="center", va="center", color="0.4")
        elif far[row]:
            axis.text(0.02, row, f"◂ {means[row]:.1f}", transform=axis.get_yaxis_transform(), va="center", fontsize=7.5)
        else:
            reach = [[100 * (spread.mean - spread.low)], [100 * (spread.high - spread.mean)]]
            axis.errorbar([means[row]], [row], xerr=reach, capsize=2, markersize=4.5, elinewidth=1.0, **model.look)
    axis.margins(x=0.12)
    if len(there) or np.isfinite(paper).any():
        few_ticks(axis)
        axis.set_xlabel("%")
    else:
        axis.set_xticks([])


def _table1(found: Sequence[Drawn], rho: Sequence[Spread], shown: Mapping[str, Sequence[Spread]]) -> TableOut:
    frame, text = [], []
    for i, model in enumerate(found):
        row: dict[str, Any] = {"model": model.label, "method": model.method, "mu": model.mu, "K": model.K,
                               "runs": len(model.results), "rho": rho[i].mean, "rho_sd": rho[i].sd,
                               "rho_paper": stated(model, "rho")}  # fmt: skip
        cells = {"model": model.label, "runs": model.model.runs, "ρ": _beside(rho[i], row["rho_paper"], share=False)}
        for test, spreads in shown.items():
            paper = stated(model, test)
            row |= {test: spreads[i].mean, f"{test}_sd": spreads[i].sd, f"{test}_paper": paper}
            cells[TITLES[test]] = _beside(spreads[i], paper, share=True)
        frame.append(row)
        text.append(cells)
    facts = numbers("figure1")
    ranges = [
        f"{TITLES[test]} {low:.2f} to {high:.2f}% over {who}"
        for test, who in (("test", "all models"), ("at1", "the regularized models"), ("at2", "the regularized models"))
        for low, high in [
            [float(facts.loc[facts["metric"] == f"{test}_{end}", "value"].iloc[0]) for end in ("min", "max")]
        ]
    ]
    caption = (
        "The numbers of figure 1: mean ± standard deviation over seeds; in brackets what the paper's text states. "
        f"It has further {'; '.join(ranges)}."
    )
    return TableOut("figure1_numbers", caption, pd.DataFrame(frame), pd.DataFrame(text))


def _beside(ours: Spread, paper: float, *, share: bool) -> str:
    if not math.isfinite(paper):
        return ours.text(share)
    return f"{ours.text(share)} ({f'{100 * paper:.2f}%' if share else f'{paper:g}'})"
