"""Lanczos with full reorthogonalization and thick restart: the fewest products per digit.

Source: Lanczos 1950; band form, for several start vectors, after Ruhe 1979; thick restart after Wu and Simon 2000.
Keeps an orthonormal basis, V the vectors that have been multiplied and W those still to be, with ``H V = V T + W B``;
for an eigenpair (theta, s) of the small T the residual of (theta, V s) is exactly ``|B s|``, without another product.
With one start vector W is one vector and B is ``beta`` at the last.  A second pass of orthogonalization is made where
the first removed more than it left (Daniel, Gragg, Kaufman, Stewart 1976): one pass alone loses orthogonality by a
constant factor a step.
Cost: one product a step, ``O(n k)`` vector work; memory ``n * basis`` numbers.
Fails, as every Krylov method, when the start vectors have no component along the wanted eigenvector; p of them find at
most p copies of an exactly repeated eigenvalue, and cost up to p times the products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.linalg import lapack
from torch import Tensor

from spectral_run.curvature.solver import (
    BlockProduct,
    EigenPairs,
    EigenResult,
    EigenSolver,
    Product,
    Reason,
    orthonormal,
    rounding_floor,
    unit,
)

_FIRST_ROWS = 8  # the basis grows by doubling from here, so that a short solve never pays for the longest one
_CANCELLED = 0.5**0.5  # a second pass where the first left less than this part of the vector


@dataclass(frozen=True)
class _Ritz:
    """Where the iteration stopped: the small problem's eigenpairs from the wanted end, and the basis."""

    values: list[float]
    residuals: list[float]
    coefficients: npt.NDArray[np.float64]
    couplings: list[float]
    basis: Tensor
    products: int
    reason: Reason

    def vectors(self, count: int) -> Tensor:
        """The first Ritz vectors, as rows of norm 1."""
        rows = torch.from_numpy(np.ascontiguousarray(self.coefficients[:, :count].T))
        ritz = rows.to(self.basis) @ self.basis
        norms: Tensor = torch.linalg.vector_norm(ritz, dim=1, keepdim=True)
        return ritz / norms


@final
@dataclass(frozen=True, kw_only=True)
class Lanczos(EigenSolver):
    """``basis`` vectors are kept at most; then the ``keep`` best Ritz vectors start the next round.

    ``cluster`` above 1: go on until every Ritz pair that the tolerance can't tell from the first (values closer than
    the tolerance; at most so many pairs) has converged too, and the next one is farther than its residual; return them
    as ``EigenResult.near``.  From a single start vector those much closer than the tolerance do not come up before the
    first has converged: start with as many vectors as there may be pairs.
    """

    basis: int = 48
    keep: int = 8
    cluster: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.keep < self.basis - 1:
            raise ValueError(f"Lanczos: keep must be in [1, basis - 2], got keep={self.keep}, basis={self.basis}.")
        if not 1 <= self.cluster <= self.keep:
            raise ValueError(f"Lanczos: cluster must be in [1, keep], got cluster={self.cluster}, keep={self.keep}.")

    def solve(
        self, product: Product, start: Float[Tensor, "*p n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The eigenpair at the wanted end, from one start vector or from several rows."""
        self._refuse(preconditioner)
        starts = unit(start)[None] if start.dim() == 1 else orthonormal(start, start[:0])
        if not len(starts):
            unit(start[0])  # says what is wrong with it
        ritz = self._iterate(product, starts, starts[:0], 1, 0.0)
        if ritz.reason == "nan":
            return EigenResult(math.nan, starts[0], math.nan, ritz.products, "nan")
        values = ritz.values
        gap = math.nan
        if len(values) > 1 and values[0]:
            gap = (self.score(values[0]) - self.score(values[1])) / abs(values[0])
        count = self._clustered(values)
        while count > 1 and self.verdict(values[count - 1], ritz.residuals[count - 1]) is None:  # the cap came first
            count -= 1
        vectors = ritz.vectors(count)
        near = tuple(zip(values[1:count], vectors[1:], strict=True))
        return EigenResult(values[0], vectors[0], ritz.residuals[0], ritz.products, ritz.reason, gap, near)

    def several(
        self,
        product: BlockProduct,
        starts: Float[Tensor, "k n"],
        locked: Float[Tensor, "m n"],
        *,
        preconditioner: Product | None = None,
        floor: float = 0.0,
    ) -> EigenPairs:
        """Up to ``k`` pairs from one Krylov space, started from the sum of the start vectors."""
        self._refuse(preconditioner)
        start = orthonormal(unit(starts.sum(0))[None], locked)
        ritz = self._iterate(lambda v: product(v[None])[0], start, locked, len(starts), floor)
        count = min(len(starts), len(ritz.values))
        residuals = [math.hypot(*both) for both in zip(ritz.residuals[:count], ritz.couplings[:count], strict=True)]
        return EigenPairs(
            torch.tensor(ritz.values[:count], dtype=torch.float64),
            ritz.vectors(count),
            torch.tensor(residuals, dtype=torch.float64),
            ritz.products,
            ritz.reason,
        )

    def _refuse(self, preconditioner: Product | None) -> None:
        if preconditioner is not None:
            raise ValueError("Lanczos takes no preconditioner; lobpcg does.")

    def _clustered(self, values: list[float]) -> int:
        """How many of the ordered values the tolerance can't tell from the first."""
        least = self.score(values[0]) - self.tolerance(values[0])
        count = 1
        while count < min(self.cluster, len(values)) and self.score(values[count]) >= least:
            count += 1
        return count

    def _iterate(self, product: Product, starts: Tensor, locked: Tensor, wanted: int, floor: float) -> _Ritz:
        rounding, per_scale = torch.finfo(starts.dtype).eps, rounding_floor(1.0, starts)
        fixed, width, room = len(locked), len(starts), starts.shape[1] - len(locked)
        size = min(max(self.basis, 2 * wanted + 8) + width - 1, self.cap + width, room)
        keep, looked_at = max(self.keep, wanted + 4), max(wanted, self.cluster) + 1
        basis = starts.new_empty(fixed + max(width, min(size, _FIRST_ROWS)), starts.shape[1])
        basis[:fixed], basis[fixed : fixed + width] = locked, starts
        small = np.zeros((size, size))  # T above B, of the vectors done and held
        outside = np.zeros((fixed, size))  # their images' components along the locked vectors
        done, held, products = 0, width, 0
        while True:
            rows = basis[: fixed + held]
            columns = rows.T
            w = product(rows[fixed + done])
            products += 1
            coefficients = torch.mv(rows, w)
            w = torch.addmv(w, columns, coefficients, alpha=-1)
            # One transfer for all that the host needs: on a GPU each is a wait.
            column: list[float] = torch.cat((coefficients, torch.dot(w, w)[None])).tolist()
            beta = math.sqrt(column.pop())
            if beta < _CANCELLED * math.hypot(*column, beta):
                again = torch.mv(rows, w)
                w = torch.addmv(w, columns, again, alpha=-1)
                column = [c + a for c, a in zip(column, again.tolist(), strict=True)]
                beta = math.sqrt(torch.dot(w, w))
            if not math.isfinite(sum(column) + beta):
                return _Ritz([], [], np.empty((0, 0)), [], rows[:0], products, "nan")
            if fixed:
                outside[:, done] = column[:fixed]
                column = column[fixed:]
            small[:held, done] = small[done, :held] = column
            done += 1
            values, vectors = _eigh(small[:done, :done])
            scale = max(abs(values[0]), abs(values[-1]))
            floor = max(floor, per_scale * scale)
            if held < room and beta > rounding * scale:
                if fixed + held == len(basis):
                    basis = torch.cat([basis, basis.new_empty(fixed + min(size, 2 * held) - len(basis), len(w))])
                torch.div(w, beta, out=basis[fixed + held])
                small[held, done - 1] = small[done - 1, held] = beta
                held += 1
            order = self.ranking(values, looked_at)
            best = [values[i] for i in order]
            if width == 1:  # B is beta at the last; written out, since this runs beside products of microseconds
                last = vectors[-1].tolist()
                residuals = [beta * abs(last[i]) for i in order]
            else:
                residuals = _norms(small[done:held, :done] @ vectors[:, order])
            reason = self._reason(best, residuals, wanted, floor, done == held)
            if reason is None and products >= self.cap:  # the first pair may have met the tolerance, and no tie settled
                reason = (self.verdict(best[0], residuals[0], floor) if wanted == 1 else None) or "cap"
            if reason is not None:
                chosen = vectors[:, order]
                couplings = _norms(outside[:, :done] @ chosen)
                return _Ritz(best, residuals, chosen, couplings, basis[fixed : fixed + done], products, reason)
            if held == size < room:
                order = self.ranking(values, min(keep, done - 1))
                kept, left = len(order), held - done
                change = vectors[:, order]
                ritz = torch.from_numpy(np.ascontiguousarray(change.T)).to(basis) @ basis[fixed : fixed + done]
                basis[fixed : fixed + kept + left] = torch.cat([ritz, basis[fixed + done : fixed + held]])
                outside[:, :kept] = outside[:, :done] @ change
                tail = small[done:held, :done] @ change
                small[:] = 0.0
                small[range(kept), range(kept)] = [values[i] for i in order]
                small[kept : kept + left, :kept] = tail
                done, held = kept, kept + left

    def _reason(
        self, values: list[float], residuals: list[float], wanted: int, floor: float, exhausted: bool
    ) -> Reason | None:
        """Why to stop at these Ritz pairs, or None to go on."""
        first = self.verdict(values[0], residuals[0], floor)
        if exhausted:  # V spans an invariant subspace: all its pairs are exact in it
            return first or "residual"
        if first is None or len(values) < wanted:
            return None
        near = self._clustered(values)
        if any(self.verdict(values[i], residuals[i], floor) is None for i in range(1, max(wanted, near))):
            return None
        if near < self.cluster:  # is there another one near, which has not come up yet?
            if len(values) == near:
                return None
            reach = self.score(values[near]) + residuals[near]
            if reach >= self.score(values[0]) - self.tolerance(values[0]):
                return None
        return first


def _norms(columns: npt.NDArray[np.float64]) -> list[float]:
    return [math.hypot(*column) for column in columns.T.tolist()]


def _eigh(small: npt.NDArray[np.float64]) -> tuple[list[float], Any]:
    """Eigenvalues, ascending, and eigenvectors: LAPACK itself, since wrappers take longer than the work."""
    values, vectors, info = lapack.dsyevd(small)
    if info:
        raise ArithmeticError(f"Lanczos: LAPACK's dsyevd failed with info={info}.")
    return values.tolist(), vectors
