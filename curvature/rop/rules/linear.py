"""Affine layer ``y = x W' + b`` on the last dimension; appendix A of the paper without its activation.

Keeps x and the cotangent of y. Cost: at order 1 two matrix products forwards and four backwards, at order 2 two and
six. Joining them (``[V W]`` with ``[h; R h]``) was slower on a CPU: the copies cost more than a call.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.base import Jet
from spectral_run.curvature.rop.forms import Affine


@final
class Linear(Affine):
    """``nn.Linear``."""

    modules = (nn.Linear,)
    functions = (F.linear,)

    @staticmethod
    def arguments(module: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        return module.weight, module.bias

    def forward0(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The affine map."""
        self.keep(input, weight)
        self.rows = input.shape[:-1]
        return F.linear(input, weight, bias)

    def apply(self, x: Tensor, w: Tensor, onto: Jet = None) -> Tensor:
        """``x W'``."""
        if onto is None:
            return F.linear(x, w)
        if onto.dim() == 1:
            return F.linear(x, w, onto)
        return onto.addmm(x, w.t()) if x.dim() == 2 else F.linear(x, w).add_(onto)

    def by_input(self, g: Tensor, w: Tensor, onto: Jet = None) -> Tensor:
        """``g W``."""
        if g.dim() == 2:
            return g.mm(w) if onto is None else onto.addmm(g, w)
        return g @ w if onto is None else onto + g @ w

    def by_weight(self, g: Tensor, x: Tensor, onto: Jet = None) -> Tensor:
        """``g' x``."""
        if g.dim() != 2:
            g, x = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        g = g.t()
        return g.mm(x) if onto is None else onto.addmm(g, x)

    def by_bias(self, g: Tensor) -> Tensor:
        """Sum over rows."""
        return g.sum(0) if g.dim() == 2 else g.flatten(0, -2).sum(0)

    def spread(self, b: Tensor) -> Tensor:
        """The same bias in every row."""
        return b.expand(*self.rows, -1)
