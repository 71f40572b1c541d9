"""What a tracker is: a second place for numbers that the run folder holds anyway. It can fail; the run goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    """What identifies a run to a tracker."""

    name: str
    group: str
    folder: Path
    config: Mapping[str, Any]
    resumed: bool


class Tracker(ABC):
    """A tracker's settings; constructing one imports and opens nothing."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Open the run, or its continuation."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, named ``split/name``."""

    @abstractmethod
    def finish(self, result: Mapping[str, Any]) -> None:
        """The whole ``result.json``; closes the run."""
