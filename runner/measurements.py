"""What is asked of a trained network, carried out and written down: for a run at its end, or for a finished one."""

from __future__ import annotations

import copy
import io
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectral_run.datasets.base import Data, DataHome
from spectral_run.generalization.base import Comparison, TestResult, TrainedNetwork
from spectral_run.runner.evaluate import outputs, predict
from spectral_run.runner.files import write_whole
from spectral_run.runner.parts import Parts

log = logging.getLogger("spectral_run")


def unanswered(parts: Parts, result: Mapping[str, Any], folder: Path) -> list[str]:
    """Those of ``parts.tests`` that the result does not have, taken with the same settings."""
    return [name for name in parts.tests if not _answered(name, parts, result, folder)]


def _answered(name: str, parts: Parts, result: Mapping[str, Any], folder: Path) -> bool:
    earlier = (result.get("measured") or {}).get(name) or {}
    there = not isinstance(parts.tests[name], Comparison) or arrays_path(folder, name).is_file()
    return there and all(earlier.get(key) == value for key, value in _how(name, parts).items())


def _how(name: str, parts: Parts) -> dict[str, Any]:
    """All that decides a test's numbers besides the run itself."""
    settings = parts.settings
    how = {"config": settings.generalization[name], "curvature": vars(settings.curvature)}
    return copy.deepcopy(how) | {"device": str(parts.device), "backend": parts.backend.name}


def ask(name: str, parts: Parts, data: Data, home: DataHome, folder: Path, result: dict[str, Any]) -> float:
    """Take one of ``parts.tests`` and note in ``result["measured"]`` how and when; gives the seconds."""
    began = time.perf_counter()
    take(name, parts, data, home, folder, result)
    seconds = time.perf_counter() - began
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    result.setdefault("measured", {})[name] = _how(name, parts) | {"finished": finished, "seconds": seconds}
    return seconds


def take(name: str, parts: Parts, data: Data, home: DataHome, folder: Path, result: dict[str, Any]) -> None:
    """One of ``parts.tests``: metrics and details into ``result``, tables, figures and arrays into the folder."""
    path = folder / "last.pt"
    last = torch.load(path, map_location=parts.device, weights_only=True) if path.is_file() else None
    network = TrainedNetwork(
        objective=parts.objective,
        backend=parts.backend,
        predict=lambda inputs: predict(parts.model, inputs),
        outputs=lambda inputs: outputs(parts.model, inputs),
        batch_size=parts.settings.curvature.batch_size,
        training_batch_size=parts.settings.training.batch_size,
        last=last,
    )
    tested = parts.tests[name].measure(network, data, home)
    files = write(tested, folder, name)
    numbers, details = (result.setdefault(key, {}) for key in ("generalization", "generalization_details"))
    numbers[name] = {metric: asdict(value) for metric, value in tested.metrics.items()}
    details[name] = dict(tested.details)
    if files:
        details[name]["files"] = files
        log.info("%s: %s in %s", name, ", ".join(files), folder)


def write(tested: TestResult, folder: Path, test: str) -> list[str]:
    """The tables, figures and arrays, each whole; their names."""
    written = []
    for name, table in tested.tables.items():
        written.append(f"{test}_{name}.csv")
        write_whole(folder / written[-1], table.to_csv(index=False).encode())
    for name, figure in tested.figures.items():
        from spectral_run.reports.figures import save  # matplotlib, where there is something to draw

        for kind in ("png", "pdf"):
            written.append(f"{test}_{name}.{kind}")
            save(figure, folder / written[-1])
    if tested.arrays:
        written.append(arrays_path(folder, test).name)
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **tested.arrays)
        write_whole(arrays_path(folder, test), content.getvalue())
    return written


def arrays_path(folder: Path, test: str) -> Path:
    """Where a test's arrays lie, if it leaves any."""
    return folder / f"{test}.npz"
