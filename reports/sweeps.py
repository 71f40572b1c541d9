"""What a sweep has come to: its cells in order, each with its ``result.json``.

An experiment is a file of ``conf/experiment``; a sweep is one carrying-out of it, the folder
``results/<name>/sweeps/<time>/``; a cell is one run of a sweep, known by its overrides.  ``sweep.json`` is written
when a sweep begins (experiment, scale, all its cells), and ``jobs.jsonl`` gets a line when a cell ends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SWEEP, JOBS = "sweep.json", "jobs.jsonl"
SWEEP_SCHEMA = 1  # a change of meaning is a new number
STATUSES = ("done", "diverged", "failed", "missing")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    overrides: Mapping[str, str]  # method, seed, training.batch_size, ...: those swept, and those of the command line
    status: str  # done, diverged, failed, missing
    folder: str | None
    result: Mapping[str, Any] | None  # of result.json, where there is one


@dataclass(frozen=True)
class Sweep:
    """One carrying-out of an experiment; cells in the order of the jobs, those not reached as ``missing``."""

    experiment: str
    scale: str  # smoke, small, paper; empty where the experiment has none
    folder: Path
    cells: tuple[Cell, ...]


def read_sweep(folder: Path) -> Sweep:
    """The sweep in a folder. Raises ``FileNotFoundError`` where it is none, ``ValueError`` where it can't be read."""
    about = _about(folder)
    if about is None:
        raise FileNotFoundError(f"{folder} is no sweep's folder: it has no {SWEEP}.")
    ended = {int(job["job"]): job for job in read_jobs(folder)}  # of a job that ended twice the last line
    begun = about["jobs"]
    if begun is None:  # a sweeper that decides as it goes
        begun = [ended[number]["overrides"] for number in sorted(ended)]
        ended = dict(enumerate(ended[number] for number in sorted(ended)))
    cells = tuple(_cell(folder, overrides, ended.get(number)) for number, overrides in enumerate(begun))
    return Sweep(about["experiment"], about["scale"], folder, cells)


def gather(root: Path, experiment: str) -> Sweep | None:
    """The newest sweep of an experiment below ``root / "sweeps"``, ``root`` being ``results/<name>``, with the others'.

    Earlier sweeps of the same scale whose cells differ in the same settings add the cells that it has not, or has not
    reached: a single seed run again, or more seeds, is no new table.
    """
    begun = []
    for path in (root / "sweeps").glob(f"*/{SWEEP}"):
        about = _about(path.parent)
        if about is not None and about["experiment"] == experiment:
            begun.append((about["started"], path.parent))
    sweeps = [read_sweep(folder) for _, folder in sorted(begun)]
    if not sweeps:
        return None
    newest = sweeps[-1]
    cells: dict[frozenset[tuple[str, str]], Cell] = {}
    for sweep in sweeps:
        if sweep.scale != newest.scale or _settings(sweep) != _settings(newest):
            continue
        for cell in sweep.cells:
            key = frozenset(cell.overrides.items())
            if key not in cells or cell.status != "missing":
                cells[key] = cell  # in its old place
    return Sweep(experiment, newest.scale, newest.folder, tuple(cells.values()))


def _settings(sweep: Sweep) -> set[str]:
    return {name for cell in sweep.cells for name in cell.overrides}


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``jobs.jsonl``; a line that a kill cut off is left out."""
    try:
        lines = (folder / JOBS).read_text().splitlines()
    except FileNotFoundError:
        return []
    jobs = []
    for line in lines:
        try:
            jobs.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return jobs


def _about(folder: Path) -> dict[str, Any] | None:
    """``sweep.json``; None where there is none, or not all of it."""
    try:
        about: dict[str, Any] = json.loads((folder / SWEEP).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    if about.get("schema") != SWEEP_SCHEMA:
        raise ValueError(f"{folder / SWEEP}: schema must be {SWEEP_SCHEMA}, got {about.get('schema')}.")
    return about


def _cell(folder: Path, overrides: Mapping[str, str], job: Mapping[str, Any] | None) -> Cell:
    if job is None or not job.get("folder"):
        return Cell(overrides, "missing" if job is None or job["status"] in ("valid", "busy") else "failed", None, None)
    place = os.path.normpath(folder / job["folder"])  # as jobs.jsonl has it, relative to the sweep's
    result = _result(Path(place))
    status = str(job["status"])
    if status == "busy" or (status == "done" and result is None):
        status = "missing"
    return Cell(overrides, status if status in STATUSES else "failed", place, result)


def _result(folder: Path) -> dict[str, Any] | None:
    try:
        result = json.loads((folder / "result.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return result if isinstance(result, dict) else None
