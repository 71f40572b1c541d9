"""Data files: found under the data root, fetched from their official home when missing, recognized by their hash.

A download grows in ``<name>.part``, goes on from there after an interruption, and takes its final name by rename once
its checksum is right. A file that is already there is only ever read, so the data root may be read-only.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from spectral_run.datasets.base import DataError, DataHome

# pooch checks hashes too, but begins a broken download again at the first byte: it can't resume.

TIMEOUT = 10.0  # seconds without a byte before a server counts as unreachable
CHUNK = 1 << 18  # bytes per read: a few progress updates per second on a slow line


class ByHandError(FileNotFoundError):
    """Missing files that no program can fetch; the message says who hands them out, and where they belong."""


@final
@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of an official release, known by one of two checksums: the one that its publisher states."""

    name: str
    url: str
    sha256: str | None = None
    md5: str | None = None
    unpacked_md5: str | None = None  # of the decompressed bytes: gzip headers differ between copies of one release

    def __post_init__(self) -> None:
        if (self.sha256 is None) == (self.md5 is None):
            raise ValueError(f"RemoteFile: {self.name} needs one of sha256 and md5.")

    @property
    def checksum(self) -> str:
        """Algorithm and hexadecimal digest of the official file."""
        return f"sha256 {self.sha256}" if self.sha256 is not None else f"md5 {self.md5}"

    def checksum_of(self, path: Path) -> str:
        """The same for the file at ``path``."""
        algorithm = "sha256" if self.sha256 is not None else "md5"
        return f"{algorithm} {file_digest(path, algorithm)}"


@final
@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a data set was read from, in the form that ``Data`` records."""

    files: dict[str, str]  # file name -> SHA-256
    official: bool
    notices: tuple[str, ...] = ()


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def provenance(files: Iterable[tuple[RemoteFile, Path]]) -> Provenance:
    """Hash every file, and say of each one that isn't official what it should have been."""
    hashes: dict[str, str] = {}
    notices = []
    for remote, path in files:
        hashes[path.name] = file_digest(path)
        if remote.checksum_of(path) != remote.checksum and not _unpacks_to_official(remote, path):
            notices.append(
                f"{path.name} is not the official release (sha256 {hashes[path.name]}, expected {remote.checksum}): "
                "loaded as it is"
            )
    return Provenance(files=hashes, official=not notices, notices=tuple(notices))


def _unpacks_to_official(remote: RemoteFile, path: Path) -> bool:
    if remote.unpacked_md5 is None:
        return False
    return hashlib.md5(read_bytes(path), usedforsecurity=False).hexdigest() == remote.unpacked_md5


def read_bytes(path: Path) -> bytes:
    """A file's bytes, decompressed when it ends in .gz or .bz2. ``DataError`` when it is truncated or damaged."""
    try:
        packed = path.read_bytes()
        if not packed:
            raise EOFError("no byte in it")
        if path.suffix == ".gz":
            return gzip.decompress(packed)
        return bz2.decompress(packed) if path.suffix == ".bz2" else packed
    except (EOFError, ValueError) as error:  # gzip, bz2
        raise DataError(f"{path}: truncated ({error}).") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: undecodable ({error}).") from error
    except OSError as error:
        if error.errno is not None:  # the disk's trouble; bz2 raises a bare OSError for damaged data
            raise
        raise DataError(f"{path}: undecodable ({error}).") from error


def fetch(remote: RemoteFile, home: DataHome, folder: str) -> Path:
    """The file's path under ``<root>/<folder>``, downloaded first when it is missing and ``home.download``.

    Raises ``FileNotFoundError`` with what to do when it can't be had, ``DataError`` when its checksum is wrong.
    """
    path = home.root / folder / remote.name
    if path.is_file():
        return path
    if not home.download:
        raise missing(remote, path, folder, "download=true fetches it")
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):  # runs of one sweep start together
            if not path.is_file():
                _download(remote, part)
                _accept(remote, part, path)
    except (OSError, HTTPException) as error:
        raise missing(remote, path, folder, f"fetching it failed: {error}") from error
    return path


def missing(remote: RemoteFile, path: Path, folder: str, reason: str) -> FileNotFoundError:
    """The error for a file that isn't there: which one, where it belongs, where to get it."""
    return FileNotFoundError(
        f"no file {path.absolute()} ({reason}). Fetch it from {remote.url} and put it there, or point SPECTRAL_DATA "
        f"or data_root=... to a folder that has {folder}/{remote.name}."
    )


def _accept(remote: RemoteFile, part: Path, path: Path) -> None:
    found = remote.checksum_of(part)
    if found != remote.checksum:
        part.unlink()
        raise DataError(f"{remote.url}: expected {remote.checksum}, found {found}; the download was removed.")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def _download(remote: RemoteFile, part: Path) -> None:
    """Bring ``part`` to the end of the remote file, from the byte where it stopped if the server can."""
    have = part.stat().st_size if part.is_file() else 0
    request = Request(remote.url, headers={"User-Agent": "spectral-run"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if have and error.code == 416:  # nothing after the last byte we have: the checksum tells whether it is whole
            return
        raise
    with response:
        if response.status not in (200, 206):
            raise OSError(f"the server answered with status {response.status}")
        _append(response, part, have if response.status == 206 else 0)


def _append(response: HTTPResponse, part: Path, have: int) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress,
        part.open("ab" if have else "wb") as file,
    ):
        task = progress.add_task(part.stem, total=total, completed=have)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))
    size = part.stat().st_size
    if total is not None and size < total:  # http.client reports a closed connection as the end of the body
        raise OSError(f"the connection closed after {size} of {total} bytes; run again to resume")
