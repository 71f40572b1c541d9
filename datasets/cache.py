"""A folder of decoded arrays, keyed by the content they were decoded from; a lost or damaged entry is made again.

It lies in ``$XDG_CACHE_HOME/spectral-run`` (``~/.cache`` by default). Entries appear by rename, so two processes that
make the same one do the work twice and leave one whole file. Where nothing can be written nothing is cached.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeAlias
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np

Arrays: TypeAlias = Mapping[str, Any]  # name -> array


def cache_folder() -> Path | None:
    """Where entries lie, or None when the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "spectral-run"
    except RuntimeError:
        return None


def cached(key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under ``key``, or those that ``make`` returns, stored for the next time if that is possible."""
    folder = cache_folder()
    if folder is None:
        return make()
    path = folder / f"{key}.npz"
    try:
        # np.load would leave a file that it opened itself open when that is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            return {name: entry[name] for name in entry.files}
    except (OSError, ValueError, EOFError, BadZipFile):  # not there, or not whole
        pass
    arrays = make()
    with suppress(OSError):  # read-only or full: the next run decodes again
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    return arrays


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file that appears under its name only when all of it is on the disk."""
    part = path.with_name(f".{path.name}.{uuid4().hex}")  # tempfile's would be unreadable to other users
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
