"""Digits: 1,797 handwritten digits of 8x8 pixels, bundled with scikit-learn, so nothing is downloaded.

Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (its test part).
Inputs (1, 8, 8), grey levels 0..16 divided by 16; 10 classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import numpy as np
from sklearn.datasets import load_digits

from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.datasets.splits import check_fraction, check_seed, split_of, three_way


@final
@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """The bundled digits, split at random by class."""

    validation_fraction: float = 0.16
    test_fraction: float = 0.20
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_fraction("Digits", "validation_fraction", self.validation_fraction)
        check_fraction("Digits", "test_fraction", self.test_fraction)
        check_fraction("Digits", "validation_fraction + test_fraction", self.validation_fraction + self.test_fraction)
        check_seed("Digits", "split_seed", self.split_seed)

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "digits"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One channel of 8x8."""
        return (1, 8, 8)

    @property
    def classes(self) -> int:
        """The digits 0 to 9."""
        return 10

    def load(self, home: DataHome) -> Data:
        """Read and split. The file hash is that of the grey levels followed by the labels, one byte each."""
        bunch = load_digits()
        levels = bunch.images.astype(np.uint8)
        labels = bunch.target.astype(np.int64)
        images = levels[:, None] / np.float32(16)
        parts = three_way("Digits", labels, self.validation_fraction, self.test_fraction, self.split_seed)
        train, validation, test = (split_of(images[rows], labels[rows]) for rows in parts)
        digest = hashlib.sha256(levels.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
        files = {"digits.csv.gz (scikit-learn)": digest}
        return Data(name=self.name, train=train, validation=validation, test=test, files=files, official=True)
