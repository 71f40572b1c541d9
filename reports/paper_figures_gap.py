"""Figure 2 of the spectral-radius paper: the generalization gap of 70 USPS models against their spectral radius.

The gap is augmented accuracy / test accuracy - 1, so a gap that grows with rho is a negative correlation.  The paper
draws it over rho with a dotted linear trend line and prints no correlation; here are Pearson's, Spearman's, and the
same over log rho.
A model that came to give one class to all images has no gap and hardly any rho: a point at the claim's end of the
picture that says nothing for it.  Models with less than half of the best test accuracy, or with gaps of exactly
0, are drawn as crosses and left out of trend and correlation; the table has the correlations with them too.  Models
that are alike to the bit, where a penalty never acts, count once.
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
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from scipy import stats

from spectral_run.reports.collect import number
from spectral_run.reports.correlation import LEAST_BOOTSTRAP, Correlation, pearson, spearman
from spectral_run.reports.document import Document, FigureOut, TableOut, about
from spectral_run.reports.figures import percent
from spectral_run.reports.paper_drawing import ABSENT, DOUBLE, PRINT, canvas, drawn, no_runs, not_drawn, one, sentences
from spectral_run.reports.sweeps import Sweep

LEVELS: Final = {"gap_at1": "AT1", "gap_at2": "AT2"}
MODELS: Final = 70  # of the paper's figure
_NO_GAP = 1e-12  # of accuracies that are equal but for rounding
_MARKERS = ("o", "s", "^", "D", "v", "P", "*")
_CROSS: Final[dict[str, Any]] = {"marker": "x", "color": "0.45", "linestyle": "none", "markersize": 4}


def points(sweep: Sweep) -> pd.DataFrame:
    """A row per finished run: mu, K, seed, rho, whether it converged, test accuracy, gaps, ``trained``, ``repeated``.

    ``trained``: at least half of the sweep's best test accuracy, and not all gaps 0 (one class for all images).
    ``repeated``: all its numbers are an earlier run's to the last bit.
    """
    rows = [
        {
            "model": model.label,
            "mu": model.mu,
            "K": model.K,
            "seed": seed,
            "rho": number(result, "rho", "value"),
            "rho_converged": bool((result.get("rho") or {}).get("converged", False)),
            "test": number(result, "test", "accuracy"),
            **{level: number(result, "generalization", "augmentation", level, "value") for level in LEVELS},
        }
        for model in drawn(sweep)
        for seed, result in model.model.results.items()
    ]
    columns = ["model", "mu", "K", "seed", "rho", "rho_converged", "test", *LEVELS]
    frame = pd.DataFrame(rows, columns=columns)
    one_class = (frame[list(LEVELS)].abs() < _NO_GAP).all(axis=1)
    trained = (frame["test"] >= frame["test"].max() / 2) & ~one_class
    return frame.assign(trained=trained, repeated=frame.duplicated(subset=["rho", "test", *LEVELS]))


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of ``points``: for each level and set of models the correlations and the trend line's numbers.

    NaN where there is none. Spearman's is the same over rho and over log rho. ``slope`` and ``intercept`` are of gap
    over rho or over log10 rho.
    """
    rows = []
    for level in LEVELS:
        whole = frame[np.isfinite(frame["rho"]) & np.isfinite(frame[level]) & ~frame["repeated"]]
        sets = {"trained": whole[whole["trained"]]}
        if len(sets["trained"]) < len(whole):
            sets["all"] = whole
        for name, part in sets.items():
            positive = part[part["rho"] > 0]
            ranks = spearman(part["rho"].tolist(), part[level].tolist(), f"figure2/{level}/{name}")
            for scale, some, x in (
                ("rho", part, part["rho"]),
                ("log10 rho", positive, np.log10(positive["rho"])),
            ):
                r = pearson(x.tolist(), some[level].tolist())
                line = stats.linregress(x, some[level]) if r else None
                rows.append(
                    {"gap": LEVELS[level], "models": name, "over": scale, "n": len(some)}
                    | _ends("pearson", r)
                    | _ends("spearman", ranks)
                    | {"slope": float(line.slope) if line else math.nan,
                       "intercept": float(line.intercept) if line else math.nan}
                )  # fmt: skip
    return pd.DataFrame(rows)


def figure2(sweeps: Mapping[str, Sweep]) -> Document:
    """Gaps to AT1 and AT2 against rho and log rho, with trend line and correlations."""
    sweep = one(sweeps, "figure2")
    frame, found = points(sweep), drawn(sweep)
    title = "Figure 2: generalization gap against spectral radius"
    if frame.empty:
        return no_runs("figure2", title, [sweep])
    table = correlations(frame)
    out, again = int((~frame["trained"]).sum()), int(frame["repeated"].sum())
    unsure = int((~frame["rho_converged"]).sum())
    main = table[(table["models"] == "trained") & (table["over"] == "rho")]
    notes = sentences(
        f"{len(frame)} finished runs of {len(found)} models; the paper has {MODELS} models.",
        f"Crosses at the upper edge: {out} that did not train (below half of the best test accuracy, or one class for "
        "all images), left out of the correlations."
        if out
        else "",
        f"{again} are alike to the bit to an earlier one (a penalty that never acts) and count once." if again else "",
        f"ρ of {unsure} had not converged." if unsure else "",
        not_drawn(sweep),
    )
    caption = sentences(
        "Gap (augmented accuracy / test accuracy − 1) against the spectral radius ρ on the full training set. Top: "
        "over ρ, as in the paper, with its dotted linear trend; bottom: the same over log ρ, trend linear in log ρ. r: "
        "Pearson's correlation; in brackets 95% intervals. A larger gap is further below 0, so the paper's claim is a "
        "negative correlation.",
        notes,
    )
    alt = "Four scatter plots of gap against ρ with falling or rising trend lines. " + "; ".join(
        f"{row['gap']}: Pearson {_signed(row['pearson'])}, Spearman {_signed(row['spearman'])}, n = {row['n']}"
        for row in main.to_dict("records")
    )  # fmt: skip
    explained = (
        f"Pearson's interval is Fisher's z, Spearman's a BCa bootstrap over models (from {LEAST_BOOTSTRAP} on). The "
        "models are a grid over mu and K that share seed and data, not independent draws: the intervals say how far "
        "the numbers hang on single models, and are narrower than those that the verdicts take."
    )
    parts: tuple[TableOut | FigureOut, ...] = (
        FigureOut("figure2", caption, _draw(frame, table), alt + "."),
        TableOut("figure2_correlations", "Correlation of gap and ρ: value [95% interval].", table, _shown(table)),
        TableOut("figure2_models", "The models of figure 2.", frame, _shown_points(frame)),
    )
    text = (explained, *about([sweep]))
    return Document("figure2", title, text, parts, (sweep,))


def _ends(name: str, found: Correlation | None) -> dict[str, float]:
    values = (found.value, found.ci_low, found.ci_high) if found else (math.nan,) * 3
    return dict(zip((name, f"{name}_ci_low", f"{name}_ci_high"), values, strict=True))


def _draw(frame: pd.DataFrame, table: pd.DataFrame) -> Figure:
    trained, out = frame[frame["trained"]], frame[~frame["trained"]]
    values = sorted(k for k in trained["K"].unique() if math.isfinite(k))
    several = 1 < len(values) <= len(_MARKERS)
    colours = mpl.colormaps["cividis"](np.linspace(0.0, 0.9, max(1, len(values))))
    looks = {K: {"marker": _MARKERS[i], "color": colours[i]} for i, K in enumerate(values)} if several else {}
    with mpl.rc_context(PRINT):
        figure = canvas(DOUBLE, 128)
        grid = figure.subplots(2, 2)
        for row, over in enumerate(("rho", "log10 rho")):
            for axis, level in zip(grid[row], LEVELS, strict=True):
                for _, run in trained.iterrows():
                    look = looks.get(float(run["K"]), {"marker": "o", "color": "black"})
                    axis.plot([run["rho"]], [run[level]], linestyle="none", markersize=3.5, alpha=0.85, **look)
                numbers = table[
                    (table["gap"] == LEVELS[level]) & (table["models"] == "trained") & (table["over"] == over)
                ]
                _trend(axis, trained[np.isfinite(trained[level])]["rho"].to_numpy(float), numbers.iloc[0], over)
                if len(out):  # their gap is 0, far above
                    top = axis.get_ylim()[1]
                    axis.set_ylim(axis.get_ylim()[0], top)
                    axis.plot(out["rho"], [top] * len(out), clip_on=False, **_CROSS)
                axis.set_title(f"{LEVELS[level]}: {_title(numbers.iloc[0])}", loc="left")
                axis.set_xlabel("spectral radius ρ" + (", logarithmic" if over != "rho" else ""))
                percent(axis)
        for axis in grid[:, 0]:
            axis.set_ylabel("generalization gap")
        handles = [Line2D([], [], linestyle="none", markersize=4, label=f"{K:g}", **look) for K, look in looks.items()]
        if len(out):
            handles.append(Line2D([], [], label="did not train (gap 0)", **_CROSS))
        handles.append(Line2D([], [], linestyle=":", color="black", label="trend"))
        title = "K" if several else None
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, title=title)
    return figure


def _trend(axis: Axes, rho: np.ndarray[Any, np.dtype[np.float64]], numbers: Any, over: str) -> None:
    rho = rho[np.isfinite(rho)]
    if over != "rho" and len(rho) and (rho > 0).any():
        rho = rho[rho > 0]
        axis.set_xscale("log")
        decades = math.log10(rho.max() / rho.min())
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,), numticks=9))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    if len(rho) and math.isfinite(numbers["slope"]):
        ends = np.array([rho.min(), rho.max()])
        x = ends if over == "rho" else np.log10(ends)
        axis.plot(ends, numbers["intercept"] + numbers["slope"] * x, linestyle=":", color="black", linewidth=1.4)


def _title(row: Any) -> str:
    if not math.isfinite(row["pearson"]):
        return f"no correlation, n = {row['n']}"
    lines = f"r {_cell(row, 'pearson')}"
    if row["over"] == "rho":
        lines += f"\nSpearman {_cell(row, 'spearman')}, n = {row['n']}"
    return lines


def _cell(row: Any, name: str) -> str:
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_ci_low", "_ci_high"))
    if not math.isfinite(value):
        return ABSENT
    return _signed(value) + (f" [{_signed(low)}, {_signed(high)}]" if math.isfinite(low) else "")


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else ABSENT


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {
            "gap": row["gap"],
            "models": f"{row['n']}" + (", with those that did not train" if row["models"] == "all" else ""),
            "over": {"rho": "ρ (the paper's)", "log10 rho": "log ρ"}[str(row["over"])],
            "Pearson": _cell(row, "pearson"),
            "Spearman": _cell(row, "spearman"),
            "trend": _slope(row),
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["gap", "models", "over", "Pearson", "Spearman", "trend"])


def _slope(row: Mapping[Any, Any]) -> str:
    if not math.isfinite(row["slope"]):
        return ABSENT
    unit = "unit of ρ" if row["over"] == "rho" else "tenfold ρ"
    return f"{100 * row['slope']:+.2g} points per {unit}".replace("-", "−")


def _shown_points(frame: pd.DataFrame) -> pd.DataFrame:
    def shares(values: Sequence[float]) -> list[str]:
        return [f"{100 * value:.2f}%" if math.isfinite(value) else ABSENT for value in values]

    unsure = ["" if sure else " (not converged)" for sure in frame["rho_converged"]]
    return pd.DataFrame({
        "model": frame["model"],
        "seed": frame["seed"],
        "ρ": [f"{rho:.3g}{note}" for rho, note in zip(frame["rho"], unsure, strict=True)],
        "test": shares(frame["test"].tolist()),
        **{f"gap {title}": shares(frame[level].tolist()) for level, title in LEVELS.items()},
        "in the correlation": [_counted(row) for row in frame.to_dict("records")],
    })  # fmt: skip


def _counted(row: Mapping[Any, Any]) -> str:
    if not row["trained"]:
        return "no: did not train"
    if not all(math.isfinite(row[name]) for name in ("rho", *LEVELS)):
        return "no: a number is missing"
    return "no: repeated" if row["repeated"] else "yes"
