"""Adaptive average pooling in two dimensions; to one number per channel it is a mean."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import LinearMap


@final
class AdaptiveAvgPool(LinearMap):
    """``nn.AdaptiveAvgPool2d``."""

    modules = (nn.AdaptiveAvgPool2d,)
    functions = (F.adaptive_avg_pool2d,)

    @staticmethod
    def arguments(module: nn.AdaptiveAvgPool2d) -> tuple[Any]:
        """Output size."""
        return (module.output_size,)

    def forward0(self, input: Tensor, output_size: Any) -> Tensor:
        """The averages."""
        self.size, self.before = output_size, input.shape
        y = self.apply(input)
        self.single = y.shape[-2:] == (1, 1)
        return y

    def apply(self, x: Tensor) -> Tensor:
        """The averages."""
        return F.adaptive_avg_pool2d(x, self.size)

    def transpose(self, g: Tensor) -> Tensor:
        """Equal shares to a window's entries."""
        if self.single:
            return (g / (self.before[-1] * self.before[-2])).expand(self.before)
        x: Tensor = torch.ops.aten._adaptive_avg_pool2d_backward.default(g, g.new_empty(self.before))
        return x
