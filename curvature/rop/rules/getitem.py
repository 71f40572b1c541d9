"""Indexing by integers, slices, ``None`` and ``...``."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import EllipsisType
from typing import Any, final

from torch import Tensor

from spectral_run.curvature.rop.forms import LinearMap


@final
class GetItem(LinearMap):
    """``x[index]``."""

    functions = (operator.getitem,)
    views = True

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str:
        """Lists and tensors of places may name one twice."""
        index = given["index"]
        parts = index if isinstance(index, tuple) else (index,)
        wrong = [p for p in parts if isinstance(p, (list, Tensor, bool))]
        return f"an index must be made of integers, slices, None and ..., got {wrong[0]!r}" if wrong else ""

    def forward0(self, input: Tensor, index: int | slice | EllipsisType | tuple[Any, ...] | None) -> Tensor:
        """The part."""
        self.index, self.before = index, input.shape
        return input[index]

    def apply(self, x: Tensor) -> Tensor:
        """The part."""
        return x[self.index]

    def transpose(self, g: Tensor) -> Tensor:
        """Zeros but for the part."""
        x = g.new_zeros(self.before)
        x[self.index] = g
        return x
