"""Seeded stratified splits and subsamples: every part has the class shares of the whole, to within one row.

An integer seed alone decides them, so the rows of a table (other regularizers, other run seeds) share their data.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from sklearn.model_selection import train_test_split
from sklearn.utils import resample

from spectral_run.datasets.base import DataError, Split


def check_fraction(owner: str, name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``0 < value < 1``."""
    if not 0 < value < 1:
        raise ValueError(f"{owner}: {name} must be in (0, 1), got {value}.")


def check_seed(owner: str, name: str, value: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer that scikit-learn takes as a seed."""
    if type(value) is not int or not 0 <= value < 2**32:
        raise ValueError(f"{owner}: {name} must be an integer in [0, 2**32), got {value}.")


def check_rows(owner: str, name: str, value: int | None) -> None:
    """Raise ``ValueError`` unless ``value`` is None (all rows) or a positive integer."""
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{owner}: {name} must be null or an integer >= 1, got {value}.")


def hold_out(
    owner: str, labels: Int64[np.ndarray, " rows"], fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held"]]:
    """Row numbers, each in file order, of the rows kept and of ``floor(fraction * rows)`` rows held out.

    Raises ``DataError`` naming a class that is too small to be on both sides.
    """
    check_members(owner, labels, 2)
    # down, where scikit-learn rounds a float up: 1/7 of 7,291 is the paper's 1,041; 1e-9 absorbs 0.29 * 100 = 28.999...
    held = int(np.floor(fraction * len(labels) + 1e-9))
    kept = len(labels) - held
    classes = len(np.unique(labels))
    if min(held, kept) < classes:
        raise DataError(f"{owner}: {kept} + {held} rows can't both hold all {classes} classes; take more rows.")
    indices = np.arange(len(labels))
    first, second = train_test_split(indices, test_size=held, stratify=labels, random_state=seed)
    return np.sort(first), np.sort(second)


def three_way(
    owner: str, labels: Int64[np.ndarray, " rows"], validation_fraction: float, test_fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"], Int64[np.ndarray, " test"]]:
    """Row numbers of training, validation and test; both fractions are of all rows."""
    check_members(owner, labels, 3)
    rest, test = hold_out(owner, labels, test_fraction, seed)
    train, validation = hold_out(owner, labels[rest], validation_fraction * len(labels) / len(rest), seed)
    return rest[train], rest[validation], test


def subsample(owner: str, labels: Int64[np.ndarray, " rows"], rows: int, seed: int) -> Int64[np.ndarray, " sample"]:
    """Row numbers, in file order, of a stratified sample without replacement."""
    if rows > len(labels):
        raise DataError(f"{owner}: rows must be at most {len(labels)}, the rows in its files, got {rows}.")
    return np.sort(resample(np.arange(len(labels)), replace=False, n_samples=rows, stratify=labels, random_state=seed))


def check_members(owner: str, labels: Int64[np.ndarray, " rows"], least: int) -> None:
    """Raise ``DataError`` for a class with fewer than ``least`` rows: it can't be in every part of a split."""
    for label, members in zip(*np.unique(labels, return_counts=True), strict=True):
        if members < least:
            raise DataError(
                f"{owner}: class {label} has {members} row(s), a stratified split needs {least}; take more rows."
            )


def split_of(inputs: Float[np.ndarray, "rows ..."], labels: Shaped[np.ndarray, "rows ..."]) -> Split:
    """A split that owns its memory, in C order: float32 inputs, int64 class numbers."""
    return Split(
        torch.tensor(np.ascontiguousarray(inputs), dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
    )
