"""Mean over some dimensions, or over all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from spectral_run.curvature.rop.forms import LinearMap


@final
class Mean(LinearMap):
    """``torch.mean``."""

    functions = (torch.mean,)
    methods = ("mean",)

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str:
        """Another dtype in the middle of a network is not expected."""
        return "" if given.get("dtype") is None else "dtype must not be given"

    def forward0(
        self, input: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, dtype: None = None
    ) -> Tensor:
        """The mean."""
        dims = list(range(input.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
        self.dims, self.keepdim, self.before = dims, keepdim, input.shape
        self.kept = list(input.shape)
        for d in dims:
            self.kept[d] = 1
        self.count = math.prod(input.shape[d] for d in dims)
        return input.mean(dims, keepdim)

    def apply(self, x: Tensor) -> Tensor:
        """The mean."""
        return x.mean(self.dims, self.keepdim)

    def transpose(self, g: Tensor) -> Tensor:
        """An equal share to each."""
        return (g / self.count).reshape(self.kept).expand(self.before)
