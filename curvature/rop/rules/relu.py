"""ReLU ``max(x, 0)``: zero where the output is zero, else the identity; higher derivatives are zero almost everywhere.

Keeps the output, which the next layer keeps anyway, and no mask.
"""

from __future__ import annotations

from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import LinearMap

_where_positive = torch.ops.aten.threshold_backward.default


@final
class ReLU(LinearMap):
    """``nn.ReLU``; the derivative at 0 is 0, as in torch."""

    modules = (nn.ReLU,)
    functions = (F.relu, torch.relu)
    methods = ("relu",)

    def forward0(self, input: Tensor, inplace: bool = False) -> Tensor:
        """The positive part."""
        self.y = torch.relu(input)
        return self.y

    def apply(self, x: Tensor) -> Tensor:
        """x where the output is positive."""
        return cast(Tensor, _where_positive(x, self.y, 0))

    def transpose(self, g: Tensor) -> Tensor:
        """g where the output is positive."""
        return self.apply(g)
