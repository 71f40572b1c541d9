"""Learning-rate schedules: the factor on the base rate in every epoch, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES = ("constant", "inverse_epoch", "cosine")


def schedule(name: str, epochs: int) -> Callable[[int], float]:
    """``constant``: 1. ``inverse_epoch``: 1/(epoch + 1), the paper's (appendix C.3). ``cosine``: from 1 towards 0.

    Raises ``ValueError`` with the names there are.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}.")

    def factor(epoch: int) -> float:
        if name == "inverse_epoch":
            return 1.0 / (epoch + 1)
        if name == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
        return 1.0

    return factor
