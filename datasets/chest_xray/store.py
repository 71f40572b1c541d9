"""Decoded images on the disk: each file is decoded once per size, by several workers, and not read again.

A store is a folder in ``cache_folder()/images`` for one image folder, one size and one version of Pillow (another one's
JPEG decoder may round otherwise). ``pixels.u8`` holds (rows, resize, resize) grey levels; ``index.jsonl`` a line per
file: its name, size, modification time, SHA-256, and its row or why it can't be decoded. Both only grow, the pixels
first, so a killed decode goes on after its last whole line, and rows that another process has mapped stay as they are.
A file whose size and modification time are those of its line counts as unchanged; it is not opened.

Cost: 5 ms for a PNG of 1024x1024, 10 minutes of one core for ChestX-ray14, besides reading its 45 GB; ``resize**2``
bytes an image, 7.3 GB for it at 256. The workers are threads: Pillow decodes and resizes without the interpreter's
lock (2 threads were 1.97 times as fast as one, 2 processes 1.81 times), and none outlives a killed run.
Fails where a file is replaced by another of its size and modification time: the old pixels stay.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias, final

import numpy as np
import PIL
from filelock import FileLock, Timeout
from jaxtyping import Int64, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spectral_run.datasets.cache import cache_folder

CHUNK: Final = 64  # images between two writes: what a kill can lose, some 0.3 s of one core
FORMAT: Final = 1  # of the two files
FORMATS: Final = ("PNG", "JPEG")

Pixels: TypeAlias = UInt8[np.ndarray, "height width"]


@final
@dataclass(frozen=True)
class Decoded:
    """Where the pixels of each asked-for file are."""

    pixels: UInt8[np.ndarray, "stored height width"]  # a read-only map of the store, else an array
    rows: Int64[np.ndarray, " files"]  # of each file, in the order asked for; -1 where it is bad
    hashes: tuple[str, ...]  # SHA-256 of each file's bytes; "" where it could not be read
    bad: Mapping[str, str]  # name -> "missing", or why it can't be decoded
    notices: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Entry:
    """A line of the index."""

    name: str
    size: int
    time: int  # of modification, in nanoseconds
    sha256: str
    row: int  # -1 where there are no pixels
    reason: str = ""  # why there are none
    pixels: Pixels | None = field(default=None, compare=False)  # until they are written

    @property
    def content(self) -> bytes:
        """For the file of pixels."""
        return b"" if self.pixels is None else self.pixels.tobytes()

    def line(self) -> bytes:
        """For the index."""
        values = [self.name, self.size, self.time, self.sha256, self.row, self.reason]
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def decode_folder(folder: Path, names: Sequence[str], resize: int, workers: int | None = None) -> Decoded:
    """Grey levels of the images ``folder/name``, resized to a square, from the store or decoded into it.

    ``workers``: threads that decode, by default one per core that this process may use. A second process that wants
    the same images waits until the first is through. Where nothing can be written they are decoded into memory.
    """
    found = _ask(folder, names)
    place = _place(folder, resize)
    if place is None:
        return _in_memory(folder, names, found, resize, workers, "there is no home folder to keep them in")
    try:
        with _writable(place, folder):
            store = _Store(place, folder, resize)
            store.add(folder, found, workers)
            return store.decoded(names, found)
    except _UnwritableError as error:
        store = _Store(place, folder, resize)
        if store.lacking(found):
            return _in_memory(folder, names, found, resize, workers, str(error))
        return store.decoded(names, found)


def read_image(path: Path, name: str, resize: int) -> Entry:
    """One file, decoded. Raises ``OSError`` where it can't be read."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        content = file.read()
    digest = hashlib.sha256(content).hexdigest()
    pixels, reason = None, ""
    try:
        pixels = decode(content, resize)
    except (OSError, SyntaxError, ValueError, OverflowError, struct.error, zlib.error) as error:  # Pillow's
        reason = "no PNG or JPEG image" if isinstance(error, PIL.UnidentifiedImageError) else str(error)
    except Image.DecompressionBombError as error:
        reason = str(error)
    return Entry(name, status.st_size, status.st_mtime_ns, digest, -1, reason, pixels)


def decode(content: bytes, resize: int) -> Pixels:
    """Grey levels (resize, resize) of a PNG or JPEG: bilinear, antialiased, without keeping the proportions.

    Color becomes grey as Pillow has it (ITU-R 601), transparency is dropped, 16 bits become 8 by a division by 257.
    """
    if not content:
        raise ValueError("no byte in it")
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        image.info.pop("transparency", None)  # of a palette: Pillow would warn that grey has none
        deep = image.mode.startswith("I")
        grey = Image.fromarray(np.asarray(image, np.float32) / 257) if deep else image.convert("L")
        levels = np.asarray(grey.resize((resize, resize), Image.Resampling.BILINEAR))
    return levels.round().clip(0, 255).astype(np.uint8) if deep else levels


Found: TypeAlias = dict[str, os.stat_result]  # the files that are there


def _ask(folder: Path, names: Iterable[str]) -> Found:
    found = {}
    for name in names:
        try:
            found[name] = os.stat(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found


def _place(folder: Path, resize: int) -> Path | None:
    cache = cache_folder()
    if cache is None:
        return None
    key = f"{folder.resolve()}\n{resize}\n{PIL.__version__}\n{FORMAT}"
    return cache / "images" / f"{folder.name}-{resize}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


class _UnwritableError(OSError):
    """There can be no store."""


@contextmanager
def _writable(place: Path, folder: Path) -> Iterator[None]:
    """A place for a store, to ourselves. The system lets go of the lock when its holder dies, however that is."""
    lock = FileLock(place / "lock")
    try:
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if sys.stderr.isatty():
                print(f"waiting for another run that decodes {folder}", file=sys.stderr)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter from a file system without locks
        raise _UnwritableError(f"{place} can't be written ({getattr(error, 'strerror', None) or error})") from error
    try:
        yield
    finally:
        lock.release()


class _Store:
    """The two files of a store. ``add`` wants its lock held."""

    def __init__(self, place: Path, folder: Path, resize: int) -> None:
        self.place, self.resize = place, resize
        self._header = {"folder": str(folder.resolve()), "resize": resize, "pillow": PIL.__version__, "format": FORMAT}
        self._pixels, self._index = place / "pixels.u8", place / "index.jsonl"
        self.entries: dict[str, Entry] = {}
        whole = self._pixels.stat().st_size // resize**2 if self._pixels.is_file() else 0
        self.rows = 0  # that entries have
        for entry in _read_index(self._index):
            if entry.row < whole:  # else its pixels were lost
                self.entries[entry.name] = entry
                self.rows = max(self.rows, entry.row + 1)

    def lacking(self, found: Found) -> list[str]:
        """Files that there is no line for, or one of another size or time."""
        names = []
        for name, status in found.items():
            entry = self.entries.get(name)
            if entry is None or (entry.size, entry.time) != (status.st_size, status.st_mtime_ns):
                names.append(name)
        return names

    def add(self, folder: Path, found: Found, workers: int | None) -> None:
        """Decode what is lacking, a chunk at a time onto the disk."""
        names = self.lacking(found)
        if not names:
            return
        need, free = len(names) * self.resize**2, shutil.disk_usage(self.place).free
        if need > free:
            raise OSError(
                f"{self.place} needs {_size(need)} for decoded images, and {_size(free)} are free; "
                f"make room, or let XDG_CACHE_HOME name another folder."
            )
        self._pixels.touch()
        with self._pixels.open("r+b") as pixels, self._index.open("a+b") as index:
            if index.tell() == 0:
                index.write(json.dumps(self._header).encode() + b"\n")
            else:
                index.seek(-1, os.SEEK_END)
                if index.read(1) != b"\n":  # a line cut short by a kill
                    index.write(b"\n")
            pixels.seek(self.rows * self.resize**2)
            for chunk in _chunks(folder, names, self.resize, workers):
                for file, lines in ((pixels, [entry.content for entry in chunk]), (index, self._lines(chunk))):
                    file.write(b"".join(lines))
                    file.flush()
                    os.fsync(file.fileno())

    def _lines(self, chunk: Iterable[Entry]) -> Iterator[bytes]:
        """The chunk's, with the rows that its pixels went to."""
        for entry in chunk:
            good = entry.pixels is not None
            self.entries[entry.name] = kept = replace(entry, row=self.rows if good else -1, pixels=None)
            self.rows += good
            if kept.sha256:  # what could not be opened is tried again the next time
                yield kept.line()

    def decoded(self, names: Sequence[str], found: Found) -> Decoded:
        """What is asked for, the pixels as a map that reads what is indexed."""
        shape = (self.rows, self.resize, self.resize)
        pixels = np.memmap(self._pixels, np.uint8, "r", shape=shape) if self.rows else np.empty(shape, np.uint8)
        return _decoded(pixels, names, found, self.entries)


def _read_index(path: Path) -> Iterator[Entry]:
    """Its whole lines, in order; the header and damaged ones are passed over."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                name, size, time, sha256, row, reason = json.loads(line)
                yield Entry(str(name), int(size), int(time), str(sha256), int(row), str(reason))
            except (ValueError, TypeError):
                continue


def _chunks(folder: Path, names: Sequence[str], resize: int, workers: int | None) -> Iterator[list[Entry]]:
    """Decoded images in order; while a chunk is written the next one is under way."""

    def one(name: str) -> Entry:
        try:
            return read_image(folder / name, name, resize)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)  # since it was asked for
            return Entry(name, 0, 0, "", -1, "missing" if missing else f"{error.strerror or error}")

    workers = min(workers or cores(), len(names))
    columns = (TextColumn("decoding {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    pool = ThreadPoolExecutor(workers, "decode")
    try:
        with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task(folder.name, total=len(names))
            coming = pool.map(one, names[:CHUNK])
            for start in range(0, len(names), CHUNK):
                chunk, coming = coming, pool.map(one, names[start + CHUNK : start + 2 * CHUNK])
                done = list(chunk)
                yield done
                progress.advance(task, len(done))
    finally:
        pool.shutdown(cancel_futures=True)


def _in_memory(folder: Path, names: Sequence[str], found: Found, resize: int, workers: int | None, why: str) -> Decoded:
    pixels = np.empty((len(found), resize, resize), np.uint8)
    entries, row = {}, 0
    for chunk in _chunks(folder, list(found), resize, workers) if found else ():
        for entry in chunk:
            entries[entry.name] = replace(entry, row=-1 if entry.pixels is None else row, pixels=None)
            if entry.pixels is not None:
                pixels[row] = entry.pixels
                row += 1
    size = _size(pixels.nbytes)
    notice = f"{len(found)} images of {folder} are decoded into memory ({size}) and will be in every run: {why}"
    return _decoded(pixels, names, found, entries, notice)


def _decoded(
    pixels: UInt8[np.ndarray, "stored height width"],
    names: Sequence[str],
    found: Found,
    entries: Mapping[str, Entry],
    *notices: str,
) -> Decoded:
    rows, hashes, bad = np.full(len(names), -1, np.int64), [], {}
    for number, name in enumerate(names):
        entry = entries[name] if name in found else None
        rows[number] = -1 if entry is None else entry.row
        hashes.append("" if entry is None else entry.sha256)
        if entry is None or entry.row < 0:
            bad[name] = "missing" if entry is None else entry.reason
    return Decoded(pixels, rows, tuple(hashes), bad, notices)


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
