"""Weights & Biases, imported only when asked for (about a second), and never the reason that a run fails.

Online without a connection would block for 100 seconds and raise; here it waits ``connect_seconds`` and goes offline.
A resumed run continues under the same id.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

from spectral_run.trackers.base import RunInfo, Tracker

_Mode: TypeAlias = Literal["online", "offline", "disabled"]
_MODES = ("online", "offline", "disabled")
_log = logging.getLogger("spectral_run")


@final
@dataclass(frozen=True, kw_only=True)
class WandbTracker(Tracker):
    """``mode``: online (with fallback to offline), offline, disabled."""

    project: str = "spectral-run"
    entity: str | None = None
    mode: _Mode = "online"
    connect_seconds: float = 10.0
    _run: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ValueError(f"WandbTracker: mode must be one of {', '.join(_MODES)}; got {self.mode!r}.")
        if not self.connect_seconds > 0:
            raise ValueError(f"WandbTracker: connect_seconds must be positive, got {self.connect_seconds}.")

    def start(self, run: RunInfo) -> None:
        """Open the run: as asked for, else offline, else not at all."""
        for mode in _fallbacks(self.mode):
            with _harmless(f"could not start in mode {mode}"):
                self._run.append(self._open(run, mode))
                return

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step."""
        for run in self._run:
            with _harmless("could not log"):
                run.log(dict(values), step=step)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the summary and close."""
        while self._run:
            run = self._run.pop()
            with _harmless("could not finish"):
                run.summary.update(dict(_flat(result)))
                run.finish()

    def _open(self, run: RunInfo, mode: _Mode) -> Any:
        import wandb

        return wandb.init(
            project=self.project,
            entity=self.entity,
            mode=mode,
            dir=str(run.folder),
            name=run.name,
            group=run.group,
            id=hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:12],
            resume="allow" if mode == "online" else None,
            config=dict(run.config),
            settings=wandb.Settings(init_timeout=self.connect_seconds, silent=True, x_disable_stats=True),
        )


def _fallbacks(mode: _Mode) -> tuple[_Mode, ...]:
    return ("online", "offline") if mode == "online" else (mode,)


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever goes wrong in there must not cost the run
        _log.warning("wandb %s: %s: %s", what, type(error).__name__, str(error).split("\n")[0])


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}{key}.")
    elif isinstance(value, int | float | str | bool):
        yield prefix[:-1], value
