"""``run_dir=<finished runs> generalization=[...]``: ask trained networks more, without training them again.

``run_dir`` is a run's folder, a list of them, or a pattern in quotes, which takes every finished run that it matches or
that lies below what it matches.  A run's own configuration decides what it is; of the command line count the tests, and
what says where and how to compute.  Results are added to ``result.json``; a test that is there with the same settings
is not repeated.  Several runs end with one table over all, and a ``Comparison`` sets them side by side (``compared``).
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spectral_run.datasets.base import DataHome
from spectral_run.generalization.base import Comparison
from spectral_run.reports.collect import read_results
from spectral_run.runner import compared
from spectral_run.runner.again import measure_again
from spectral_run.runner.outcome import Outcome, describe
from spectral_run.runner.parts import Parts, build_parts
from spectral_run.runner.record import RunFolder
from spectral_run.runner.run import set_up_torch
from spectral_run.runner.settings import ConfigurationError, Settings, settings_from

log = logging.getLogger("spectral_run")

_OURS = ("generalization", "curvature", "device", "threads", "data_root", "download", "run_dir", "rerun", "validate")
_ALWAYS = ("generalization", "device", "threads", "data_root", "download", "rerun")  # have defaults of the machine


@dataclass(frozen=True)
class _Visit:
    """A finished run, and how it is to be measured."""

    own: Settings
    settings: Settings
    folder: RunFolder
    result: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder.path


def revisit(asked: Settings, overrides: list[str]) -> Outcome:
    """Measure finished runs. ``overrides`` are the command line's. Raises ``ConfigurationError`` before any work.

    Of several runs one that fails does not stop the others; the outcome is then without a folder.
    """
    given = {override.lstrip("+~").partition("=")[0].partition("@")[0].partition(".")[0] for override in overrides}
    _refuse(given)
    visits = [_visit(path, asked, given) for path in run_folders(asked.run_dirs)]
    set_up_torch(visits[0].settings)
    first = _check(visits)
    comparisons = {name: test for name, test in first.tests.items() if isinstance(test, Comparison)}
    _refuse_unlike(visits, comparisons)
    if asked.validate:
        what = visits[0].path if len(visits) == 1 else f"{len(visits)} runs"
        log.info("valid: %s can be measured (%s)", what, ", ".join(first.tests))
        return Outcome(0, "valid")
    if len(visits) == 1:
        return measure_again(first, visits[0].folder)
    outcomes = []
    for number, visit in enumerate(visits, 1):
        parts = first if number == 1 else build_parts(visit.settings)
        outcomes.append(measure_again(parts, visit.folder, f"[{number}/{len(visits)}] "))
    measured = [visit.path for visit, outcome in zip(visits, outcomes, strict=True) if outcome.code == 0]
    code = max(outcome.code for outcome in outcomes)
    home = DataHome(Path(asked.data_root), asked.download)
    for name, test in comparisons.items():
        code = max(code, _compare(name, test, measured, asked, home))
    _summarize(visits)
    for visit, outcome in zip(visits, outcomes, strict=True):
        if outcome.code:
            log.error("not measured (%s): %s", outcome.status, visit.path)
    return Outcome(code, "failed" if code else "done")


def run_folders(texts: Sequence[str]) -> list[Path]:
    """The folders that ``run_dir`` names, each once. Raises ``ConfigurationError`` where one is no finished run.

    A pattern leaves unfinished runs out and names them.
    """
    found: dict[Path, Path] = {}
    for text in texts:
        path = Path(text).expanduser()
        if path.exists() or not any(sign in text for sign in "*?["):
            _refuse_folder(path)
            paths = [path]
        else:
            paths = _matching(text, str(path))
        found |= {path.resolve(): path for path in paths if path.resolve() not in found}
    return list(found.values())


def _refuse_folder(path: Path) -> None:
    if not (path / "config.yaml").is_file():
        below = f" For the runs below it: run_dir='{path}/**'." if next(_below(path), None) else ""
        raise ConfigurationError(
            f"run_dir must be a run's folder (with config.yaml and result.json), got {path}.{below}"
        )
    if status := _lacking(path):
        raise ConfigurationError(f"run_dir needs a finished run, and {path} has {status}.")


def _matching(text: str, pattern: str) -> list[Path]:
    folders = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    runs = dict.fromkeys(run for folder in folders for run in _below(folder))
    if not runs:
        raise ConfigurationError(f"run_dir: {text} matches no run's folder.")
    lacking = {run: _lacking(run) for run in runs}
    for run, what in lacking.items():
        if what:
            log.warning("left out, not finished (%s): %s", what, run)
    finished = [run for run, what in lacking.items() if not what]
    if not finished:
        raise ConfigurationError(f"run_dir: {text} matches {len(runs)} run(s), and none is finished.")
    return finished


def _below(folder: Path) -> Iterator[Path]:
    """The folder itself where it is a run's, else the runs' folders below it."""
    if _is_run(folder):
        yield folder
    elif folder.is_dir() and not any(_is_run(parent) for parent in folder.parents):  # what a tracker keeps in a run
        yield from sorted(path.parent for path in folder.rglob("config.yaml") if _is_run(path.parent))


def _is_run(folder: Path) -> bool:
    there = [(folder / name).is_file() for name in ("config.yaml", "environment.json", "result.json")]
    return there[0] and any(there[1:])


def _lacking(path: Path) -> str | None:
    """What a run's folder lacks of a finished run, if anything."""
    results = read_results([path])
    status = str(results[0].get("status")) if results else "no result.json"
    if status != "done":
        return status
    return None if (path / "model.pt").is_file() else "no model.pt"


def _visit(path: Path, asked: Settings, given: set[str]) -> _Visit:
    stored = OmegaConf.load(path / "config.yaml")
    if not isinstance(stored, DictConfig):
        raise ConfigurationError(f"run_dir: {path / 'config.yaml'} is no configuration of a run.")
    own = settings_from(stored)
    settings = replace(own, **{name: getattr(asked, name) for name in _ALWAYS})
    settings = replace(settings, init_from=None)  # model.pt takes its place; the file may be gone
    if "curvature" in given:
        settings = replace(settings, curvature=asked.curvature)
    folder = RunFolder(own, {"dataset": "", "model": "", "regularizer": ""}, path)
    result = folder.result()
    assert result is not None
    return _Visit(own, settings, folder, result)


def _refuse(given: set[str]) -> None:
    if foreign := sorted(given - set(_OURS) - {"hydra"}):
        raise ConfigurationError(
            f"run_dir: a finished run keeps its own {', '.join(foreign)}; what can be given is {', '.join(_OURS)}."
        )
    if "generalization" not in given:
        raise ConfigurationError("run_dir: say what to measure: generalization=[spectrum], for one.")


def _check(visits: Sequence[_Visit]) -> Parts:
    """Build a run of each configuration once; the first's parts. Raises ``ConfigurationError``."""
    different = {visit.settings.config_hash: visit for visit in reversed(visits)}
    first = build_parts(visits[0].settings)
    for visit in different.values():
        if visit is not visits[0]:
            try:
                build_parts(visit.settings)
            except ConfigurationError as error:
                raise ConfigurationError(f"{visit.path}: {error}") from error
    return first


def _refuse_unlike(visits: Sequence[_Visit], comparisons: dict[str, Comparison]) -> None:
    def data(visit: _Visit) -> tuple[str, str]:
        return visit.result["data"]["name"], visit.result["data"]["sha256"][:12]

    for visit in visits:
        if comparisons and data(visit) != data(visits[0]):
            one, other = (f"{' '.join(data(v))} ({v.path})" for v in (visits[0], visit))
            raise ConfigurationError(
                f"run_dir: {', '.join(comparisons)} compares runs on the same data, got {one} and {other}."
            )


def _compare(name: str, test: Comparison, folders: list[Path], asked: Settings, home: DataHome) -> int:
    """The exit code."""
    if len(folders) < 2:
        log.error("%s: needs two measured runs to compare, and has %d.", name, len(folders))
        return 1
    try:
        compared.compare(name, test, folders, asked.generalization[name], home, rerun=asked.rerun)
    except Exception as error:  # as for a run: the other comparisons go on
        log.error("%s: %s", name, describe(error))
        log.debug("", exc_info=error)
        return 1
    return 0


def _summarize(visits: Sequence[_Visit]) -> None:
    from spectral_run.reports.summary import summarize

    folders = [visit.path for visit in visits]
    summarize(folders, compared.place("runs", [visit.result for visit in visits], folders, {}))
