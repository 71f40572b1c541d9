"""Power iteration: algorithm 1 of Sandler, Klabjan, Luo, lines 5 to 10.

``u = H v``, ``lambda = u'v``, stop when ``|u - lambda v| <= eps``, else ``v = u/|u|``.  Cost: one product a step; the
residual shrinks by ``|lambda_2 / lambda_1|`` each, so it stalls when two eigenvalues of largest modulus are close, and
does not converge at all when they are opposite.  The sign of lambda is kept (the paper's listing drops it).
"""

from __future__ import annotations

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
class PowerIteration(OneVectorSolver):
    """The paper's solver. Takes no preconditioner, and finds the largest modulus only."""

    ends: ClassVar[tuple[Which, ...]] = ("magnitude",)

    def iterate(
        self,
        product: Product,
        start: Float[Tensor, " n"],
        locked: Float[Tensor, "m n"],
        preconditioner: Product | None,
        floor: float,
    ) -> EigenResult:
        """From the start until the residual is small."""
        if preconditioner is not None:
            raise ValueError("PowerIteration takes no preconditioner; lobpcg does.")
        v = unit(start)
        products = 0
        while True:
            image = product(v)
            products += 1
            u = without(image, locked)
            scale = torch.dot(u, v)
            numbers = torch.stack((scale, (u - scale * v).norm(), (image - scale * v).norm()))
            value, residual, whole = numbers.tolist()  # the host waits once
            reason: Reason | None = self.verdict(value, residual, floor)
            if reason is None and products >= self.cap:
                reason = "cap"
            if reason is not None:
                return EigenResult(value, v, whole, products, reason)
            v = u / u.norm()
