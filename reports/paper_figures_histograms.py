"""Figures 6 and 7 of the spectral-radius paper: how far each set of images lies from the USPS test images.

Histograms of the test ``constructed``, which leaves them in its run's folder (``constructed_distances.csv``,
``constructed_cosines.csv``).  The images depend on no model: drawn from one run, and compared with the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from spectral_run.reports.collect import number
from spectral_run.reports.document import Document, FigureOut, TableOut, about
from spectral_run.reports.histogram_figures import histogram_figure
from spectral_run.reports.paper_drawing import ABSENT, drawn, one
from spectral_run.reports.sweeps import Sweep

MOMENTS: Final = ("mean", "sd", "skewness", "excess_kurtosis")


def figure6(sweeps: Mapping[str, Sweep]) -> Document:
    """Histograms of the Euclidean distance of each data set's images to the nearest USPS test image."""
    return _histogram(
        one(sweeps, "figure1"), "figure6", "distances", "const1", "distance to the nearest USPS test image (L2)",
        "Figure 6: Euclidean distance between data sets and USPS test data",
    )  # fmt: skip


def figure7(sweeps: Mapping[str, Sweep]) -> Document:
    """Histograms of the largest cosine similarity of each data set's images to a USPS test image."""
    return _histogram(
        one(sweeps, "figure1"), "figure7", "cosines", "const2", "largest cosine similarity to a USPS test image",
        "Figure 7: cosine similarity between data sets and USPS test data",
    )  # fmt: skip


def _histogram(sweep: Sweep, name: str, kind: str, filled: str, axis_title: str, title: str) -> Document:
    """Drawn from the first run that has the table; the sets depend on no model, and it is said whether that holds."""
    text = about([sweep])
    there = [
        (f"{model.label}, seed {seed}", model.model.results[seed], path)
        for model in drawn(sweep)
        for seed, cell in model.model.cells.items()
        if seed in model.model.results and cell.folder is not None
        if (path := Path(cell.folder) / f"constructed_{kind}.csv").is_file()
    ]
    if not there:
        line = f"No finished run of the sweep has constructed_{kind}.csv in its folder: there is nothing to draw."
        return Document(name, title, (line, *text), (), (sweep,))
    which, result, path = there[0]
    first = path.read_bytes()
    same = sum(other.read_bytes() == first for _, _, other in there)
    table = pd.read_csv(path)
    says = (
        f"From the run of {which}. The images depend on no model: {same} of {len(there)} finished runs have the same "
        "table to the byte."
    )
    moments = ((result.get("generalization_details") or {}).get("constructed") or {}).get(kind) or {}
    caption = (
        f"Share of each data set's images over the {axis_title}; grey: {filled.capitalize()}, built from the augmented "
        "sets with bins emptied. Outside: share of images beyond the bins that are drawn."
    )
    alt = "Step lines, one per data set. " + "; ".join(
        f"{readable} peaks at {rows['low'][peak]:g} to {rows['high'][peak]:g}"
        for readable, rows, peak in _peaks(table)
    )  # fmt: skip
    figure = histogram_figure(table, axis_title, filled)
    parts = (FigureOut(name, caption, figure, alt + "."), _moments(name, kind, table, moments))
    return Document(name, title, (says, *text), parts, (sweep,))


def _peaks(table: pd.DataFrame) -> list[tuple[str, dict[str, list[float]], int]]:
    found = []
    for name, rows in table.dropna(subset=["low", "high"]).groupby("set", sort=False):
        lists = {key: rows[key].tolist() for key in ("low", "high", "share")}
        found.append((str(name).upper(), lists, int(np.argmax(lists["share"]))))
    return found


def _moments(name: str, kind: str, table: pd.DataFrame, moments: Mapping[str, Any]) -> TableOut:
    """The shape of each histogram in numbers: a bell curve has skewness and excess kurtosis 0."""
    frame = []
    for label, rows in table.groupby("set", sort=False):
        inside = rows.dropna(subset=["low", "high"])
        about_set = moments.get(str(label)) or {}
        frame.append({
            "set": label,
            "images": int(rows["images"].sum()),
            "outside": float(rows["share"].sum() - inside["share"].sum()),
            "empty_bins": int((inside["images"] == 0).sum()),
            **{key: number(about_set, key) for key in MOMENTS},
        })  # fmt: skip
    numbers_ = pd.DataFrame(frame)
    shown = pd.DataFrame({
        "data set": [str(label).upper() for label in numbers_["set"]],
        "images": [f"{n:,}" for n in numbers_["images"]],
        "outside the bins": [f"{100 * max(0.0, share):.1f}%" for share in numbers_["outside"]],
        "empty bins": [str(n) for n in numbers_["empty_bins"]],
        **{
            title: [f"{value:.3g}" if math.isfinite(value) else ABSENT for value in numbers_[key]]
            for key, title in {key: key.replace("_", " ") for key in MOMENTS}.items()
        },
    })  # fmt: skip
    caption = (
        f"The {kind} of {name} in numbers, of all images; a bell curve has skewness and excess kurtosis 0. Const1 and "
        "Const2 have five bins emptied."
    )
    return TableOut(f"{name}_numbers", caption, numbers_, shown)
