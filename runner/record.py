"""A run's folder: what is written in it, when, and what a killed run may have left there.

``config.yaml`` (resolved), ``environment.json``, ``metrics.jsonl`` (a line per number; bitwise the same however often
the run was broken off), ``timing.jsonl`` (seconds by phase and epoch; not the same), ``run.log``, ``checkpoints/``,
``model.pt`` (the selected weights), ``last.pt`` (training's last ones, where an average is selected) and last, by
rename, ``result.json``: its presence means finished.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf

import spectral_run
from spectral_run.runner.files import write_json, write_whole
from spectral_run.runner.settings import Settings

RESULT_SCHEMA = 1  # docs/results.md describes it; a change of meaning is a new number
_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "hydra-core", "omegaconf")


class RunBusyError(RuntimeError):
    """Another process is at work on this run."""


class RunFolder:
    """Path and files of one run."""

    def __init__(
        self,
        settings: Settings,
        choices: Mapping[str, str],
        path: Path | None = None,
        *,
        processes: int = 1,
        writes: bool = True,
    ) -> None:
        """Where these settings belong; ``path`` for a finished run, which lies where its user put it.

        Of several ``processes`` on the run one ``writes``; in the others nothing here touches a file.
        """
        self.processes, self.writes = processes, writes
        self.run_id = settings.config_hash[:8]
        self.choices = dict(choices)
        self.label = "/".join(
            [choices["dataset"], choices["model"], f"{choices['regularizer']}-{self.run_id}", f"seed-{settings.seed}"]
        )
        self.path = path or Path(settings.results_dir) / settings.name / self.label
        self.checkpoints = self.path / "checkpoints"
        self._settings = settings
        self._lock = FileLock(self.path / ".lock", timeout=0)

    def result(self) -> dict[str, Any] | None:
        """The finished run's result, or None. A result file that is no JSON counts as none."""
        try:
            result: dict[str, Any] = json.loads((self.path / "result.json").read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        return result

    def lock(self) -> None:
        """Keep other processes out (the kernel drops the lock when this one dies). Raises ``RunBusyError``."""
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunBusyError(f"another process is at work on {self.path}.") from error

    def open(self) -> None:
        """Make the folder, take its lock and write the configuration. Raises ``RunBusyError``."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        config = OmegaConf.to_yaml(OmegaConf.structured(self._settings))
        write_whole(self.path / "config.yaml", config.encode())

    def close(self) -> None:
        """Let go of the lock."""
        self._lock.release()

    def clear(self) -> None:
        """Forget what an earlier run left: for ``rerun=true``, and where nothing can be resumed."""
        if not self.writes:
            return
        for checkpoint in self.checkpoints.glob("*.pt"):  # first: none may outlive the lines it counts on
            checkpoint.unlink()
        for name in ("result.json", "metrics.jsonl", "timing.jsonl", "model.pt", "last.pt"):
            (self.path / name).unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, the last file of a run."""
        if self.writes:
            write_json(self.path / "result.json", dict(result))

    def write_environment(self, device: str) -> dict[str, str]:
        """Write ``environment.json``: commit and diff of the code, versions, machine. Returns the versions."""
        versions = {"spectral-run": spectral_run.__version__, "python": platform.python_version()}
        versions |= {package: version(package) for package in _PACKAGES}
        if not self.writes:
            return versions
        write_json(
            self.path / "environment.json",
            {
                "versions": versions,
                "device": device,
                "threads": self._settings.threads,
                "processes": self.processes,
                "machine": platform.machine(),
                "system": platform.platform(),
                "processors": os.cpu_count(),
                "command": sys.argv[1:],
                **_code_state(Path(spectral_run.__file__).resolve().parent),
            },
        )
        return versions

    def lines(self, name: str, keep: int = 0) -> Lines:
        """A file of JSON lines in the folder, cut back to its first ``keep`` bytes."""
        return Lines(self.path / name if self.writes else None, keep)


class Lines:
    """An append-only file of JSON lines that can be cut back to where a checkpoint was; without a path, no file."""

    def __init__(self, path: Path | None, keep: int = 0) -> None:
        """Open for appending after the first ``keep`` bytes. Raises ``ValueError`` where the file is shorter."""
        self._file = None
        if path is None:
            return
        self._file = path.open("ab")
        if self._file.tell() < keep:
            self._file.close()
            raise ValueError(f"{path} is shorter than its checkpoint says.")
        self._file.truncate(keep)
        self._file.seek(keep)

    def write(self, **values: Any) -> None:
        """Add a line."""
        if self._file is not None:
            self._file.write((json.dumps(values, allow_nan=False) + "\n").encode())

    def sync(self) -> int:
        """Bring everything to the disk; the number of bytes there."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class _RunLog(logging.FileHandler):
    """A log that stays silent when it can't be written: on a full disk the run itself says so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (the name is logging's)
        """Nothing more can be done here."""


def log_to(path: Path) -> logging.Handler:
    """Send the ``spectral_run`` log to ``run.log`` as well; returns the handler, to be removed by ``stop_log``."""
    handler = _RunLog(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("spectral_run").addHandler(handler)
    return handler


def stop_log(handler: logging.Handler) -> None:
    """Undo ``log_to``."""
    logging.getLogger("spectral_run").removeHandler(handler)
    handler.close()


def _code_state(folder: Path) -> dict[str, str | None]:
    """Commit and uncommitted diff of the code, where it runs from a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit.strip() if commit else None, "diff": git("diff", "HEAD") if commit else None}
