"""Several eigenpairs at one end of a spectrum, repeated eigenvalues included, by any solver.

A Krylov space holds one copy of an exactly repeated eigenvalue, a block of b vectors at most b.  So what is found is
locked, and the solver runs again, orthogonally to it and from a random start, until it finds nothing beyond the k-th: a
random start has a component along every eigenvector that was missed (Parlett, The Symmetric Eigenvalue Problem,
chapter 5).  Cost: the solves' products, the last of which finds nothing new, and ``O(n m)`` for m locked vectors each.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.solver import (
    BlockProduct,
    EigenPairs,
    EigenSolver,
    Product,
    Reason,
    rounding_floor,
    without,
)


def deflated(product: BlockProduct, vectors: Float[Tensor, "m n"]) -> BlockProduct:
    """``P H P`` with ``P = 1 - V'V``: the matrix without the eigenvectors that are V's (orthonormal) rows.

    Works on one vector ``(n,)`` or on rows ``(k, n)``, whichever ``product`` takes.  For a solver of another library:
    the vectors get eigenvalue 0, which is the end of some spectra; those here keep away from them instead.
    """
    return lambda v: without(product(without(v, vectors)), vectors)


def eigenpairs(
    solver: EigenSolver,
    product: Product,
    starts: Float[Tensor, "b n"],
    k: int,
    generator: torch.Generator,
    *,
    preconditioner: Product | None = None,
    block_product: BlockProduct | None = None,
) -> EigenPairs:
    """The first ``k`` pairs from the end ``solver.which``; fewer only where the cap or a NaN ends it.

    ``starts``: one row or more to start from, the last vectors for a warm start; further starts are drawn from the
    generator (on the CPU).  ``block_product`` takes several vectors at once, where that is cheaper.  The solver's cap
    holds for all solves together.
    """
    n = starts.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"eigenpairs: k must be in [1, n] with n = {n}, got {k}.")
    many = block_product or (lambda block: torch.stack([product(v) for v in block]))
    none = torch.empty(0, dtype=torch.float64)
    found = EigenPairs(none, starts[:0], none, 0, "residual")
    begin = _starts(starts, k, generator) if len(starts) <= k else starts.sum(0, keepdim=True)
    while True:
        scale = float(found.values.abs().max()) if len(found.values) else 0.0
        batch = replace(solver, cap=solver.cap - found.products).several(
            many,
            begin,
            found.vectors,
            preconditioner=preconditioner,
            floor=rounding_floor(scale, starts),
        )
        if batch.reason == "nan":
            return replace(found, products=found.products + batch.products, reason="nan")
        last = float(found.values[-1]) if len(found.values) == k else 0.0
        beyond = solver.score(float(batch.values[0])) - solver.score(last)
        complete = len(found.values) == k and beyond <= solver.tolerance(last)  # as far as the pairs themselves go
        found = _merged(solver, found, batch, k)
        if complete or not batch.converged or len(found.values) == n:
            return found
        if found.products >= solver.cap:
            return replace(found, reason="cap")
        begin = _starts(starts[:0], max(1, k - len(found.values)), generator)


def _starts(given: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The given rows and as many random ones as are missing, drawn on the CPU."""
    noise = torch.randn(count - len(given), given.shape[1], generator=generator, dtype=given.dtype)
    return torch.cat([given, noise.to(given.device)])


def _merged(solver: EigenSolver, found: EigenPairs, batch: EigenPairs, k: int) -> EigenPairs:
    """Both, the first k from the wanted end; the new vectors made orthogonal to the old once more."""
    new = without(batch.vectors, found.vectors)
    new = new / torch.linalg.vector_norm(new, dim=1, keepdim=True)
    values = torch.cat([found.values, batch.values])
    order = sorted(range(len(values)), key=lambda i: -solver.score(float(values[i])))[:k]
    reason: Reason = found.reason if batch.reason in ("residual", "zero") else batch.reason
    return EigenPairs(
        values[order],
        torch.cat([found.vectors, new])[order],
        torch.cat([found.residuals, batch.residuals])[order],
        found.products + batch.products,
        reason,
    )
