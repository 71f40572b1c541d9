"""Binary cross-entropy of logits with soft targets t, weights w and positive weights a.

``w ((1 - t) z + m log(1 + exp(-z)))`` with ``m = 1 + (a - 1) t``; with s the logistic function its derivatives are
``w (1 - t - m + m s)``, ``w m s (1 - s)`` and ``w m s (1 - s) (1 - 2 s)``. Units: nats.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.base import Jet, LossRule


@final
class BCEWithLogits(LossRule):
    """``F.binary_cross_entropy_with_logits``."""

    functions = (F.binary_cross_entropy_with_logits,)
    modules = (nn.BCEWithLogitsLoss,)
    settings = ("weight", "pos_weight", "reduction")

    def cotangent0(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``w (1 - t - m + m s)``."""
        weight, positive = self.given.get("weight"), self.given.get("pos_weight")
        scale = 1 / outputs.numel() if self.given.get("reduction", "mean") == "mean" else 1.0
        m = torch.ones_like(outputs) if positive is None else 1 + (positive - 1) * targets
        w = m.new_full((), scale) if weight is None else weight * scale
        s = torch.sigmoid(outputs)
        self.slope = w * m * s * (1 - s)
        self.bend = self.slope * (1 - 2 * s)
        return w * (1 - targets - m + m * s)

    def cotangent1(self, z1: Tensor) -> Tensor:
        """``w m s (1 - s) z1``."""
        return self.slope * z1

    def cotangent2(self, z1: Tensor, z2: Jet) -> Tensor:
        """``w m s (1 - s) z2 + w m s (1 - s) (1 - 2 s) z1^2``."""
        bent = self.bend * z1 * z1
        return bent if z2 is None else bent.addcmul_(self.slope, z2)
