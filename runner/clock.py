"""Books wall time by phase: what figure 5 of the paper is drawn from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PHASES = ("gradient", "eigensolver", "gradient of rho", "evaluation", "other")


class Clock:
    """Seconds by phase, over all the sessions of a run; what is in no phase is ``other``."""

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self._booked = dict.fromkeys(PHASES, 0.0) | dict(seconds or {})
        self._mark = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book the block's time under the name."""
        self._book("other")
        try:
            yield
        finally:
            self._book(name)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to now."""
        self._book("other")
        return dict(self._booked)

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds().values())

    def _book(self, name: str) -> None:
        now = time.perf_counter()
        self._booked[name] += now - self._mark
        self._mark = now
