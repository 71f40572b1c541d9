"""``spectral-run report=table2``: the paper's tables, figures and verdicts, made of sweeps that are there. No torch.

``name=`` is the folder below ``results_dir`` that holds the sweeps, ``scale=small`` says ``name=paper_small``.
``<results_dir>/<name>/reports/<report>/`` gets tables (CSV, Markdown, LaTeX), figures (PNG, PDF) and all of it as one
HTML page.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_run.reports.sweeps import Sweep, gather
from spectral_run.runner.settings import ConfigurationError, nearest, one_of

if TYPE_CHECKING:
    from spectral_run.reports.paper_reports import Report

_SCALES = ("smoke", "small", "paper")
_TAKES = ("report", "name", "results_dir", "scale")


def asks_for_report(arguments: list[str]) -> bool:
    """Whether the command makes a report of sweeps that are there; with an experiment ``report`` is its setting."""
    keys = [argument.partition("=")[0] for argument in arguments]
    return "report" in keys and "experiment" not in keys and not any(key.startswith("-") for key in keys)


def report_command(arguments: list[str]) -> int:
    """``spectral-run report=NAME [name=...] [results_dir=...]``; the exit code. Raises ``ConfigurationError``."""
    given: dict[str, str] = {}
    for key, _, value in (argument.partition("=") for argument in arguments):
        if key not in _TAKES:
            raise ConfigurationError(f"report takes {', '.join(_TAKES[1:])}, and not {key!r}.{nearest(key, _TAKES)}")
        if not value or value == "null":
            raise ConfigurationError(f"{key} needs a value.")
        given[key] = value
    scale = given.get("scale", "small")
    one_of("scale", scale, _SCALES)
    return report(given["report"], Path(given.get("results_dir", "results")) / given.get("name", f"paper_{scale}"))


def report(name: str, root: Path, reports: Mapping[str, Report] | None = None) -> int:
    """Make a report of the sweeps below ``root`` (``results/<name>``); the exit code.

    Raises ``ConfigurationError`` where there is no such report.
    """
    from spectral_run.reports.paper_reports import REPORTS

    known = REPORTS if reports is None else reports
    one_of("report", name, known)
    needed = known[name].experiments
    sweeps: dict[str, Sweep] = {}
    for experiment in needed:
        sweep = gather(root, experiment)
        if sweep is None:
            print(f"report {name}: no sweep of {experiment} in {root}; {_command(experiment, root)}", file=sys.stderr)
        else:
            sweeps[experiment] = sweep
            _say_what_is_missing(sweep)
    if not sweeps or (needed[0] not in sweeps and not known[name].any_of):
        return 1
    try:
        document = known[name].make(sweeps)
    except ValueError as error:  # sweeps that nothing can be made of
        print(f"report {name}: {error}", file=sys.stderr)
        return 1
    from spectral_run.reports.document import write

    destination = root / "reports" / name
    destination.mkdir(parents=True, exist_ok=True)
    paths = write(document, destination)
    print((destination / f"{document.name}.md").read_text())
    for path in paths:
        print(f"report   {path}")
    return 0


def _say_what_is_missing(sweep: Sweep) -> None:
    counts = {
        status: sum(cell.status == status for cell in sweep.cells) for status in ("diverged", "failed", "missing")
    }
    texts = [f"{count} {status}" for status, count in counts.items() if count]
    if texts:
        print(f"{sweep.experiment}: of {len(sweep.cells)} cells {', '.join(texts)} ({sweep.folder})", file=sys.stderr)


def _command(experiment: str, root: Path) -> str:
    scale = root.name.removeprefix("paper_")
    return f"spectral-run experiment={experiment}{f' scale={scale}' if scale in _SCALES else f' name={root.name}'}"
