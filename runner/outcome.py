"""How a run ended, and its errors as one line each."""

from __future__ import annotations

import errno
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``code`` is the command's: 0 done, 1 failed, 2 bad configuration."""

    code: int
    status: str  # done, failed, diverged, busy, valid, invalid
    folder: str | None = None
    skipped: bool = False


def describe(error: BaseException) -> str:
    """An error as one line: the system's own words for a full disk or a folder that can't be written."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "; make room, and the same command goes on from the last checkpoint" if full else ""
        return f"{error.strerror}{where}{advice}"
    if isinstance(error, RuntimeError) and "iostream error" in str(error):
        return f"writing failed: {error}"
    if isinstance(error, ValueError | OSError):  # ours, written to be read
        return str(error)
    return f"{type(error).__name__}: {error}"
