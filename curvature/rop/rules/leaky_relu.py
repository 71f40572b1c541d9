"""Leaky ReLU: ``x`` where positive, else ``negative_slope x``; higher derivatives are zero almost everywhere."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Scaled


@final
class LeakyReLU(Scaled):
    """``nn.LeakyReLU``."""

    modules = (nn.LeakyReLU,)
    functions = (F.leaky_relu,)

    @staticmethod
    def arguments(module: nn.LeakyReLU) -> tuple[int | float]:
        """The slope on the left."""
        return (module.negative_slope,)

    def forward0(self, input: Tensor, negative_slope: int | float = 0.01, inplace: bool = False) -> Tensor:
        """The two half lines."""
        self.slope = (input > 0).to(input.dtype).mul_(1 - negative_slope).add_(negative_slope)
        return F.leaky_relu(input, negative_slope)
