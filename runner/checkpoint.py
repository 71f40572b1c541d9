"""Checkpoints: the last two are kept, each under a name that holds its own hash.

The name proves the content: a damaged file is noticed whatever damaged it, and the one before takes its place.
They load without unpickling code (``weights_only=True``).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spectral_run.runner.files import write_whole

_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{12})\.pt")


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``step-<n>-<hash>.pt``, whole, and remove all but the last two. Raises ``OSError``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / f"step-{step:09d}-{hashlib.sha256(content).hexdigest()[:12]}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)
    for old in _all(folder)[2:]:
        old.unlink()
    return path


def save_weights(path: Path, weights: dict[str, Any]) -> None:
    """Write a state dict, whole; ``torch.load(path, weights_only=True)`` reads it. Raises ``OSError``."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_whole(path, buffer.getvalue())


def load_last(folder: Path, damaged: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None; ``damaged`` is told of each that is not."""
    for path in _all(folder):
        match = _NAME.fullmatch(path.name)
        assert match is not None
        content = path.read_bytes()
        if not hashlib.sha256(content).hexdigest().startswith(match[2]):
            damaged(f"checkpoint {path} is damaged (its content does not have the hash in its name)")
            continue
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state
    return None


def last_path(folder: Path) -> Path | None:
    """The newest checkpoint's path, whole or not."""
    return next(iter(_all(folder)), None)


def _all(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: (path.name.split("-")[1], path.stat().st_mtime_ns), reverse=True)
