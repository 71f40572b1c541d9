"""No tracker: the run folder is the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from spectral_run.trackers.base import RunInfo, Tracker


@final
@dataclass(frozen=True, kw_only=True)
class NoTracker(Tracker):
    """Does nothing."""

    def start(self, run: RunInfo) -> None:
        """Nothing to open."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing to log to."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Nothing to close."""
