"""Cross-entropy of class numbers or class probabilities, with weights, label smoothing and ignored rows.

Every variant is ``sum_r S_r log sum_c exp(z_rc) - sum_rc T_rc z_rc``, T the weighted targets over the normalizer and
``S = sum_c T``, so with p the softmax the gradient is ``S p - T`` and, along the line, with ``u = z1 - <p, z1>``:
``S p u`` and ``S p (u^2 + z2 - <p, u^2 + z2>)``. Units: nats.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.base import Jet, LossRule


@final
class CrossEntropy(LossRule):
    """``F.cross_entropy``, classes in dimension 1 (or 0 of a single output)."""

    functions = (F.cross_entropy,)
    modules = (nn.CrossEntropyLoss,)
    settings = ("weight", "ignore_index", "label_smoothing", "reduction")

    def cotangent0(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``S p - T``."""
        self.dim = 1 if outputs.dim() > 1 else 0
        mass = self.weighted(outputs, targets)
        total = mass.sum(self.dim, keepdim=True)
        self.p = torch.softmax(outputs, self.dim)
        self.q = self.p * total
        return self.q - mass

    def cotangent1(self, z1: Tensor) -> Tensor:
        """``S p (z1 - <p, z1>)``."""
        weighted = self.q * z1
        return torch.addcmul(weighted, self.p, weighted.sum(self.dim, keepdim=True), value=-1)

    def cotangent2(self, z1: Tensor, z2: Jet) -> Tensor:
        """``S p (u^2 + z2 - <p, u^2 + z2>)``."""
        u = z1 - (self.p * z1).sum(self.dim, keepdim=True)
        square = u * u
        return self.cotangent1(square if z2 is None else square + z2)

    def weighted(self, z: Tensor, targets: Tensor) -> Tensor:
        """T, in the outputs' shape."""
        dim = 1 if z.dim() > 1 else 0
        classes = z.shape[dim]
        weight: Tensor | None = self.given.get("weight")
        smoothing: float = self.given.get("label_smoothing", 0.0)
        mean = self.given.get("reduction", "mean") == "mean"
        weights = z.new_ones(()) if weight is None else weight.view(-1, *[1] * (z.dim() - 1 - dim))
        if targets.shape == z.shape:
            target = targets * (1 - smoothing) + smoothing / classes
            return target * weights / (z.numel() / classes if mean else 1)
        counted = (targets != self.given.get("ignore_index", -100)).unsqueeze(dim)
        place = targets.unsqueeze(dim).where(counted, 0)
        hard = torch.zeros_like(z).scatter_(dim, place, counted.to(z.dtype)) * weights
        mass = hard
        if smoothing:
            mass = hard * (1 - smoothing) + counted * weights * (smoothing / classes)
        return mass / hard.sum() if mean else mass
