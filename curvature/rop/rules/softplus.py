"""Softplus ``log(1 + exp(beta x)) / beta``, and x itself where ``beta x > threshold``, as in torch.

With s the logistic function of ``beta x``: ``s``, ``beta s (1 - s)``, ``beta^2 s (1 - s) (1 - 2 s)``; beyond the
threshold 1, 0, 0.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Elementwise


@final
class Softplus(Elementwise):
    """``nn.Softplus``."""

    modules = (nn.Softplus,)
    functions = (F.softplus,)

    @staticmethod
    def arguments(module: nn.Softplus) -> tuple[int | float, int | float]:
        """beta and threshold."""
        return module.beta, module.threshold

    def forward0(self, input: Tensor, beta: int | float = 1.0, threshold: int | float = 20.0) -> Tensor:
        """The soft positive part."""
        self.beta, self.threshold, self.x = beta, threshold, input
        return F.softplus(input, beta, threshold)

    def first(self) -> Tensor:
        """``s``; 1 beyond the threshold, so that both other derivatives vanish there of themselves."""
        scaled = self.x * self.beta
        return torch.sigmoid(scaled).masked_fill_(scaled > self.threshold, 1.0)

    def second(self) -> Tensor:
        """``beta s (1 - s)``."""
        return (self.slope * (1 - self.slope)).mul_(self.beta)

    def third(self) -> Tensor:
        """``beta^2 s (1 - s) (1 - 2 s)``."""
        return self.slope * (1 - self.slope) * (1 - 2 * self.slope) * self.beta**2
