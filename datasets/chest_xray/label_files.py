"""Label files: columns of a CSV table with a header, plain or gzipped, by name and as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from spectral_run.datasets.base import DataError
from spectral_run.datasets.files import read_bytes

T = TypeVar("T")


def read_columns(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """One list per column, rows in file order. ``DataError`` naming the row, counted from 1 below the header.

    Columns that are not asked for may hold anything: the header of ChestX-ray14 has unquoted commas in its last names.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
        table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: no CSV table ({error}).") from error
    header, rows = ([name.strip() for name in table[0]] if table else []), [row for row in table[1:] if row]
    for name in columns:
        if header.count(name) != 1:
            raise DataError(f"{path}: must have a column {name!r}, has {', '.join(map(repr, header[:20]))}.")
    if not rows:
        raise DataError(f"{path}: has a header and no row.")
    places = [header.index(name) for name in columns]
    for number, row in enumerate(rows, 1):
        if len(row) <= max(places):
            raise DataError(f"{path}: row {number} has {len(row)} columns, the header has {len(header)}.")
    return [[row[place].strip() for row in rows] for place in places]


def parsed(path: Path, column: str, cells: Sequence[str], parse: Callable[[str], T], what: str) -> list[T]:
    """Every cell through ``parse``. ``DataError`` naming row and column where that raises ``ValueError``."""
    values = []
    for number, cell in enumerate(cells, 1):
        try:
            values.append(parse(cell))
        except ValueError as error:
            raise DataError(f"{path}: row {number}, column {column!r} must be {what}, got {cell!r}.") from error
    return values


def refuse_repeats(path: Path, column: str, cells: Sequence[str]) -> None:
    """Raise ``DataError`` where a value comes twice."""
    seen: dict[str, int] = {}
    for number, cell in enumerate(cells, 1):
        if cell in seen:
            raise DataError(f"{path}: rows {seen[cell]} and {number} both have {cell!r} in column {column!r}.")
        seen[cell] = number
