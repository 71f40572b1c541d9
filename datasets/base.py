"""What a data set is to the runner: settings that touch no file, and a ``load`` that gives three splits of tensors."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from spectral_run.curvature.rows import Rows

Loss: TypeAlias = Literal["cross_entropy", "mse", "binary_cross_entropy"]


class DataError(ValueError):
    """A data file that is there but can't be used: truncated, undecodable, or with values out of range."""


@dataclass(frozen=True)
class DataHome:
    """Where data files lie, and whether a missing one may be fetched from its official source."""

    root: Path
    download: bool = True


@dataclass(frozen=True)
class Split:
    """Inputs ``(rows, *input_shape)`` and targets ``(rows,)`` (class numbers) or ``(rows, outputs)``.

    ``groups``: the number of what each row belongs to (a patient), where rows of one are no independent examples.
    """

    inputs: Rows
    targets: Tensor
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def tensor(self) -> Tensor:
        """All inputs in memory."""
        return self.inputs if isinstance(self.inputs, Tensor) else self.inputs[:]

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """The same rows on a device, with floating-point tensors in ``dtype``; stored ones stay where they are."""
        targets = self.targets.to(dtype) if self.targets.is_floating_point() else self.targets
        return Split(self.inputs.to(device, dtype), targets.to(device), self.groups)


@dataclass(frozen=True)
class Data:
    """Three splits, and what they were read from."""

    name: str
    train: Split
    validation: Split
    test: Split
    files: Mapping[str, str]  # file name -> SHA-256 of its bytes
    official: bool  # every file has the hash of the official release
    notices: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    @property
    def sha256(self) -> str:
        """One hash for all the files: that of a single file, else of the sorted ``name:hash`` lines."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))
        lines = "".join(f"{name}:{digest}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def to(self, device: torch.device, dtype: torch.dtype) -> Data:
        """The same data, resident on a device."""
        return replace(
            self,
            train=self.train.to(device, dtype),
            validation=self.validation.to(device, dtype),
            test=self.test.to(device, dtype),
        )


class Dataset(ABC):
    """A data set's settings. Constructing one reads nothing; ``load`` reads, checks and splits.

    ``loss`` is the training loss that goes with the targets: class numbers, real values, or a 0 or 1 per output.
    """

    loss: Loss = "cross_entropy"

    @property
    @abstractmethod
    def name(self) -> str:
        """The name on the command line."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes, or of outputs where the targets are no class numbers."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """A name for each of them."""
        return tuple(str(number) for number in range(self.classes))

    @property
    def standardized(self) -> bool:
        """Whether every feature has mean 0 and variance 1 over the training split."""
        return False

    def prepare(self, home: DataHome) -> None:  # noqa: B027  (optional: a bundled data set has no files)
        """Fetch missing files or raise ``FileNotFoundError``; called before any work."""

    @abstractmethod
    def load(self, home: DataHome) -> Data:
        """Read, check and split. Raises ``FileNotFoundError`` or ``DataError``, each naming the file."""


def check_data(data: Data, dataset: Dataset) -> None:
    """Raise ``DataError`` naming split and row where the data are not what the data set says of them."""
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        where = f"{dataset.name}, {name} split"
        if len(split) == 0 or len(split) != len(split.targets):
            raise DataError(f"{where}: needs as many inputs as targets and at least one, got {len(split)} inputs.")
        if tuple(split.inputs.shape[1:]) != tuple(dataset.input_shape):
            got = tuple(split.inputs.shape[1:])
            raise DataError(f"{where}: inputs must have the shape {tuple(dataset.input_shape)}, got {got}.")
        # Rows that are no tensor are stored as integers, all of them finite.
        for tensor in (split.inputs, split.targets):
            if isinstance(tensor, Tensor):
                bad = ~torch.isfinite(tensor).flatten(1).all(1) if tensor.dim() > 1 else ~torch.isfinite(tensor)
                if bad.any():
                    raise DataError(f"{where}: row {int(bad.nonzero()[0])} holds a number that is not finite.")
        if split.groups is not None and tuple(split.groups.shape) != (len(split),):
            got = tuple(split.groups.shape)
            raise DataError(f"{where}: groups must have the shape {(len(split),)}, got {got}.")
        if dataset.loss == "binary_cross_entropy":
            if tuple(split.targets.shape) != (len(split), dataset.classes) or not split.targets.is_floating_point():
                raise DataError(
                    f"{where}: targets must be floating-point numbers of shape {(len(split), dataset.classes)}, "
                    f"got {split.targets.dtype} of shape {tuple(split.targets.shape)}."
                )
            bad = ((split.targets != 0) & (split.targets != 1)).any(1)
            if bad.any():
                raise DataError(f"{where}: targets must be 0 or 1, and row {int(bad.nonzero()[0])} has others.")
        if dataset.loss == "cross_entropy":
            if split.targets.dtype != torch.int64:
                raise DataError(f"{where}: targets must be class numbers (int64), got {split.targets.dtype}.")
            bad = (split.targets < 0) | (split.targets >= dataset.classes)
            if bad.any():
                row = int(bad.nonzero()[0])
                raise DataError(
                    f"{where}: label must be in [0, {dataset.classes - 1}], got {int(split.targets[row])} in row {row}."
                )
