"""Text tables of numbers, checked cell by cell: every error names the file, the row and the column, counted from 1."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64

from spectral_run.datasets.base import DataError


def parse_table(content: bytes, path: Path, columns: int, separator: str) -> Float64[np.ndarray, "rows columns"]:
    """Finite numbers, ``columns`` to a row. ``DataError`` otherwise, naming ``path``, where the content came from."""
    try:
        frame = pd.read_csv(io.BytesIO(content), sep=separator, header=None, low_memory=False)
    except ValueError as error:  # no row at all, a row longer than the first, or bytes that are no text
        raise DataError(f"{path}: no table of {columns} columns ({str(error).strip()}).") from error
    if frame.shape[1] != columns:
        raise DataError(f"{path}: row 1 has {frame.shape[1]} columns, the layout has {columns}.")
    values: Float64[np.ndarray, "rows columns"]
    values = frame.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        cell = frame.iloc[row, column]
        raise DataError(
            f"{path}: row {row + 1}, column {column + 1} must be a finite number, got {cell!s}"
            f" ({columns} columns are needed)."
        )
    return values


def check_range(
    values: Float64[np.ndarray, "rows columns"], path: Path, numbers: Sequence[int], low: int, high: int
) -> None:
    """Raise ``DataError`` for a value outside ``[low, high]``; ``numbers`` are the file's numbers of the columns."""
    bad = np.argwhere((values < low) | (values > high))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{path}: row {row + 1}, column {numbers[column]} must be in [{low}, {high}], got {values[row, column]:g}."
        )
