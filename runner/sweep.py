"""What ties the runs of a sweep together: a line per run as it ends, then the table and figures over all of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from spectral_run.runner.processes import launch
from spectral_run.runner.settings import ConfigurationError

JOBS = "jobs.jsonl"
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


@final
class SweepCallback(Callback):
    """Hydra calls this around jobs and sweeps, in the launcher's workers too."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Note how the job ended: in memory for a single run, in the sweep's folder for one of many."""
        returned: Any = job_return._return_value  # the property would raise where the job has
        outcome: Any = getattr(returned, "outcome", returned)
        if not hasattr(outcome, "code"):
            return
        if not launch().first:  # of several processes on a run the first keeps the sweep's record
            ended.append(outcome.code)
        elif config.hydra.mode.name == "MULTIRUN":
            line = json.dumps({"job": config.hydra.job.num} | asdict(outcome)) + "\n"
            file = os.open(Path(config.hydra.sweep.dir) / JOBS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line.encode())  # one short write: lines of parallel workers do not mix
            finally:
                os.close(file)
        else:
            ended.append(outcome.code)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table over the sweep's runs and draw its figures."""
        if not launch().first:
            return
        folder = Path(config.hydra.sweep.dir)
        path = folder / JOBS
        lines = path.read_text().splitlines() if path.exists() else []
        jobs = sorted((json.loads(line) for line in lines), key=lambda job: job["job"])
        ended.extend(job["code"] for job in jobs)
        finished = [Path(job["folder"]) for job in jobs if job["folder"]]
        if finished:
            from spectral_run.reports.summary import summarize

            summarize(finished, folder)
