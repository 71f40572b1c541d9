"""Group normalization: groups of channels of every row."""

from __future__ import annotations

from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.normalization import Normalization


@final
class GroupNorm(Normalization):
    """``nn.GroupNorm``."""

    modules = (nn.GroupNorm,)
    functions = (F.group_norm,)

    @staticmethod
    def arguments(module: nn.GroupNorm) -> tuple[Any, ...]:
        """Groups, weight, bias and eps."""
        return module.num_groups, module.weight, module.bias, module.eps

    def forward0(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: int | float = 1e-5,
    ) -> Tensor:
        """The normalized input."""
        rows, channels, *rest = input.shape
        inner = [rows, num_groups, channels // num_groups, *rest]
        affine = [1, *inner[1:3], *[1] * len(rest)]
        return self.begin(input, weight, bias, eps, dims=range(2, len(inner)), affine=affine, inner=inner)
