"""Forest cover: cartographic features of 581,012 patches of 30x30 m and the tree species that grows there.

Source: Blackard and Dean 1999, UCI "Covertype", as ``<root>/covtype/covtype.data.gz`` (what scikit-learn fetches).
Inputs (54,): 10 measurements, 4 wilderness areas and 40 soil types (0 or 1), each with mean 0 and variance 1 over the
training split; 7 classes. Any number of rows is taken, a subset of the release included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float64, Int64

from spectral_run.datasets.base import Data, DataError, DataHome, Dataset
from spectral_run.datasets.files import RemoteFile, fetch, provenance, read_bytes
from spectral_run.datasets.splits import check_fraction, check_rows, check_seed, split_of, subsample, three_way
from spectral_run.datasets.tables import check_range, parse_table

OFFICIAL = RemoteFile(  # the copy that scikit-learn's fetch_covtype takes
    name="covtype.data.gz",
    url="https://ndownloader.figshare.com/files/5976039",
    sha256="614360d0257557dd1792834a85a1cdebfadc3c4f30b011d56afee7ffb5b15771",
)
MEASUREMENTS, AREAS, SOILS = 10, 4, 40
FEATURES = MEASUREMENTS + AREAS + SOILS
CLASSES = 7


@final
@dataclass(frozen=True, kw_only=True)
class Covtype(Dataset):
    """Forest cover, split at random by class; ``rows`` takes a stratified sample first, for quick runs."""

    validation_fraction: float = 0.16
    test_fraction: float = 0.20
    rows: int | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_fraction("Covtype", "validation_fraction", self.validation_fraction)
        check_fraction("Covtype", "test_fraction", self.test_fraction)
        check_fraction("Covtype", "validation_fraction + test_fraction", self.validation_fraction + self.test_fraction)
        check_rows("Covtype", "rows", self.rows)
        check_seed("Covtype", "split_seed", self.split_seed)

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "covtype"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The 54 columns."""
        return (FEATURES,)

    @property
    def classes(self) -> int:
        """Seven tree species."""
        return CLASSES

    @property
    def standardized(self) -> bool:
        """True: of all columns, the binary ones included, as the covariate shift test needs."""
        return True

    def prepare(self, home: DataHome) -> None:
        """Find or fetch the file."""
        fetch(OFFICIAL, home, self.name)

    def load(self, home: DataHome) -> Data:
        """Read, check, split and standardize."""
        path = fetch(OFFICIAL, home, self.name)
        features, labels = read_covtype(path)
        if self.rows is not None:
            chosen = subsample("Covtype", labels, self.rows, self.split_seed)
            features, labels = features[chosen], labels[chosen]
        parts = three_way("Covtype", labels, self.validation_fraction, self.test_fraction, self.split_seed)
        features, constant = standardize(features, parts[0])
        notices: tuple[str, ...] = ()
        if constant:
            names = ", ".join(column_name(column) for column in constant)
            notices = (f"constant over the training split, so 0 there and not scaled: {names}",)
        train, validation, test = (split_of(features[rows], labels[rows]) for rows in parts)
        source = provenance([(OFFICIAL, path)])
        return Data(
            name=self.name,
            train=train,
            validation=validation,
            test=test,
            files=source.files,
            official=source.official,
            notices=source.notices + notices,
        )


def read_covtype(path: Path) -> tuple[Float64[np.ndarray, "rows 54"], Int64[np.ndarray, " rows"]]:
    """Raw features, and labels 0..6 (1..7 in the file's last column)."""
    table = parse_table(read_bytes(path), path, FEATURES + 1, ",")
    fractional = np.argwhere(table != table.round())
    if len(fractional):
        row, column = fractional[0]
        raise DataError(f"{path}: row {row + 1}, column {column + 1} must be an integer, got {table[row, column]:g}.")
    features, labels = table[:, :FEATURES], table[:, FEATURES:]
    check_range(labels, path, [FEATURES + 1], 1, CLASSES)
    check_range(features[:, MEASUREMENTS:], path, range(MEASUREMENTS + 1, FEATURES + 1), 0, 1)
    return features, labels[:, 0].astype(np.int64) - 1


def standardize(
    features: Float64[np.ndarray, "rows columns"], train: Int64[np.ndarray, " train"]
) -> tuple[Float64[np.ndarray, "rows columns"], list[int]]:
    """Every row minus the training mean, over the training standard deviation; and the columns constant in training.

    A constant column is divided by 1. The deviation is the population's (over n, not n - 1).
    """
    sample = features[train]
    spread = sample.std(axis=0)
    constant = np.flatnonzero(sample.min(axis=0) == sample.max(axis=0))
    spread[constant] = 1.0
    return (features - sample.mean(axis=0)) / spread, [int(column) for column in constant]


def column_name(column: int) -> str:
    """Name of a column counted from 0: the release numbers areas and soil types from 1."""
    if column < MEASUREMENTS:
        return f"measurement_{column + 1}"
    if column < MEASUREMENTS + AREAS:
        return f"wilderness_area_{column - MEASUREMENTS + 1}"
    return f"soil_type_{column - MEASUREMENTS - AREAS + 1}"
