"""Logistic function: with y its value, ``y' = y (1 - y)``, ``y'' = y' (1 - 2 y)``, ``y''' = y' (1 - 6 y')``."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Elementwise


@final
class Sigmoid(Elementwise):
    """``nn.Sigmoid``."""

    modules = (nn.Sigmoid,)
    functions = (torch.sigmoid, F.sigmoid)
    methods = ("sigmoid",)

    def forward0(self, input: Tensor) -> Tensor:
        """The logistic function."""
        self.y = torch.sigmoid(input)
        return self.y

    def first(self) -> Tensor:
        """``y (1 - y)``."""
        return self.y * (1 - self.y)

    def second(self) -> Tensor:
        """``y' (1 - 2 y)``."""
        return self.slope * (1 - 2 * self.y)

    def third(self) -> Tensor:
        """``y' (1 - 6 y')``."""
        return self.slope * (1 - 6 * self.slope)
