"""ELU: x where positive, else ``alpha (exp(x) - 1)``, all of whose derivatives are ``alpha exp(x)``."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Elementwise


@final
class ELU(Elementwise):
    """``nn.ELU``."""

    modules = (nn.ELU,)
    functions = (F.elu,)

    @staticmethod
    def arguments(module: nn.ELU) -> tuple[int | float]:
        """alpha."""
        return (module.alpha,)

    def forward0(self, input: Tensor, alpha: int | float = 1.0, inplace: bool = False) -> Tensor:
        """The function."""
        self.alpha, self.x = alpha, input
        return F.elu(input, alpha)

    def first(self) -> Tensor:
        """1 on the right."""
        return torch.where(self.x > 0, 1.0, self._exponential())

    def second(self) -> Tensor:
        """0 on the right."""
        return torch.where(self.x > 0, 0.0, self._exponential())

    def third(self) -> Tensor:
        """0 on the right."""
        return self.second()

    def _exponential(self) -> Tensor:
        return self.alpha * torch.exp(self.x.clamp(max=0))
