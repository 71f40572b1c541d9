"""Algorithm 2 of Sandler, Klabjan, Luo as printed, lines 7 to 14: a preconditioned step of decaying length.

``u = H v``, ``lambda = u'v``, ``r = u - lambda v``, stop when ``|r| <= eps``, else ``v = normalize(v + alpha(j) T r)``
with ``alpha(j) = exp(-4 j - shift)``, j = 0, 1, ... the inner iteration (the paper does not say where j starts; from 1
it would hardly move at all), shift 2 for forest cover and 0 for USPS (appendix C.3).  T is a preconditioner, the
paper's the K-FAC inverse, or the identity.  Despite its name there is no Rayleigh-Ritz step and no conjugate
direction: it is gradient ascent on the Rayleigh quotient.
Cost: one product a step.
Fails: the steps sum to less than ``1.02 exp(-shift) |T r|``, so v stops short of the eigenvector from all but the best
starts, contrary to the paper's lemma 4.1; then the reason is ``stalled``.  Ascent goes for the largest eigenvalue with
its sign, and never for a negative one of larger modulus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import (
    EigenResult,
    OneVectorSolver,
    Product,
    Reason,
    Which,
    unit,
    without,
)


@final
@dataclass(frozen=True, kw_only=True)
class PaperLOBPCG(OneVectorSolver):
    """The paper's algorithm 2; ``shift`` lowers the logarithm of every step length."""

    ends: ClassVar[tuple[Which, ...]] = ("magnitude", "largest")

    shift: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.shift):
            raise ValueError(f"PaperLOBPCG: shift must be finite, got {self.shift}.")

    def iterate(
        self,
        product: Product,
        start: Float[Tensor, " n"],
        locked: Float[Tensor, "m n"],
        preconditioner: Product | None,
        floor: float,
    ) -> EigenResult:
        """Until the residual is small or the steps are too short to move v."""
        v = unit(start)
        rounding = torch.finfo(v.dtype).eps
        products = 0
        while True:
            u = product(v)
            scale = torch.dot(u, v)
            r = without(u, locked) - scale * v
            step = r if preconditioner is None else without(preconditioner(r), locked)
            numbers = torch.stack((scale, r.norm(), (u - scale * v).norm(), step.norm()))
            value, residual, whole, length = numbers.tolist()
            alpha = math.exp(-4.0 * products - self.shift)
            products += 1
            reason: Reason | None = self.verdict(value, residual, floor)
            if reason is None and not math.isfinite(length):
                reason = "nan"
            if reason is None and products >= self.cap:
                reason = "cap"
            if reason is None and alpha * length <= rounding:
                reason = "stalled"
            if reason is not None:
                return EigenResult(value, v, whole, products, reason)
            v = v + alpha * step
            v = v / v.norm()
