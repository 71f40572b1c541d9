"""Rows of a split, wherever they lie: a tensor, or images on a disk that become one a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Rows(Protocol):
    """What is asked of a split's inputs; every tensor has it. ``rows[...]`` gives a tensor of floating-point type."""

    @property
    def shape(self) -> torch.Size:
        """``(rows, *input_shape)``."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors that pieces are."""

    @property
    def device(self) -> torch.device:
        """Where the tensors that pieces are lie."""

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Rows:
        """The same rows, whose pieces lie there."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor: ...


def pieces(inputs: Rows, size: int, rows: slice = slice(None)) -> Iterator[Tensor]:
    """Consecutive rows, ``size`` at a time, one piece in memory: ``torch.split`` for any rows, or a range of them."""
    for part in spans(len(inputs), size, rows):
        yield inputs[part]


def spans(count: int, size: int, rows: slice = slice(None)) -> Iterator[slice]:
    """The range of ``count`` rows, cut into ranges of ``size``, the last one shorter."""
    start, stop, _ = rows.indices(count)
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
