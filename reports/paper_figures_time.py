"""Figure 4 of the spectral-radius paper: what training takes by each method.

Seconds of training, evaluation apart, relative to the mean of the unregularized runs on the same data.  The paper
prints no number of seconds; the text of its section 5.4 gives the order of six methods, which stands beside.
Wall time depends on the machine and on what else it does: runs side by side on one machine slow each other, so small
differences mean nothing.  Gradient evaluations and Hessian-vector products, in the table, do not depend on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from spectral_run.reports.collect import number
from spectral_run.reports.document import Document, FigureOut, TableOut, about
from spectral_run.reports.paper_drawing import (
    ABSENT,
    DATA,
    DOUBLE,
    PRINT,
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

# Section 5.4, fastest first; on USPS "LOBPCG only decreased the training time by 3%" against power iteration.
ORDER: Final[Mapping[str, tuple[str, ...]]] = {
    "covtype": ("unregularized", "asymmetric_valley", "lobpcg", "kfac", "entropy_sgd", "penalty"),
    "usps": ("unregularized", "asymmetric_valley", "entropy_sgd", "lobpcg", "penalty", "kfac"),
}
PENALTY: Final = {"covtype": (0.01, 0.0), "usps": (0.005, 0.0)}  # mu and K of the penalty that is set into the order


def figure4(sweeps: Mapping[str, Sweep]) -> Document:
    """Training time of each method relative to the unregularized model, on forest cover and USPS."""
    panels = {data: (sweep, drawn(sweep)) for sweep in sweeps.values() for data in [data_of(sweep)] if data in DATA}
    times = pd.DataFrame([row for data, (_, found) in panels.items() for row in _times(data, found)])
    lacking = [title for data, title in DATA.items() if data not in panels]
    solvers = sorted(
        {solver_of(m) for _, found in panels.values() for m in found if m.family == "penalty" and m.results}
    )
    caption = sentences(
        "Seconds of training, evaluation apart; 1 (dashed) is the mean of the unregularized runs. Marks are "
        "single runs, bars their means ± standard deviation. Right: our place and the paper's among its methods that "
        "are here, 1 is fastest; one model stands for a method.",
        f"The penalty's eigensolver: {', '.join(solvers)}." if solvers else "",
        *(_agreement(data, times) for data in panels),
        f"No sweep of {' and '.join(lacking)} is at hand." if lacking else "",
        not_drawn(*(sweep for sweep, _ in panels.values())),
    )
    text = about(list(sweeps.values()))
    title = "Figure 4: training time by method"
    drawable = not times.empty and times["relative"].notna().any()
    parts: list[TableOut | FigureOut] = []
    if drawable:
        alt = "Bars of relative training time. " + "; ".join(
            f"{DATA[str(data)]}: {', '.join(_relative(rows))}"
            for data, rows in times.groupby("data", sort=False)
        )  # fmt: skip
        parts.append(FigureOut("figure4", caption, _draw4(panels, times), alt + "."))
    else:
        text = ("There is no picture: no sweep has a finished unregularized run to relate the others to.", *text)
    if not times.empty:
        parts.append(TableOut("figure4_times", "What training took: means over the runs.", times, _shown4(times)))
    return Document("figure4", title, text, tuple(parts), tuple(sweeps.values()))


def _times(data: str, found: Sequence[Drawn]) -> list[dict[str, Any]]:
    """A row per model; ``place`` and ``paper_place`` among the methods of the paper's order that are there."""
    plain = spread_of(_seconds(next((model for model in found if model.family == "unregularized"), None)))
    rows: list[dict[str, Any]] = []
    for model in found:
        seconds = _seconds(model)
        own = spread_of([s / plain.mean for s in seconds] if plain.n else [])
        costs = {
            key: spread_of([number(result, "train", key) for result in model.results]).mean
            for key in ("epochs", "gradient_evaluations", "products")
        }
        rows.append(
            {"data": data, "model": model.label, "family": model.family, "n": len(seconds), "relative": own.mean,
             "relative_sd": own.sd, "seconds": spread_of(seconds).mean, "seconds_sd": spread_of(seconds).sd} | costs
        )  # fmt: skip
    chosen = {family: _representative(data, family, found) for family in ORDER[data]}
    known = {f: i for f, i in chosen.items() if i is not None and math.isfinite(rows[i]["seconds"])}
    ours = sorted(known, key=lambda family: float(rows[known[family]]["seconds"]))
    paper = [family for family in ORDER[data] if family in known]
    for row in rows:
        row |= {"place": math.nan, "paper_place": math.nan}
    for family, i in known.items():
        rows[i] |= {"place": ours.index(family) + 1, "paper_place": paper.index(family) + 1}
    return rows


def _relative(rows: pd.DataFrame) -> list[str]:
    return [f"{m} {r:.1f}" for m, r in zip(rows["model"], rows["relative"], strict=True) if math.isfinite(r)]


def _seconds(model: Drawn | None) -> list[float]:
    values = [number(result, "train", "seconds") for result in model.results] if model else []
    return [value for value in values if math.isfinite(value)]


def _representative(data: str, family: str, found: Sequence[Drawn]) -> int | None:
    """The first model of the family, of the penalties the one with the paper's recommended mu and K."""
    those = [i for i, model in enumerate(found) if model.family == family and model.results]
    best = [i for i in those if family == "penalty" and (found[i].mu, found[i].K) == PENALTY[data]]
    return next(iter(best or those), None)


def _agreement(data: str, times: pd.DataFrame) -> str:
    """How many pairs of methods come in the paper's order."""
    rows = times[(times["data"] == data) & times["place"].notna()]
    pairs = list(itertools.combinations(zip(rows["place"], rows["paper_place"], strict=True), 2))
    if not pairs:
        return ""
    same = sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs)
    return f"{DATA[data]}: {same} of {len(pairs)} pairs of methods come in the paper's order."


def _draw4(panels: Mapping[str, tuple[Sweep, Sequence[Drawn]]], times: pd.DataFrame) -> Figure:
    most = max(len(found) for _, found in panels.values())
    with mpl.rc_context(PRINT | {"axes.grid.axis": "x"}):
        figure = canvas(DOUBLE, 16 + 6.0 * most)
        axes = list(figure.subplots(1, len(panels), squeeze=False).flat)
        for axis, (data, (_, found)) in zip(axes, panels.items(), strict=True):
            _bars4(axis, found, times[times["data"] == data].to_dict("records"))
            axis.set_title(DATA[data], loc="left")
            axis.set_xlabel("training time, unregularized = 1")
    return figure


def _bars4(axis: Axes, found: Sequence[Drawn], rows: Sequence[Mapping[Any, Any]]) -> None:
    plain = next((row["seconds"] for row in rows if row["family"] == "unregularized"), math.nan)
    values = [s / plain for model in found for s in _seconds(model)]
    finite = [value for value in values if math.isfinite(value) and value > 0]
    low, high = (min([*finite, 1.0]) / 1.3, max([*finite, 1.0]) * 1.3)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    for i, (model, row) in enumerate(zip(found, rows, strict=True)):
        if not math.isfinite(row["relative"]):
            axis.text(low * 1.05, i, "–", va="center", color="0.4")
            continue
        axis.barh(i, row["relative"] - low, left=low, height=0.62, color=model.look["color"], alpha=0.35)
        if math.isfinite(row["relative_sd"]):
            axis.errorbar([row["relative"]], [i], xerr=[row["relative_sd"]], color="black", capsize=2, elinewidth=1.0)
        dots = [s / plain for s in _seconds(model)]
        axis.plot(dots, [i] * len(dots), linestyle="none", markersize=3, color="black", marker=model.look["marker"])
        if math.isfinite(row["place"]):
            text = f"{row['place']:.0f} · paper {row['paper_place']:.0f}"
            axis.text(1.02, i, text, transform=axis.get_yaxis_transform(), va="center", fontsize=7.5)
    axis.axvline(1.0, color="black", linestyle="--", linewidth=0.8)
    axis.set_yticks(range(len(found)), [model.label for model in found])
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    short = high < 200 * low
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if short else (1.0,), numticks=9))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _shown4(times: pd.DataFrame) -> pd.DataFrame:
    def whole(value: float) -> str:
        return f"{value:,.0f}" if math.isfinite(value) else ABSENT

    def spread(row: Mapping[Any, Any], name: str) -> str:
        if not math.isfinite(row[name]):
            return ABSENT
        sd = row[f"{name}_sd"]
        return f"{row[name]:.3g}" + (f" ± {sd:.2g}" if math.isfinite(sd) else "")

    return pd.DataFrame(
        {
            "data": DATA[str(row["data"])],
            "model": row["model"],
            "runs": str(row["n"]),
            "relative": spread(row, "relative"),
            "seconds": spread(row, "seconds"),
            "epochs": whole(row["epochs"]),
            "gradients": whole(row["gradient_evaluations"]),
            "products": whole(row["products"]),
            "place": whole(row["place"]) if math.isfinite(row["place"]) else "",
            "paper's": whole(row["paper_place"]) if math.isfinite(row["paper_place"]) else "",
        }
        for row in times.to_dict("records")
    )
