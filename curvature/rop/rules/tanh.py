"""Hyperbolic tangent: with y its value, ``y' = 1 - y^2``, ``y'' = -2 y y'``, ``y''' = (6 y^2 - 2) y'``."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Elementwise


@final
class Tanh(Elementwise):
    """``nn.Tanh``."""

    modules = (nn.Tanh,)
    functions = (torch.tanh, F.tanh)
    methods = ("tanh",)

    def forward0(self, input: Tensor) -> Tensor:
        """The hyperbolic tangent."""
        self.y = torch.tanh(input)
        return self.y

    def first(self) -> Tensor:
        """``1 - y^2``."""
        return 1 - self.y * self.y

    def second(self) -> Tensor:
        """``-2 y y'``."""
        return (self.y * self.slope).mul_(-2)

    def third(self) -> Tensor:
        """``(6 y^2 - 2) y'``, where ``y^2 = 1 - y'``."""
        return (4 - 6 * self.slope).mul_(self.slope)
