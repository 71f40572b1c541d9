"""GELU ``x P(x)``, P the normal distribution function or its approximation by a hyperbolic tangent.

Exact, with p the normal density: ``P + x p``, ``p (2 - x^2)``, ``p (x^3 - 4 x)``.  Approximate: ``x (1 + t) / 2`` with
``t = tanh(a)``, ``a = sqrt(2 / pi) (x + 0.044715 x^3)``: ``(1 + t + x t1) / 2``, ``t1 + x t2 / 2`` and
``(3 t2 + x t3) / 2``.
"""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Elementwise

_CUBIC = 0.044715
_ROOT = math.sqrt(2 / math.pi)


@final
class GELU(Elementwise):
    """``nn.GELU``, ``approximate`` none or tanh."""

    modules = (nn.GELU,)
    functions = (F.gelu,)

    @staticmethod
    def arguments(module: nn.GELU) -> tuple[str]:
        """Which of the two."""
        return (module.approximate,)

    def forward0(self, input: Tensor, approximate: str = "none") -> Tensor:
        """``x P(x)``."""
        self.x, self.exact = input, approximate == "none"
        return F.gelu(input, approximate=approximate)

    def first(self) -> Tensor:
        """``P + x p``, or its approximation's."""
        x = self.x
        if self.exact:
            return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * self._density()
        t, t1, _, _ = self._tangent()
        return 0.5 * (1 + t + x * t1)

    def second(self) -> Tensor:
        """``p (2 - x^2)``, or its approximation's."""
        x = self.x
        if self.exact:
            return self._density() * (2 - x * x)
        _, t1, t2, _ = self._tangent()
        return t1 + 0.5 * x * t2

    def third(self) -> Tensor:
        """``p (x^3 - 4 x)``, or its approximation's."""
        x = self.x
        if self.exact:
            return self._density() * (x * x - 4) * x
        _, _, t2, t3 = self._tangent()
        return 0.5 * (3 * t2 + x * t3)

    def _density(self) -> Tensor:
        return torch.exp(-0.5 * self.x * self.x) / math.sqrt(2 * math.pi)

    def _tangent(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x2 = self.x * self.x
        a1, a2, a3 = _ROOT * (1 + 3 * _CUBIC * x2), 6 * _ROOT * _CUBIC * self.x, 6 * _ROOT * _CUBIC
        t = torch.tanh(_ROOT * self.x * (1 + _CUBIC * x2))
        d = 1 - t * t
        t1 = d * a1
        t2 = d * a2 - 2 * t * t1 * a1
        t3 = d * a3 - 4 * t * t1 * a2 - 2 * a1 * (t1 * t1 + t * t2)
        return t, t1, t2, t3
