"""``run_dir=<finished runs> generalization=[...]``: ask trained networks more, without training them again.

``run_dir`` is a run's folder, a list of them, or a pattern in quotes, which takes every finished run that it matches or
that lies below what it matches.  A run's own configuration decides what it is; of the command line count the tests, and
what says where and how to compute.  Results are added to ``result.json``; a test that is there with the same settings
is not repeated.  Several runs end with one table over all, and a ``Comparison`` sets them side by side (``compared``).
"""

from __future__ import annotations

import glob
import logging
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from spectral_run.datasets.base import DataHome
from spectral_run.generalization.base import Comparison
from spectral_run.reports.collect import read_results
from spectral_run.runner import compared, measurements
from spectral_run.runner.parts import Parts, build_parts, with_data
from spectral_run.runner.record import RunBusyError, RunFolder, log_to, stop_log
from spectral_run.runner.run import Outcome, describe, load_data, set_up_torch
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
        return _take(visits[0], first)
    outcomes = []
    for number, visit in enumerate(visits, 1):
        outcomes.append(_take(visit, first if number == 1 else None, f"[{number}/{len(visits)}] "))
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


def _take(visit: _Visit, parts: Parts | None, where: str = "") -> Outcome:
    """All tests on one run, which is finished and stays so, whatever comes of this."""
    path = visit.path
    try:
        visit.folder.lock()
    except RunBusyError as error:
        log.error("%s", error)
        return Outcome(1, "busy", str(path))
    handler = log_to(path / "run.log")
    try:
        _measure(parts or build_parts(visit.settings), visit, where)
    except Exception as error:  # whatever it is, the other runs go on
        log.error("%s", describe(error))
        log.debug("", exc_info=error)
        return Outcome(1, "failed", str(path))
    finally:
        stop_log(handler)
        visit.folder.close()
    return Outcome(0, "done", str(path))


def _measure(parts: Parts, visit: _Visit, where: str) -> None:
    settings, folder = parts.settings, visit.folder
    result = folder.result() or visit.result  # another process may have added to it before the lock
    home = DataHome(Path(settings.data_root), settings.download)
    data = load_data(parts, home)
    if data.sha256 != result["data"]["sha256"]:
        raise ValueError(
            f"{folder.path} was trained on data with sha256 {result['data']['sha256'][:12]}, "
            f"now it is {data.sha256[:12]}; bring the old files back."
        )
    parts, _ = with_data(parts, data)
    parts.model.load_state_dict(_weights(folder.path / "model.pt", parts.device))
    parts.model.eval()
    log.info("%smeasuring %s, backend %s", where, folder.path, parts.backend.name)
    for name, test in parts.tests.items():
        how = {"config": settings.generalization[name], "curvature": vars(settings.curvature)}
        how |= {"device": str(parts.device), "backend": parts.backend.name}
        earlier = _earlier(name, result)
        there = not isinstance(test, Comparison) or measurements.arrays_path(folder.path, name).is_file()
        if there and all(earlier.get(key) == value for key, value in how.items()) and not settings.rerun:
            log.info("%s: measured before, %s (rerun=true repeats it)", name, earlier["finished"])
            continue
        began = time.perf_counter()
        measurements.take(name, parts, data, home, folder.path, result)
        seconds = time.perf_counter() - began
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        result.setdefault("measured", {})[name] = how | {"finished": finished, "seconds": seconds}
        folder.write_result(result)
        log.info("%s: %.1f s", name, seconds)


def _weights(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        weights: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:  # torch's words for a file that is cut off
        raise ValueError(f"{path} is damaged and can't be read.") from error
    return weights


def _earlier(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """How the test was measured before: when it was asked for later, or else at the end of training."""
    later: dict[str, Any] = (result.get("measured") or {}).get(name) or {}
    if later or name not in (result.get("generalization") or {}):
        return later
    config = result.get("config") or {}
    return {
        "config": (config.get("generalization") or {}).get(name),
        "curvature": config.get("curvature"),
        "device": result.get("device"),
        "backend": (result.get("backend") or {}).get("name"),
        "finished": result.get("finished"),
    }


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
