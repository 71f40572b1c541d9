"""What a ``Comparison`` makes of measured runs: ``<common parent>/comparisons/<test>-<8 digits>/comparison.json``.

The digits are of a hash over the runs' configurations and seeds and the test's settings, so the same question lands in
the same place and is answered once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from spectral_run.datasets.base import DataHome
from spectral_run.generalization.base import Comparison, MeasuredRun
from spectral_run.reports.collect import read_results
from spectral_run.reports.labels import labels
from spectral_run.runner.files import write_json
from spectral_run.runner.measurements import arrays_path, write

log = logging.getLogger("spectral_run")

COMPARISON_SCHEMA = 1
_SHOWN = 12  # metrics at most that the terminal gets


def compare(
    name: str, test: Comparison, folders: Sequence[Path], settings: Mapping[str, Any], home: DataHome, *, rerun: bool
) -> Path:
    """Compare two runs or more, which ``test`` has measured; the comparison's folder. Skips what was compared before.

    Raises ``ValueError`` where the runs do not compare or arrays are missing.
    """
    runs = measured_runs(name, folders)
    folder = place(name, [run.result for run in runs], folders, settings)
    about: dict[str, Any] = {
        "schema": COMPARISON_SCHEMA,
        "test": name,
        "settings": dict(settings),
        "runs": [
            {
                "label": run.label,
                "folder": os.path.relpath(run.folder, folder),
                "config_hash": run.result.get("config_hash"),
                "seed": run.result.get("seed"),
                "arrays_sha256": hashlib.sha256(arrays_path(run.folder, name).read_bytes()).hexdigest(),
            }
            for run in runs
        ],
    }
    earlier = _stored(folder)
    if not rerun and all(earlier.get(key) == value for key, value in json.loads(json.dumps(about)).items()):
        log.info("%s: compared before, %s (rerun=true repeats it): %s", name, earlier.get("finished"), folder)
        return folder
    compared = test.compare(runs, home)
    folder.mkdir(parents=True, exist_ok=True)
    files = write(compared, folder, name)
    metrics = {metric: asdict(value) for metric, value in compared.metrics.items()}
    details = dict(compared.details) | ({"files": files} if files else {})
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "comparison.json", about | {"metrics": metrics, "details": details, "finished": finished})
    log.info("%s: %d runs compared in %s%s", name, len(runs), folder, f": {', '.join(files)}" if files else "")
    for metric, value in list(compared.metrics.items())[:_SHOWN]:
        log.info("  %s %.4g [%.4g, %.4g]", metric, value.value, value.ci_low, value.ci_high)
    if len(compared.metrics) > _SHOWN:
        log.info("  and %d more in comparison.json", len(compared.metrics) - _SHOWN)
    return folder


def measured_runs(name: str, folders: Sequence[Path]) -> list[MeasuredRun]:
    """The runs with their arrays; labels tell them apart, by the seed where nothing else does."""
    results = read_results(folders)
    texts = labels(results)
    for number in ("seed", "folder"):
        repeated = {text for text, count in Counter(texts).items() if count > 1}
        texts = [
            f"{text}, {number} {result[number]}" if text in repeated else text
            for text, result in zip(texts, results, strict=True)
        ]
    return [
        MeasuredRun(
            label=text, folder=Path(result["folder"]), result=result, arrays=_arrays(Path(result["folder"]), name)
        )
        for text, result in zip(texts, results, strict=True)
    ]


def place(
    name: str, results: Sequence[Mapping[str, Any]], folders: Sequence[Path], settings: Mapping[str, Any]
) -> Path:
    """``comparisons/<name>-<8 digits>`` below what the folders have in common."""
    runs = sorted([str(result.get("config_hash")), result.get("seed")] for result in results)
    text = json.dumps([name, runs, settings], sort_keys=True)
    parent = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
    if parent.is_relative_to(Path.cwd()):
        parent = parent.relative_to(Path.cwd())
    return parent / "comparisons" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _arrays(folder: Path, name: str) -> dict[str, Any]:
    path = arrays_path(folder, name)
    try:
        # np.load would leave a file that it opened itself open when that is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return {key: held[key] for key in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be read; rerun=true measures again.") from error


def _stored(folder: Path) -> dict[str, Any]:
    try:
        stored = json.loads((folder / "comparison.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return stored if isinstance(stored, dict) else {}
