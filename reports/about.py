"""What sweeps are made of, in words: cells, data, seeds, device, versions, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from spectral_run.reports.sweeps import Cell, Sweep


def about(sweeps: Sequence[Sweep]) -> tuple[str, ...]:
    """Paragraphs on cells, data, seeds, device and versions of the sweeps, as their results have them, and on gaps."""
    results = [cell.result for sweep in sweeps for cell in sweep.cells if cell.result is not None]
    counts = [_counted(sweep) for sweep in sweeps]
    data = dict.fromkeys(_data(result["data"]) for result in results if result.get("data"))
    seeds = sorted({int(result["seed"]) for result in results if result.get("seed") is not None})
    devices = dict.fromkeys(_device(result) for result in results if result.get("device"))
    versions: dict[str, set[str]] = {}
    for result in results:
        for package, version in (result.get("versions") or {}).items():
            versions.setdefault(package, set()).add(str(version))
    packages = (f"{package} {' and '.join(sorted(found))}" for package, found in versions.items())
    told = [
        ("Runs", counts),
        ("Data", data),
        ("Seeds" if len(seeds) > 1 else "Seed", [", ".join(map(str, seeds))] * bool(seeds)),
        ("Device", devices),
        ("Versions", [", ".join(packages)] * bool(versions)),
    ]
    return (*(f"{what}: {'; '.join(which)}." for what, which in told if which), *gaps(sweeps))


def gaps(sweeps: Iterable[Sweep]) -> tuple[str, ...]:
    """A paragraph per sweep that names its cells without numbers, and why; none where all are done."""
    paragraphs = []
    for sweep in sweeps:
        absent = [cell for cell in sweep.cells if cell.status != "done"]
        if absent:
            named = "; ".join(f"{called(cell, sweep)} ({_reason(cell)})" for cell in absent)
            paragraphs.append(f"Not in the numbers of {sweep.experiment}, {len(absent)} of {_cells(sweep)}: {named}.")
    return tuple(paragraphs)


def called(cell: Cell, sweep: Sweep) -> str:
    """A cell by its overrides, those apart that all cells of the sweep share."""
    shared = set(sweep.cells[0].overrides.items()).intersection(*(other.overrides.items() for other in sweep.cells))
    kept = [f"{name}={value}" for name, value in cell.overrides.items() if (name, value) not in shared]
    return " ".join(kept) or "the run"


def _counted(sweep: Sweep) -> str:
    counts = Counter(cell.status for cell in sweep.cells)
    scale = f" at scale {sweep.scale}" if sweep.scale else ""
    return f"{sweep.experiment}{scale}, {_cells(sweep)}, " + ", ".join(
        f"{counts[status]} {status}" for status in sorted(counts, key=lambda status: (status != "done", status))
    )


def _cells(sweep: Sweep) -> str:
    return f"{len(sweep.cells)} cell{'s' * (len(sweep.cells) != 1)}"


def _data(data: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in (data.get("rows") or {}).items())
    release = "" if data.get("official", True) else ", not the official release"
    return f"{data.get('name')} ({rows} rows), sha256 `{str(data.get('sha256'))[:12]}`{release}"


def _device(result: Any) -> str:
    threads, processes = result.get("threads", 1), result.get("processes", 1)
    text = f"{result['device']}, {threads} thread{'s' * (threads != 1)}"
    return text + (f" in each of {processes} processes" if processes != 1 else "")


def _reason(cell: Cell) -> str:
    error = str((cell.result or {}).get("error") or "").strip()
    return f"{cell.status}: {error.splitlines()[0]}" if error and cell.status == "failed" else cell.status
