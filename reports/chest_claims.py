"""The paper's claims on chest X-rays: section 5.2 (figure 3) and appendix E (tables 6 and 7)."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from spectral_run.reports.collect import number
from spectral_run.reports.evidence import Evidence, over_pairs, trend
from spectral_run.reports.findings import Findings, by_method, findings

if TYPE_CHECKING:
    from spectral_run.reports.sweeps import Sweep

SOURCES: Final = ("chexpert_valid", "chexpert_train", "mimic_validate", "mimic_train")
_PAIR: Final = "jaccard: "


def transfer_drop(sweep: Sweep) -> Findings:
    """Spearman's correlation over the methods of rho and the drop in mean AUC, seed by seed."""
    tests: list[Evidence | None] = []
    missing, remarks = [], []
    there = by_method(sweep)
    seeds = sorted({seed for model in there.values() for seed in model.cells})
    for name, model in there.items():
        remarks += [f"{name}: {model.runs}"] if model.trouble else []
    for source in SOURCES:
        blocks = {
            seed: [
                (
                    number(model.results[seed], "rho", "value"),
                    number(model.results[seed], "generalization", "chest_transfer", f"drop_{source}", "value"),
                )
                for model in there.values()
                if seed in model.results
            ]
            for seed in seeds
        }
        found = [pair for pairs in blocks.values() for pair in pairs if math.isfinite(pair[1])]
        if not found:
            missing.append(f"no {source}")
            continue
        tests.append(trend(f"drop on {source} with rho", blocks, sign=-1))
        if tests[-1] is None:
            missing.append(f"{source}: fewer than two seeds with three models")
    return findings(tests, missing, remarks)


def grad_cam(sweep: Sweep) -> Findings:
    """Spearman's correlation over pairs of models of their mean log rho and the Jaccard index of their maps."""
    tests: list[Evidence | None] = []
    missing = []
    for comparison in _comparisons(sweep):
        source = str((comparison["settings"] or {}).get("source", "images"))
        rho, overlap = _by_model(comparison, sweep)
        tests.append(over_pairs(f"overlap on {source} with rho", rho, overlap, sign=-1))
        if tests[-1] is None:
            missing.append(f"{source}: {len(rho)} models, where permutations need five")
    if not tests:
        missing.append("no comparison of Grad-CAM maps (generalization=[gradcam_overlap])")
    return findings(tests, missing)


def _comparisons(sweep: Sweep) -> list[dict[str, Any]]:
    """The ``comparison.json`` of this sweep's runs alone, each with its ``place``; of a source the one of most runs."""
    folders = {os.path.realpath(cell.folder) for cell in sweep.cells if cell.folder}
    parents = {parent for folder in folders for parent in Path(folder).parents[:5]}
    best: dict[str, dict[str, Any]] = {}
    for parent in sorted(parents):
        for path in sorted(parent.glob("comparisons/gradcam_overlap-*/comparison.json")):
            try:
                found = json.loads(path.read_text()) | {"place": path.parent}
            except (OSError, json.JSONDecodeError):
                continue
            if {os.path.realpath(path.parent / run["folder"]) for run in found["runs"]} <= folders:
                source = str((found["settings"] or {}).get("source"))
                if source not in best or len(found["runs"]) > len(best[source]["runs"]):
                    best[source] = found
    return list(best.values())


def _by_model(comparison: Mapping[str, Any], sweep: Sweep) -> tuple[dict[str, float], dict[frozenset[str], float]]:
    """Mean log rho by method; by pair of methods the mean Jaccard index over the seeds that both have."""
    cells = {os.path.realpath(cell.folder): cell for cell in sweep.cells if cell.folder}
    runs: dict[str, tuple[str, Any]] = {}
    logs: dict[str, list[float]] = {}
    for run in comparison["runs"]:
        cell = cells[os.path.realpath(comparison["place"] / run["folder"])]
        method = cell.overrides.get("method", str(run["label"]))
        runs[run["label"]] = (method, run["seed"])
        value = number(cell.result or {}, "rho", "value")
        if value > 0:
            logs.setdefault(method, []).append(math.log(value))
    found: dict[frozenset[str], list[float]] = {}
    for one, two in itertools.combinations(runs, 2):
        (first, seed), (second, other) = runs[one], runs[two]
        if first == second or seed != other:
            continue
        for name in (f"{_PAIR}{one} | {two}", f"{_PAIR}{two} | {one}"):
            value = number(comparison["metrics"], name, "value")
            if math.isfinite(value):
                found.setdefault(frozenset((first, second)), []).append(value)
    rho = {method: sum(values) / len(values) for method, values in logs.items()}
    return rho, {pair: sum(values) / len(values) for pair, values in found.items()}
