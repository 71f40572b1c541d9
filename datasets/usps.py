"""USPS: 7,291 + 2,007 handwritten digits of 16x16 pixels from envelopes.

Source: Hull 1994, as ``<root>/usps/usps.bz2`` and ``usps.t.bz2``, the LIBSVM files that torchvision opens too.
Inputs (1, 16, 16) in [0, 1]: the grey level, one byte as in torchvision, over 255; 10 classes. Official test split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float32, Int64
from torchvision import datasets as torchvision_datasets

from spectral_run.datasets.base import Data, DataError, DataHome, Dataset
from spectral_run.datasets.files import RemoteFile, fetch, provenance, read_bytes
from spectral_run.datasets.splits import check_fraction, check_seed, hold_out, split_of
from spectral_run.datasets.tables import check_range, parse_table

PIXELS = 256


def _remote(split: str) -> RemoteFile:
    url, name, md5 = torchvision_datasets.USPS.split_list[split]
    return RemoteFile(name=name, url=url, md5=md5)


TRAIN, TEST = _remote("train"), _remote("test")


@final
@dataclass(frozen=True, kw_only=True)
class USPS(Dataset):
    """The USPS digits; part of the official training set becomes the validation set."""

    validation_fraction: float = 1 / 7
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_fraction("USPS", "validation_fraction", self.validation_fraction)
        check_seed("USPS", "split_seed", self.split_seed)

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "usps"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One channel of 16x16."""
        return (1, 16, 16)

    @property
    def classes(self) -> int:
        """The digits 0 to 9."""
        return 10

    def prepare(self, home: DataHome) -> None:
        """Find or fetch both files."""
        for remote in (TRAIN, TEST):
            fetch(remote, home, self.name)

    def load(self, home: DataHome) -> Data:
        """Read, check and split."""
        paths = [fetch(remote, home, self.name) for remote in (TRAIN, TEST)]
        (images, labels), test = (read_libsvm(path) for path in paths)
        kept, held = hold_out("USPS", labels, self.validation_fraction, self.split_seed)
        source = provenance(zip((TRAIN, TEST), paths, strict=True))
        return Data(
            name=self.name,
            train=split_of(images[kept], labels[kept]),
            validation=split_of(images[held], labels[held]),
            test=split_of(*test),
            files=source.files,
            official=source.official,
            notices=source.notices,
        )


def read_libsvm(path: Path) -> tuple[Float32[np.ndarray, "rows 1 16 16"], Int64[np.ndarray, " rows"]]:
    """Images in [0, 1] and labels 0..9 from lines of ``label 1:value ... 256:value``, labels 1..10, values in [-1, 1].

    torchvision's own reader gives the same numbers, but folds rows of another length into other images, ignores the
    indices, and wraps values out of range.
    """
    content = read_bytes(path).replace(b":", b" ")
    table = parse_table(content, path, 1 + 2 * PIXELS, r"\s+")
    labels, indices, values = table[:, :1], table[:, 1::2], table[:, 2::2]
    if not np.array_equal(labels, labels.round()):
        raise DataError(f"{path}: row {_first(labels != labels.round())}, column 1 must be an integer label.")
    check_range(labels, path, [1], 1, 10)
    wrong = indices != np.arange(1, PIXELS + 1)
    if wrong.any():
        raise DataError(f"{path}: row {_first(wrong)} must have the indices 1 to {PIXELS}, each once and in order.")
    check_range(values, path, range(2, PIXELS + 2), -1, 1)
    levels = ((values.astype(np.float32) + 1) / 2 * 255).astype(
        np.uint8
    )  # torchvision's formula: bytes, cut not rounded
    side = math.isqrt(PIXELS)
    return levels.reshape(-1, 1, side, side) / np.float32(255), labels[:, 0].astype(np.int64) - 1


def _first(wrong: np.ndarray) -> int:
    """Number, from 1, of the first row with a true entry."""
    return int(np.flatnonzero(wrong.any(axis=1))[0]) + 1
