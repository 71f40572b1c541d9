"""Mean (or sum) of squared errors: the gradient is ``2 (z - t) / N``, and the rest follows the outputs."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.base import Jet, LossRule


@final
class MSE(LossRule):
    """``F.mse_loss``."""

    functions = (F.mse_loss,)
    modules = (nn.MSELoss,)
    settings = ("reduction",)

    def cotangent0(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``2 (z - t) / N``."""
        if targets.shape != outputs.shape:
            shapes = tuple(outputs.shape), tuple(targets.shape)
            raise ValueError(f"MSE: targets must have the outputs' shape {shapes[0]}, got {shapes[1]}.")
        self.scale = 2 / outputs.numel() if self.given.get("reduction", "mean") == "mean" else 2.0
        return self.scale * (outputs - targets)

    def cotangent1(self, z1: Tensor) -> Tensor:
        """``2 z1 / N``."""
        return self.scale * z1

    def cotangent2(self, z1: Tensor, z2: Jet) -> Tensor:
        """``2 z2 / N``."""
        return torch.zeros_like(z1) if z2 is None else self.scale * z2
