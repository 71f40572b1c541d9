"""Power iteration: algorithm 1 of Sandler, Klabjan, Luo, lines 5 to 10.

``u = H v``, ``lambda = u'v``, stop when ``|u - lambda v| <= eps``, else ``v = u/|u|``.  Cost: one product a step; the
residual shrinks by ``|lambda_2 / lambda_1|`` each, so it stalls when two eigenvalues of largest modulus are close, and
does not converge at all when they are opposite.  The sign of lambda is kept (the paper's listing drops it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import EigenResult, EigenSolver, Product, Reason, unit


@final
@dataclass(frozen=True, kw_only=True)
class PowerIteration(EigenSolver):
    """The paper's solver. Takes no preconditioner."""

    def solve(
        self, product: Product, start: Float[Tensor, " n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The eigenpair of largest modulus; the vector returned is the one the residual was measured at."""
        if preconditioner is not None:
            raise ValueError("PowerIteration takes no preconditioner; lobpcg does.")
        v = unit(start)
        products = 0
        while True:
            u = product(v)
            products += 1
            value = float(u @ v)
            residual = float((u - value * v).norm())
            reason: Reason | None = self.verdict(value, residual)
            if reason is None and products >= self.cap:
                reason = "cap"
            if reason is not None:
                return EigenResult(value, v, residual, products, reason)
            v = u / u.norm()
