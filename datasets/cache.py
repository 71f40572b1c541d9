"""A folder of decoded arrays, keyed by the content they were decoded from; a lost or damaged entry is made again.

It lies in ``$XDG_CACHE_HOME/spectral-run`` (``~/.cache`` by default). Entries appear by rename, so two processes that
make the same one do the work twice and leave one whole file; what takes minutes to make is made ``once``: the second
process waits for the first. Where nothing can be written nothing is cached.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias
from uuid import uuid4
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

Arrays: TypeAlias = Mapping[str, Any]  # name -> array


def cache_folder() -> Path | None:
    """Where entries lie, or None when the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "spectral-run"
    except RuntimeError:
        return None


def cached(key: str, make: Callable[[], Arrays], *, once: bool = False) -> Arrays:
    """The arrays stored under ``key``, or those that ``make`` returns, stored for the next time if that is possible.

    ``once``: no two processes make it at a time; who comes second waits, and takes what the first has left.
    """
    folder = cache_folder()
    if folder is None:
        return make()
    path = folder / f"{key}.npz"
    arrays = _stored(path)
    if arrays is not None:
        return arrays
    if not once:
        return _store(path, make())
    with _locked(path):
        arrays = _stored(path)
        return _store(path, make()) if arrays is None else arrays


def _stored(path: Path) -> Arrays | None:
    """The entry, or None where it is not there, or not whole."""
    try:
        # np.load would leave a file that it opened itself open when that is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as entry:
            return {name: entry[name] for name in entry.files}
    except (OSError, ValueError, EOFError, BadZipFile):
        return None


def _store(path: Path, arrays: Arrays) -> Arrays:
    with suppress(OSError):  # read-only or full: the next run makes it again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    return arrays


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the entry's lock, which the system frees when a process dies; no lock where there can't be one."""
    lock = FileLock(path.with_name(f".{path.stem}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            console = Console(stderr=True, quiet=not sys.stderr.isatty())
            with console.status(f"another process makes {path.stem[:24]}...: waiting for it"):
                lock.acquire()
    except (OSError, NotImplementedError):  # a read-only folder, a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


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
