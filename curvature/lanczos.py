"""Lanczos with full reorthogonalization and thick restart: the fewest products per digit.

Source: Lanczos 1950; full reorthogonalization twice over (Parlett, "twice is enough"); thick restart after Wu and Simon
2000.  Keeps an orthonormal basis V (n x k) with ``H V = V T + beta v_next e_k'`` and takes the eigenpair (theta, s) of
the small T of largest modulus; its residual is exactly ``|beta s_k|``, without another product.
Cost: one product a step, ``O(n k)`` vector work; memory ``n * basis`` numbers.
Fails, as every Krylov method, when the start vector has no component along the top eigenvector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import EigenResult, EigenSolver, Product, Reason, unit


@final
@dataclass(frozen=True, kw_only=True)
class Lanczos(EigenSolver):
    """``basis`` vectors are kept at most; then the ``keep`` best Ritz vectors start the next round."""

    basis: int = 48
    keep: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.keep < self.basis - 1:
            raise ValueError(f"Lanczos: keep must be in [1, basis - 2], got keep={self.keep}, basis={self.basis}.")

    def solve(
        self, product: Product, start: Float[Tensor, " n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The eigenpair of largest modulus."""
        if preconditioner is not None:
            raise ValueError("Lanczos takes no preconditioner; lobpcg does.")
        v = unit(start)
        n = v.numel()
        size = min(self.basis, self.cap + 1, n + 1)
        # One allocation when it is small; grown by doubling, so that a short solve never pays for the longest one.
        basis = v.new_empty(min(size, 8), n)
        small = torch.zeros(size, size, dtype=torch.float64)
        k = products = 0
        while True:
            if k == len(basis):
                basis = torch.cat([basis, v.new_empty(min(size, 2 * k) - k, n)])
            basis[k] = v
            k += 1
            w = product(v)
            products += 1
            rows = basis[:k]
            coefficients = rows @ w
            w = w - coefficients @ rows
            again = rows @ w  # a second pass: the first leaves components of the size of the rounding error of |w|
            w = w - again @ rows
            column = (coefficients + again).to("cpu", torch.float64)
            small[:k, k - 1] = column
            small[k - 1, :k] = column
            beta = float(w.norm())
            if not bool(torch.isfinite(column).all()) or beta != beta:
                return EigenResult(float("nan"), v, float("nan"), products, "nan")
            values, vectors = torch.linalg.eigh(small[:k, :k])
            top = int(values.abs().argmax())
            value, residual = float(values[top]), abs(beta * float(vectors[-1, top]))
            exhausted = k == n or beta <= torch.finfo(v.dtype).eps * float(values.abs().max())
            reason: Reason | None = self.verdict(value, residual)
            if reason is None and exhausted:  # V spans an invariant subspace: the pair is exact in it
                reason = "residual"
            if reason is None and products >= self.cap:
                reason = "cap"
            if reason is not None:
                ritz = vectors[:, top].to(rows) @ rows
                return EigenResult(value, ritz / ritz.norm(), residual, products, reason)
            v = w / beta
            if k == size - 1:
                best = values.abs().argsort(descending=True)[: min(self.keep, k - 1)]
                basis[: len(best)] = vectors[:, best].T.to(rows) @ rows
                small.zero_()
                small.diagonal()[: len(best)] = values[best]
                k = len(best)
                v = v - (basis[:k] @ v) @ basis[:k]
                v = v / v.norm()
