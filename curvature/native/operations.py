"""Operations of ``kernels.cpp`` as records, and a list of them that runs by one call.

A record holds addresses, so a list keeps the tensors and tables it names alive.  Every tensor has the kernels' layout:
``(positions, channels, rows)`` contiguous, ``rows`` (the batch, padded) a multiple of 16.  See the kernels for what
each operation computes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spectral_run.curvature.native.build import library

Table = npt.NDArray[np.int32]
LANES = 16  # rows are padded to a multiple of it: a register of the widest kind holds 16 floats

_RECORD = np.dtype(
    [("code", "i4"), ("size", "i4", 15), ("scale", "f8", 3), ("table", "u8"), ("inputs", "u8", 6), ("outputs", "u8", 4)]
)
_CODES = (
    "apply", "weights", "bias", "products", "leaky", "max_pool", "select", "scatter", "mean", "spread", "softmax",
    "softmax_jet", "sigmoid", "square",
)  # fmt: skip


@final
@dataclass(frozen=True)
class Term:
    """``scale * weights applied to data`` in a sum; for gradients of weights, ``left`` is the cotangent."""

    scale: float
    left: Tensor
    right: Tensor


@final
class Operations:
    """A growing list; ``run`` carries it out in order. Cost of the call itself: about a microsecond."""

    def __init__(self) -> None:
        self._steps: list[npt.NDArray[Any] | Callable[[], None]] = []
        self._alive: list[object] = []
        self._packed: list[tuple[npt.NDArray[Any], int, int] | Callable[[], None]] | None = None

    def add(
        self,
        name: str,
        sizes: Sequence[int],
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor | None],
        *,
        scales: Sequence[float] = (),
        table: Table | None = None,
    ) -> None:
        """One operation more; absent tensors are null addresses."""
        record = np.zeros((), dtype=_RECORD)
        record["code"] = _CODES.index(name)
        record["size"][: len(sizes)] = sizes
        record["scale"] = 1.0
        record["scale"][: len(scales)] = scales
        record["table"] = 0 if table is None else table.ctypes.data
        record["inputs"][: len(inputs)] = [0 if x is None else x.data_ptr() for x in inputs]
        record["outputs"][: len(outputs)] = [0 if x is None else x.data_ptr() for x in outputs]
        self._steps.append(record)
        self._alive += [table, *inputs, *outputs]
        self._packed = None

    def call(self, step: Callable[[], None]) -> None:
        """One step more that is no kernel: what runs once per batch may be torch's own."""
        self._steps.append(step)
        self._packed = None

    def run(self, dtype: torch.dtype) -> None:
        """Carry out all operations on the tensors they name."""
        kernels = library().run_float if dtype == torch.float32 else library().run_double
        if self._packed is None:
            self._packed = self._pack()
        for step in self._packed:
            if callable(step):
                step()
            else:
                kernels(step[1], step[2])

    def _pack(self) -> list[tuple[npt.NDArray[Any], int, int] | Callable[[], None]]:
        """Records side by side, with their address and number, and the steps between them."""
        packed: list[tuple[npt.NDArray[Any], int, int] | Callable[[], None]] = []
        for called, steps in itertools.groupby(self._steps, key=callable):
            if called:
                packed += cast(Any, steps)
            else:
                records = np.array(list(steps), dtype=_RECORD)
                packed.append((records, records.ctypes.data, len(records)))
        return packed
