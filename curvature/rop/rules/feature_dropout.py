"""Dropout of whole channels: a product with a mask, drawn by the first pass as torch draws it and then kept."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Scaled


@final
class FeatureDropout(Scaled):
    """``nn.Dropout1d``, ``nn.Dropout2d``, ``nn.Dropout3d`` on batched input."""

    modules = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    functions = (F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout)
    keeps_draws = True
    views = True  # in evaluation mode

    @staticmethod
    def arguments(module: Any) -> tuple[int | float, bool]:
        """Probability and mode."""
        return module.p, module.training

    def forward0(self, input: Tensor, p: int | float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """The input times the mask, or the input in evaluation mode."""
        if input.dim() < 3:
            raise ValueError(f"FeatureDropout: input must be (rows, channels, ...), got shape {tuple(input.shape)}.")
        if self.draws is None and training and p > 0:
            self.draws = torch.feature_dropout(torch.ones_like(input), p, True)
        self.slope = self.draws
        return self.apply(input)
