"""Dropout: a product with a mask, drawn by the first pass as torch draws it and the same ever after.

The mask is torch's own function of a tensor of ones, so it takes the same numbers from the global generator.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Scaled


@final
class Dropout(Scaled):
    """``nn.Dropout``."""

    modules = (nn.Dropout,)
    functions = (F.dropout, torch.dropout)
    keeps_draws = True
    views = True  # in evaluation mode

    @staticmethod
    def arguments(module: nn.Dropout) -> tuple[int | float, bool]:
        """Probability and mode."""
        return module.p, module.training

    def forward0(self, input: Tensor, p: int | float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """The input times the mask, or the input in evaluation mode."""
        if self.draws is None and training and p > 0:
            self.draws = F.dropout(torch.ones_like(input), p, True)
        self.slope = self.draws
        return self.apply(input)
