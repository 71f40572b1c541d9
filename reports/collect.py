"""``result.json`` files to one table: a row per run, a column per number. Everything else here starts from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from spectral_run.reports.labels import labels

LABEL, SEED, STATUS = "model", "seed", "status"
ABOUT = (LABEL, SEED, STATUS, "folder", "config_hash", "data_sha256")
"""The columns that say what a run is; the others are numbers."""
COSTS = {
    "training seconds": "seconds",
    "gradient evaluations": "gradient_evaluations",
    "products": "products",
}
"""What training took, and its name in ``result.json``."""
LOW, HIGH = " ci_low", " ci_high"
"""What is added to a number's name for the ends of its 95% interval."""


def read_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The results of the folders that have one, each once, with ``folder`` added; order kept."""
    results = []
    for folder in dict.fromkeys(folders):
        try:
            result = json.loads((folder / "result.json").read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            continue  # not finished, or no result of ours; ``summarize`` names the folder
        if isinstance(result, dict):
            results.append(result | {"folder": str(folder)})
    return results


def number(result: Mapping[str, Any], *path: str) -> float:
    """The number at a path of ``result.json``; NaN where there is none, or null."""
    value: Any = result
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per run: what it is, its status, and every number a reader compares; a missing one is NaN."""
    areas = any("auc" in (result.get("test") or {}) for result in results)
    rows = []
    for label, result in zip(labels(results), results, strict=True):
        data = result.get("data") or {}
        row: dict[str, Any] = {
            LABEL: label,
            SEED: result.get("seed"),
            STATUS: result.get("status", "unknown"),
            "folder": result.get("folder"),
            "config_hash": result.get("config_hash"),
            "data_sha256": data.get("sha256"),
            **_score(result, "accuracy", "test accuracy"),
            **(_score(result, "auc", "test AUC") if areas else {}),
            **(_frequent(result) if areas else {}),
            "test loss": number(result, "test", "loss"),
            "train loss": number(result, "train", "loss"),
            "rho": number(result, "rho", "value"),
            "rho converged": _truth((result.get("rho") or {}).get("converged")),
        }
        for test, metrics in (result.get("generalization") or {}).items():
            for metric in metrics:
                if metric == "test":  # the plain test accuracy again
                    continue
                name = readable(f"{test} {metric}")
                row[name] = number(metrics, metric, "value")
                row[f"{name}{LOW}"] = number(metrics, metric, "ci_low")
                row[f"{name}{HIGH}"] = number(metrics, metric, "ci_high")
        for name, key in COSTS.items():
            row[name] = number(result, "train", key)
        rows.append(row)
    frame = pd.DataFrame(rows)
    # A run with more tests than the first has its columns before these.
    return frame[[name for name in frame.columns if name not in COSTS] + [name for name in COSTS if name in frame]]


def readable(name: str) -> str:
    """A name of a test or metric, for people."""
    return name.replace("_", " ")


def curves(folder: Path) -> pd.DataFrame:
    """A run's ``metrics.jsonl``: a row per epoch, a column per ``split/name``; empty where nothing was recorded."""
    try:
        text = (folder / "metrics.jsonl").read_text()
    except FileNotFoundError:
        text = ""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # a killed run's last line
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["value"] is not None:
            values.setdefault(f"{row['split']}/{row['name']}", {})[row["epoch"]] = float(row["value"])
    frame = pd.DataFrame(values, dtype=float).sort_index()
    frame.index.name = "epoch"
    return frame


def _score(result: Mapping[str, Any], key: str, name: str) -> dict[str, float]:
    """The test split's score, and its interval where it is that score's."""
    score = number(result, "test", key)
    low, high = (number(result, "test", end) if math.isfinite(score) else math.nan for end in ("ci_low", "ci_high"))
    return {name: score, f"{name}{LOW}": low, f"{name}{HIGH}": high}


def _frequent(result: Mapping[str, Any]) -> dict[str, float]:
    """Mean area over the findings that are not rare."""
    ends = (("", "value"), (LOW, "ci_low"), (HIGH, "ci_high"))
    return {f"test AUC, frequent{end}": number(result, "test", "auc_frequent", key) for end, key in ends}


def _truth(value: Any) -> float:
    return float(value) if isinstance(value, bool) else math.nan
