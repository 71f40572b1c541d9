"""Flattening of a range of dimensions."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import LinearMap


@final
class Flatten(LinearMap):
    """``nn.Flatten`` (from dimension 1) and ``torch.flatten`` (from dimension 0)."""

    modules = (nn.Flatten,)
    functions = (torch.flatten,)
    methods = ("flatten",)
    views = True

    @staticmethod
    def arguments(module: nn.Flatten) -> tuple[int, int]:
        """The range."""
        return module.start_dim, module.end_dim

    def forward0(self, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """The flattened tensor."""
        y = torch.flatten(input, start_dim, end_dim)
        self.before, self.after = input.shape, y.shape
        return y

    def apply(self, x: Tensor) -> Tensor:
        """To the new shape."""
        return x.reshape(self.after)

    def transpose(self, g: Tensor) -> Tensor:
        """To the old shape."""
        return g.reshape(self.before)
