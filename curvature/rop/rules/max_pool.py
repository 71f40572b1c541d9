"""Max pooling in two dimensions: the places of the maxima are found once, then every order is a gather or a scatter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Selection


@final
class MaxPool(Selection):
    """``nn.MaxPool2d``; of equal entries torch takes the first, and so does every derivative."""

    modules = (nn.MaxPool2d,)
    functions = (F.max_pool2d, torch.max_pool2d)

    @staticmethod
    def arguments(module: nn.MaxPool2d) -> tuple[Any, ...]:
        """Geometry."""
        geometry = module.kernel_size, module.stride, module.padding, module.dilation
        return *geometry, module.ceil_mode, module.return_indices

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str:
        """Indices are no function of the parameters."""
        return "return_indices must be False" if given.get("return_indices") else ""

    def forward0(
        self,
        input: Tensor,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        """The maxima."""
        y, places = F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True)
        kernel, steps, dilations = (_pair(v) for v in (kernel_size, stride or kernel_size, dilation))
        distinct = all(s > d * (k - 1) for k, s, d in zip(kernel, steps, dilations, strict=True))
        return self.select(input, y, places, spatial=2, distinct=distinct)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else value
