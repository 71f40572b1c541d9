"""Average pooling in two dimensions."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import LinearMap


@final
class AvgPool(LinearMap):
    """``nn.AvgPool2d``."""

    modules = (nn.AvgPool2d,)
    functions = (F.avg_pool2d,)

    @staticmethod
    def arguments(module: nn.AvgPool2d) -> tuple[Any, ...]:
        """Geometry."""
        geometry = module.kernel_size, module.stride, module.padding, module.ceil_mode
        return *geometry, module.count_include_pad, module.divisor_override

    def forward0(
        self,
        input: Tensor,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        """The averages."""
        kernel, steps, padded = (
            (v, v) if isinstance(v, int) else tuple(v) for v in (kernel_size, stride or kernel_size, padding)
        )
        self.geometry = kernel, steps, padded, ceil_mode, count_include_pad, divisor_override
        self.before = input.shape
        return self.apply(input)

    def apply(self, x: Tensor) -> Tensor:
        """The averages."""
        return F.avg_pool2d(x, *self.geometry)

    def transpose(self, g: Tensor) -> Tensor:
        """Equal shares to a window's entries."""
        x: Tensor = torch.ops.aten.avg_pool2d_backward.default(g, g.new_empty(self.before), *self.geometry)
        return x
