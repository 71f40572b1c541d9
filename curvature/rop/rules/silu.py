"""SiLU ``x s(x)``, s the logistic function, whose derivatives are s1, s2, s3: ``s + x s1``, ``2 s1 + x s2``, ..."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Elementwise


@final
class SiLU(Elementwise):
    """``nn.SiLU``."""

    modules = (nn.SiLU,)
    functions = (F.silu,)

    def forward0(self, input: Tensor, inplace: bool = False) -> Tensor:
        """``x s``."""
        self.x = input
        return F.silu(input)

    def first(self) -> Tensor:
        """``s + x s1``."""
        s = torch.sigmoid(self.x)
        return s + self.x * s * (1 - s)

    def second(self) -> Tensor:
        """``2 s1 + x s2``."""
        s = torch.sigmoid(self.x)
        s1 = s * (1 - s)
        return s1 * (2 + self.x * (1 - 2 * s))

    def third(self) -> Tensor:
        """``3 s2 + x s3``."""
        s = torch.sigmoid(self.x)
        s1 = s * (1 - s)
        return s1 * (3 * (1 - 2 * s) + self.x * (1 - 6 * s1))
