"""The committed reproduction: what reports read of a results folder, copied; every report made of the copy; a page.

    python -m spectral_run.runner.reproduction results/paper_small docs/reproduction docs/reproduction.md

Copied are the sweeps' records, the ``result.json`` of their runs, comparisons of Grad-CAM maps, the
histograms of one run (the images depend on no model), and of ``metrics.jsonl`` the residuals that the claims on solvers
are decided by. No weights, no logs. ``spectral-run report=table2 results_dir=docs name=reproduction`` then makes the
report of the copy as of the runs themselves.

In the page, whatever stands between ``<!-- table FILE -->`` and ``<!-- end -->`` becomes the first table of that file.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spectral_run.reports.claims import CLAIMS
from spectral_run.reports.paper_reports import REPORTS
from spectral_run.reports.sweeps import JOBS, SWEEP, Sweep, gather
from spectral_run.runner.files import write_whole
from spectral_run.runner.report import report

SERIES: Final = ("residual", "rho")  # what section 5.5 compares,
SOLVERS: Final = ("power", "lobpcg_paper")  # of which solvers,
RESIDUALS: Final = ("residual_covtype", "residual_usps")  # and the claims that are decided by it
HISTOGRAMS: Final = ("constructed_distances.csv", "constructed_cosines.csv")
_TABLE: Final = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def archive(root: Path, destination: Path) -> list[Sweep]:
    """Copy what the reports of ``root`` (``results/<name>``) read; an earlier copy at ``destination`` is replaced.

    Returns the sweeps. Raises ``ValueError`` where there are none, where a file names a folder of this machine, and
    where ``destination`` holds something else.
    """
    names = dict.fromkeys(name for known in REPORTS.values() for name in known.experiments)
    sweeps = [sweep for name in names if (sweep := gather(root, name)) is not None]
    if not sweeps:
        raise ValueError(f"archive: no sweep of the paper's experiments in {root}.")
    if destination.exists() and any(destination.iterdir()) and not (destination / "sweeps").is_dir():
        raise ValueError(f"archive: {destination} is no copy of a results folder, and would be deleted.")
    shutil.rmtree(destination, ignore_errors=True)
    residuals = {name for claim in CLAIMS if claim.key in RESIDUALS for name in claim.experiments}
    drawn: list[Path] = []  # of one run: figures 6 and 7 are the same of each
    for sweep in sweeps:
        files: list[Path] = []
        for cell in sweep.cells:
            if cell.folder is not None and cell.result is not None:
                folder = Path(cell.folder)
                files.append(folder / "result.json")
                if sweep.experiment in REPORTS["figure6"].experiments and not drawn:
                    drawn = [folder / name for name in HISTOGRAMS if (folder / name).is_file()]
                solver = ((cell.result.get("config") or {}).get("regularizer") or {}).get("solver")
                if sweep.experiment in residuals and solver in SOLVERS:
                    _copy(destination / (folder / "metrics.jsonl").relative_to(root), _series(folder / "metrics.jsonl"))
        for path in (*files, *drawn):
            _copy(destination / path.relative_to(root), path.read_text(), root.resolve())
    for pattern in (f"sweeps/*/{SWEEP}", f"sweeps/*/{JOBS}", "**/comparisons/gradcam_overlap-*/comparison.json"):
        for path in root.glob(pattern):
            _copy(destination / path.relative_to(root), path.read_text(), root.resolve())
    return sweeps


def fill(page: Path) -> None:
    """Put the tables in place. Raises ``ValueError`` where a file has none."""

    def table(match: re.Match[str]) -> str:
        path = page.parent / match[2]
        found = re.search(r"(^\|.*\n)+", path.read_text(), re.MULTILINE)
        if found is None:
            raise ValueError(f"{page}: no table in {path}.")
        return f"{match[1]}{found[0]}{match[3]}"

    write_whole(page, _TABLE.sub(table, page.read_text()).encode())


def _series(path: Path) -> str:
    def kept() -> Iterator[str]:
        for line in path.read_text().splitlines(keepends=True):
            row = json.loads(line)
            if row["split"] == "train" and row["name"] in SERIES:
                yield line

    return "".join(kept())


def _copy(path: Path, text: str, *places: Path) -> None:
    for place in dict.fromkeys(map(str, (Path.cwd(), Path.home(), *places))):
        if place in text:
            raise ValueError(f"archive: {path.name} names {place}, a folder of this machine.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())


def main(root: Path, destination: Path, page: Path) -> int:
    """Archive, make every report that the sweeps allow, fill the page; 1 where one could not be made."""
    there = {sweep.experiment for sweep in archive(root, destination)}
    code = 0
    for name, known in REPORTS.items():
        if there & set(known.experiments if known.any_of else known.experiments[:1]):
            code |= report(name, destination)
    fill(page)
    return code


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
