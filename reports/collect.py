"""``result.json`` files to one table: a row per run, a column per number. Everything else here starts from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

LABEL, SEED = "model", "seed"


def read_results(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The results of the folders that have one, each once, with ``folder`` added; order kept."""
    results = []
    for folder in dict.fromkeys(folders):
        path = folder / "result.json"
        if path.exists():
            results.append(json.loads(path.read_text()) | {"folder": str(folder)})
    return results


def labels(results: list[dict[str, Any]]) -> list[str]:
    """What tells the runs apart: choices that differ, then settings that differ among runs of the same choices."""
    choices = [result["choices"] for result in results]
    names = [key for key in choices[0] if len({str(c.get(key)) for c in choices}) > 1] if choices else []
    names = [name for name in names if name != "experiment"]
    flat = [_flatten(result["config"]) for result in results]
    texts = []
    for chosen, config in zip(choices, flat, strict=True):
        alike = [other for c, other in zip(choices, flat, strict=True) if all(c.get(n) == chosen.get(n) for n in names)]
        differing = [key for key in config if len({repr(other.get(key)) for other in alike}) > 1]
        parts = [str(chosen[name]) for name in names]
        parts += [f"{key.rpartition('.')[2]}={config[key]}" for key in differing]
        texts.append(", ".join(parts) or str(chosen.get("regularizer", "run")))
    return texts


def table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per run: label, seed, status and every number a reader compares; a missing one is NaN."""
    rows = []
    for label, result in zip(labels(results), results, strict=True):
        row: dict[str, Any] = {LABEL: label, SEED: result["seed"], "status": result["status"]}
        test = result.get("test", {})
        row["test accuracy"] = test.get("accuracy")
        row["test loss"] = test.get("loss")
        row["train loss"] = result.get("train", {}).get("loss")
        row["rho"] = result.get("rho", {}).get("value")
        for name, metrics in result.get("generalization", {}).items():
            for metric, value in metrics.items():
                row[f"{name} {metric}"] = value["value"]
        row["training seconds"] = result.get("train", {}).get("seconds")
        row["products"] = result.get("train", {}).get("products")
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.astype(dict.fromkeys(frame.columns[3:], float))


def curves(folder: Path) -> pd.DataFrame:
    """A run's ``metrics.jsonl``: a row per epoch, a column per ``split/name``."""
    lines = pd.read_json(folder / "metrics.jsonl", lines=True)
    lines["key"] = lines["split"] + "/" + lines["name"]
    return lines.pivot_table(index="epoch", columns="key", values="value")


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
