"""What ties the runs of a sweep together: its record and progress, then the table, figures and report over all of them.

A sweep's folder gets ``sweep.json`` when it begins (experiment, scale, every cell) and a line of ``jobs.jsonl`` when a
cell ends, whichever process it ran in.  ``reports.sweeps`` reads both.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from spectral_run.reports.sweeps import JOBS, SWEEP, SWEEP_SCHEMA, read_jobs
from spectral_run.runner.files import write_json
from spectral_run.runner.outcome import describe
from spectral_run.runner.processes import launch
from spectral_run.runner.settings import ConfigurationError

log = logging.getLogger("spectral_run")

ended: list[int] = []  # exit codes of the command's runs; read by ``cli``


@final
class Optimized(float):
    """The number that a sweeper optimizes, with the run's outcome attached."""

    outcome: Any

    @classmethod
    def of(cls, outcome: Any, path: str) -> Optimized:
        """The number at a dotted path of ``result.json``; NaN where the run has none."""
        value: Any = {}
        if outcome.folder and outcome.status == "done":
            value = json.loads((Path(outcome.folder) / "result.json").read_text())
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if outcome.status == "done" and not isinstance(value, int | float):
            raise ConfigurationError(f"optimized_metric: result.json has no number at {path!r}.")
        optimized = cls(value if isinstance(value, int | float) else "nan")
        optimized.outcome = outcome
        return optimized


class NoDataError(SystemExit):
    """A sweep's data are not at hand. No ``Exception``: of those that a callback raises Hydra makes warnings."""


@final
class SweepCallback(Callback):
    """Hydra calls this around jobs and sweeps, in the launcher's workers too."""

    _began = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Write ``sweep.json``. Raises ``NoDataError``, with nothing written, where a report's data are missing."""
        if not launch().first:
            return
        jobs = cells(config)
        if OmegaConf.select(config, "report"):
            _prepare(config, jobs or [])
        folder = Path(config.hydra.sweep.dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            about = {
                "schema": SWEEP_SCHEMA,
                "experiment": _choice(config, "experiment"),
                "scale": _choice(config, "scale"),
                "overrides": _given(config),
                "cells": None if jobs is None else len(jobs),
                "jobs": jobs,
                "started": datetime.now(UTC).isoformat(),
            }
            write_json(folder / SWEEP, about)
        except OSError:
            return  # Hydra is about to meet the same, and ``cli`` says so

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.time()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how the job ended: in memory for a single run, in the sweep's folder for one of many."""
        returned: Any = job_return._return_value  # the property would raise where the job has
        outcome: Any = getattr(returned, "outcome", returned)
        if not hasattr(outcome, "code"):
            return
        if not launch().first:  # of several processes on a run the first keeps the sweep's record
            ended.append(outcome.code)
        elif config.hydra.mode.name == "MULTIRUN":
            self._record(config, outcome)
        else:
            ended.append(outcome.code)

    def _record(self, config: DictConfig, outcome: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        overrides = _named(list(config.hydra.overrides.task))
        job = {"job": config.hydra.job.num, "overrides": overrides} | asdict(outcome)
        if outcome.folder:  # relative to the sweep's, so that a results folder can be moved
            job["folder"] = os.path.relpath(outcome.folder, folder)
        job |= {"began": self._began, "seconds": time.time() - self._began}
        file = os.open(folder / JOBS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, (json.dumps(job) + "\n").encode())  # one short write: lines of parallel workers do not mix
        finally:
            os.close(file)
        total = (_about(folder) or {}).get("cells")
        log.info("%s: %s", progress(read_jobs(folder), job, total, _workers(config)), _readable(overrides))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table over the sweep's runs, draw its figures, and make the experiment's report."""
        if not launch().first:
            return
        folder = Path(config.hydra.sweep.dir)
        jobs = sorted(read_jobs(folder), key=lambda job: job["job"])
        ended.extend(job["code"] for job in jobs)
        finished = [Path(os.path.normpath(folder / job["folder"])) for job in jobs if job["folder"]]
        if not finished:
            return
        from spectral_run.reports.summary import summarize

        name = OmegaConf.select(config, "report")
        with redirect_stdout(io.StringIO()) if name else nullcontext():  # the report prints its own tables
            summarize(finished, folder)
        if name:
            from spectral_run.runner.report import report

            try:
                ended.append(report(name, Path(config.results_dir) / config.name))
            except Exception as error:  # Hydra would make a warning of it
                log.error("report %s: %s", name, describe(error))
                ended.append(1)


def _prepare(config: DictConfig, jobs: list[dict[str, str]]) -> None:
    """Fetch the sweep's data once, or say in one line what is missing; every cell would say it."""
    several = [key for key in jobs[0] if len({job.get(key) for job in jobs}) > 1] if jobs else []
    if any(re.split(r"[.@]", key)[0] in ("dataset", "data_root", "generalization") for key in several):
        return  # the cells' data differ, and each says it itself
    from spectral_run.datasets.base import DataError, DataHome
    from spectral_run.runner.targets import build  # torch, as the table at the end

    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    home = DataHome(Path(config.data_root), config.download)
    try:
        dataset = build(plain["dataset"], "dataset")
        dataset.prepare(home)
        for node in plain["generalization"].values():
            build(node, "generalization").prepare(dataset, home)
    except ConfigurationError:
        return  # a cell says it
    except (FileNotFoundError, DataError) as error:
        raise NoDataError(f"{_choice(config, 'experiment')} left out: {describe(error)}") from error


def cells(config: DictConfig) -> list[dict[str, str]] | None:
    """The overrides of every job that Hydra's own sweeper is about to start; None where another sweeps, or none can."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper = config.hydra.sweeper
    if not sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return None
    params = OmegaConf.to_container(sweeper.params or OmegaConf.create({}))
    assert isinstance(params, dict)
    texts = ["=".join(map(str, pair)) for pair in params.items()] + _given(config)
    try:
        batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(texts), None)
    except HydraException:
        return None  # the sweeper says it itself
    return [_named(job) for batch in batches for job in batch]


def progress(jobs: list[dict[str, Any]], job: dict[str, Any], total: int | None, workers: int | None) -> str:
    """``[12/30] done in 41 s, 2 failed, about 9 minutes left``: where a sweep is when ``job`` has ended.

    Time left is the mean of the cells that were not skipped times those to come, over the workers (None: as many as
    have been at work at a time so far).
    """
    jobs = list({other["job"]: other for other in jobs}.values())
    how = f"{job['status']}, skipped" if job["skipped"] else f"{job['status']} in {_duration(job['seconds'])}"
    parts = [how]
    bad = sum(other["code"] != 0 for other in jobs)
    if bad:
        parts.append(f"{bad} failed")
    left = 0 if total is None else total - len(jobs)
    worked = [other for other in jobs if not other["skipped"]]
    if left > 0 and worked:
        seconds = sum(other["seconds"] for other in worked)
        if workers is None:
            began = min(other["began"] for other in worked)
            elapsed = max(other["began"] + other["seconds"] for other in worked) - began
            workers = max(1, round(seconds / max(elapsed, 1e-9)))
        parts.append(f"about {_duration(seconds / len(worked) * left / min(workers, left))} left")
    return f"[{len(jobs)}{'' if total is None else f'/{total}'}] {', '.join(parts)}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _given(config: DictConfig) -> list[str]:
    """The command line's overrides, ``${seed}`` as it stands: here it would be the first seed's."""
    given = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    assert isinstance(given, list)
    return [str(override) for override in given]


def _named(overrides: list[str]) -> dict[str, str]:
    """What tells the cells apart: overrides by key, but for the experiment, its scale and Hydra's own."""
    plain = (re.sub(r"\\([{}])", r"\1", override) for override in overrides)  # the sweeper escapes ${seed}
    pairs = (override.lstrip("+").partition("=") for override in plain)
    return {key: value for key, _, value in pairs if key not in ("experiment", "scale") and not key.startswith("hydra")}


def _readable(overrides: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items())


def _choice(config: DictConfig, group: str) -> str:
    choice = config.hydra.runtime.choices.get(group)
    return "" if choice in (None, "None") else str(choice)


def _workers(config: DictConfig) -> int | None:
    """How many cells are at work at a time; None where the launcher does not say."""
    launcher = config.hydra.launcher
    if launcher._target_.endswith(".BasicLauncher"):
        return 1
    workers = launcher.get("n_jobs")
    if not isinstance(workers, int) or workers == 0:
        return None
    return workers if workers > 0 else max(1, (os.cpu_count() or 1) + 1 + workers)


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((folder / SWEEP).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return about
