"""Runs to a table a person reads: mean over seeds, spread and n; missing cells are named, never guessed."""

from __future__ import annotations

import pandas as pd
from rich.console import Console
from rich.table import Table

from spectral_run.reports.collect import LABEL, SEED

_PERCENT = ("accuracy", "at1", "at2", "gap", "relative_change")


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per model and a column per number: text ``mean ± sd`` over seeds, in the frame's order."""
    groups = frame.groupby(LABEL, sort=False)
    numbers = [name for name in frame.columns if name not in (LABEL, SEED, "status")]
    rows = []
    for label, group in groups:
        done = group[group["status"] == "done"]
        row = {LABEL: label, "runs": f"{len(done)}" if len(done) == len(group) else f"{len(done)} of {len(group)}"}
        row |= {name: _cell(name, done[name].dropna()) for name in numbers}
        rows.append(row)
    return pd.DataFrame(rows).set_index(LABEL)


def print_summary(text: pd.DataFrame, title: str, console: Console) -> None:
    """Models side by side where there are few, one below the other where there are many."""
    shown = text.T if len(text) <= 4 else text
    grid = Table(title=title, title_justify="left")
    grid.add_column("" if len(text) <= 4 else LABEL)
    for column in shown.columns:
        grid.add_column(str(column), justify="right", overflow="fold")
    for name, row in shown.iterrows():
        grid.add_row(str(name), *row)
    console.print(grid)


def _cell(name: str, values: pd.Series[float]) -> str:
    if values.empty:
        return "-"
    scale, unit = (100.0, "%") if _is_share(name) else (1.0, "")
    mean, spread = scale * float(values.mean()), scale * float(values.std()) if len(values) > 1 else None
    if name == "products":
        return f"{mean:,.0f}"
    digits = f"{mean:.2f}" if unit else f"{mean:.4g}"
    return f"{digits}{unit}" if spread is None else f"{digits} ± {spread:.2g}{unit}"


def _is_share(name: str) -> bool:
    metric = name.rpartition(" ")[2]
    return any(metric.startswith(share) or metric.endswith(share) for share in _PERCENT)
