"""Rules that use the kernels of ``kernels/fused.py``, each in the place of the rule that it inherits from.

Whatever a kernel does not take (other layouts, no Triton on the device) goes the inherited way.
Off unless asked for: no GPU has shown yet that they pay.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from spectral_run.curvature.rop.base import Cotangents, Jet
from spectral_run.curvature.rop.forms import Elementwise
from spectral_run.curvature.rop.losses.cross_entropy import CrossEntropy
from spectral_run.curvature.rop.registry import registry


class FusedElementwise(Elementwise):
    """Mixed into the rule of an elementwise function: the sums of products in one kernel each."""

    def backward1(self, g1: Tensor) -> Cotangents:
        """``s' g1 + s'' g0 x1``."""
        from spectral_run.curvature.cuda.kernels import fused

        if self.bend is None or not fused.flat_alike(self.slope, g1, self.bend, self.jet1):
            return super().backward1(g1)
        return (fused.backward1(self.slope, g1, self.bend, self.jet1),)

    def forward2(self, x2: Jet) -> Tensor:
        """``s' x2 + s'' x1^2``."""
        from spectral_run.curvature.cuda.kernels import fused

        second = self.second()
        if not fused.flat_alike(second, self.slope, self.jet1, *([] if x2 is None else [x2])):
            return super().forward2(x2)
        bent, y2 = fused.forward2(self.slope, second, self.jet1, x2)
        self.jet2 = x2, bent
        return y2

    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """``s' g2 + 2 s'' x1 g1 + s'' g0 x2 + s''' g0 x1^2``."""
        from spectral_run.curvature.cuda.kernels import fused

        assert self.bend is not None
        x1, (x2, bent) = self.jet1, self.jet2
        third = self.third()
        tensors = [self.slope, third, self.g0, bent, self.bend, x1, g1, g2, *([] if x2 is None else [x2])]
        if not fused.flat_alike(*tensors):
            return super().backward2(g1, g2)
        return (fused.backward2(self.slope, third, self.g0, bent, self.bend, x1, x2, g1, g2),)


class FusedCrossEntropy(CrossEntropy):  # type: ignore[misc]  # final for those who add losses; this is the same one
    """Order 1 in one kernel, for rows of classes."""

    def cotangent1(self, z1: Tensor) -> Tensor:
        """``S p (z1 - <p, z1>)``."""
        from spectral_run.curvature.cuda.kernels import fused

        if z1.dim() != 2 or not all(t.is_contiguous() and t.dtype == z1.dtype for t in (self.p, self.q, z1)):
            return super().cotangent1(z1)
        return fused.cotangent1(self.p, self.q, z1)


@cache
def replacements() -> dict[type[Any], type[Any]]:
    """Which rule stands in for which."""
    found: dict[type[Any], type[Any]] = {CrossEntropy: FusedCrossEntropy}
    for rule in registry().rules:
        if issubclass(rule, Elementwise):
            found[rule] = type(f"Fused{rule.__name__}", (FusedElementwise, rule), {"__module__": __name__})
    return found
