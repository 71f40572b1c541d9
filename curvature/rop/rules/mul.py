"""Product of two values, entry by entry with broadcasting, or of a value and a number."""

from __future__ import annotations

import operator
from typing import Any, final

import torch
from torch import Tensor

from spectral_run.curvature.rop.base import Jet
from spectral_run.curvature.rop.forms import Bilinear, sum_to


@final
class Mul(Bilinear):
    """``input other``; a value may be multiplied with itself."""

    functions = (operator.mul, operator.imul, torch.mul)
    methods = ("mul",)
    tensors = ("input", "other")

    def forward0(self, input: Any, other: Any) -> Tensor:
        """The product."""
        self.keep(input, other)
        self.shapes = tuple(t.shape if isinstance(t, Tensor) else () for t in (input, other))
        y: Tensor = input * other
        return y

    def apply(self, x: Any, w: Any, onto: Jet = None) -> Tensor:
        """``x w``."""
        y: Tensor = x * w
        return y if onto is None else y.add_(onto)

    def by_input(self, g: Tensor, w: Any, onto: Jet = None) -> Tensor:
        """``g w``, summed where x was broadcast."""
        x = sum_to(g * w, self.shapes[0])
        return x if onto is None else x.add_(onto)

    def by_weight(self, g: Tensor, x: Any, onto: Jet = None) -> Tensor:
        """``g x``, summed where w was broadcast."""
        w = sum_to(g * x, self.shapes[1])
        return w if onto is None else w.add_(onto)
