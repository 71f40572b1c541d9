"""Results made by hand: the numbers that a table or figure must show are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Result = dict[str, Any]


def metric(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "ci_low": low, "ci_high": high, "n": 100}


def result(accuracy: float | None = 0.9, *, seed: int = 0, regularizer: str = "none", **more: Any) -> Result:
    """A finished run on digits with one generalization test; ``more`` replaces top-level entries."""
    return {
        "schema": 1,
        "status": "done",
        "seed": seed,
        "config_hash": "ab" * 32,
        "choices": {"experiment": "x", "dataset": "digits", "tracker": "none", "regularizer": regularizer},
        "config": {"optimizer": {"lr": 0.001}, "training": {"epochs": 2}},
        "data": {"name": "digits", "sha256": "cd" * 32},
        "test": {"loss": 0.25, "accuracy": accuracy, "ci_low": 0.85, "ci_high": 0.94, "n": 100},
        "rho": {"value": 8.0, "converged": True},
        "generalization": {
            "augmentation": {
                "test": metric(accuracy, 0.85, 0.94),
                "mild": metric(0.5, 0.45, 0.55),
                "gap_mild": metric(-0.4, -0.45, -0.35),
            }
        },
        "train": {"loss": 0.125, "seconds": 1.5, "gradient_evaluations": 40, "products": 1200},
        "folder": "nowhere",
    } | more


def failed(status: str = "failed", *, seed: int = 0, regularizer: str = "none") -> Result:
    """What ``result.json`` holds of a run that ended early."""
    whole = result(seed=seed, regularizer=regularizer)
    kept = {key: whole[key] for key in ("schema", "seed", "config_hash", "choices", "config", "folder")}
    return kept | {"status": status, "error": f"it {status}\nfor a reason"}


def lines(epochs: int, loss: float = 1.0, **more: list[float | None]) -> str:
    """``metrics.jsonl`` with a training loss of ``loss / epoch`` and, by name, further values of each epoch."""
    rows = []
    for epoch in range(1, epochs + 1):
        named = {"train/loss": loss / epoch} | {name.replace("__", "/"): v[epoch - 1] for name, v in more.items()}
        for key, value in named.items():
            split, _, name = key.partition("/")
            rows.append({"step": epoch, "epoch": epoch, "split": split, "name": name, "value": value, "products": 0})
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Puts a result, and its record by epoch, into a folder of its own."""
    count = iter(range(1000))

    def put(content: Result, record: str | None = "") -> Path:
        folder = tmp_path / "runs" / f"{next(count):03d}"
        folder.mkdir(parents=True)
        content = {key: value for key, value in content.items() if key != "folder"}
        (folder / "result.json").write_text(json.dumps(content))
        if record is not None:
            (folder / "metrics.jsonl").write_text(record)
        return folder

    return put


@pytest.fixture
def make() -> SimpleNamespace:
    """The functions above; test modules can't import them from here."""
    return SimpleNamespace(result=result, failed=failed, metric=metric, lines=lines)
