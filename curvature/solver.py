"""What an eigensolver is: from products with a symmetric matrix to the eigenvalues at one end of its spectrum.

Every solver stops on the residual ``|Hv - lambda v|``: the eigenvalue's error is quadratic in the angle of v, but the
error of the gradient of rho is linear in it, so agreement of successive eigenvalues would stop far too early.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

Product: TypeAlias = Callable[[Tensor], Tensor]
"""``v -> H v`` (or ``T r`` for a preconditioner), both of shape ``(n,)``."""

BlockProduct: TypeAlias = Callable[[Tensor], Tensor]
"""``k`` products at once: rows in, rows out, both of shape ``(k, n)``."""

Reason: TypeAlias = Literal["residual", "zero", "cap", "stalled", "nan"]
Which: TypeAlias = Literal["magnitude", "largest", "smallest"]


@dataclass(frozen=True)
class EigenResult:
    """An eigenpair and how far to trust it.

    ``value`` is signed; ``vector`` has norm 1 and is the one that ``residual = |Hv - value v|`` belongs to.
    ``reason``: ``residual`` (tolerance met), ``zero`` (H v = 0: value 0), ``cap`` (products used up),
    ``stalled`` (the next step would not move v), ``nan``.
    ``gap``: distance to the next Ritz value, over ``|value|``; nan where the solver knows none.  The next Ritz value
    may not have converged, and copies of an exactly repeated eigenvalue are invisible to a single start vector.
    ``near``: further pairs that the tolerance can't tell from the first, where the solver was asked for them.
    """

    value: float
    vector: Float[Tensor, " n"]
    residual: float
    products: int
    reason: Reason
    gap: float = math.nan
    near: tuple[tuple[float, Float[Tensor, " n"]], ...] = ()

    @property
    def converged(self) -> bool:
        """Whether the residual met the tolerance (a zero Hessian meets it)."""
        return self.reason in ("residual", "zero")

    @property
    def rho(self) -> float:
        """The spectral radius, ``|value|``."""
        return abs(self.value)


@dataclass(frozen=True)
class EigenPairs:
    """``k`` eigenpairs, the wanted end first, repeated eigenvalues as often as they occur; rows of ``vectors``.

    ``values`` and ``residuals`` are float64 on the CPU.  The vectors are orthonormal.  A residual
    includes what couples its vector to pairs found in an earlier round, which those pairs' own residuals bound.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k n"]
    residuals: Float[Tensor, " k"]
    products: int
    reason: Reason

    @property
    def converged(self) -> bool:
        """Whether every residual met the tolerance."""
        return self.reason in ("residual", "zero")


@dataclass(frozen=True, kw_only=True)
class EigenSolver(ABC):
    """Settings of a solver: tolerance ``eps`` on the residual (relative to |lambda| or absolute), ``cap`` on products.

    ``which`` end is wanted: the largest modulus, or the largest or smallest eigenvalue with its sign.
    The paper measures with an absolute 1e-3 and 1000 products (appendix C.2).
    """

    ends: ClassVar[tuple[Which, ...]] = ("magnitude", "largest", "smallest")

    eps: float = 1e-3
    relative: bool = True
    cap: int = 1000
    which: Which = "magnitude"

    def __post_init__(self) -> None:
        who = type(self).__name__
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"{who}: eps must be positive, got {self.eps}.")
        if self.cap < 1:
            raise ValueError(f"{who}: cap must be at least 1 product, got {self.cap}.")
        if self.which not in self.ends:
            raise ValueError(f"{who}: which must be one of {', '.join(self.ends)}, got {self.which!r}.")

    @abstractmethod
    def solve(
        self, product: Product, start: Float[Tensor, " n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The eigenpair at the wanted end, from a non-zero start vector. Deterministic."""

    @abstractmethod
    def several(
        self,
        product: BlockProduct,
        starts: Float[Tensor, "k n"],
        locked: Float[Tensor, "m n"],
        *,
        preconditioner: Product | None = None,
        floor: float = 0.0,
    ) -> EigenPairs:
        """Up to ``k`` pairs orthogonal to the ``locked`` ones, as many as there are starts: a round of ``eigenpairs``.

        May give fewer, and may miss copies of a repeated eigenvalue.  Stops on the residual outside the locked
        vectors' span, where it can be made small; reports the whole.  Below ``floor`` a value is zero to rounding.
        """

    def verdict(self, value: float, residual: float, floor: float = 0.0) -> Reason | None:
        """Why to stop at this Ritz pair, or None to go on."""
        if not (math.isfinite(value) and math.isfinite(residual)):
            return "nan"
        if max(abs(value), residual) <= floor:  # no residual is small beside an eigenvalue of zero
            return "zero"
        if residual <= self.tolerance(value):
            return "residual"
        return None

    def tolerance(self, value: float) -> float:
        """The residual to reach at this eigenvalue."""
        return self.eps * abs(value) if self.relative else self.eps

    def score(self, value: float) -> float:
        """Larger is nearer the wanted end."""
        return abs(value) if self.which == "magnitude" else value if self.which == "largest" else -value

    def ranking(self, values: Sequence[float], count: int) -> list[int]:
        """Positions of the first ``count`` values from the wanted end, where ``values`` ascend."""
        low, high = 0, len(values) - 1
        if self.which == "smallest":
            return list(range(min(count, len(values))))
        if self.which == "largest":
            return list(range(high, max(high - count, -1), -1))
        order: list[int] = []
        while low <= high and len(order) < count:
            if values[low] + values[high] >= 0:
                order.append(high)
                high -= 1
            else:
                order.append(low)
                low += 1
        return order


@dataclass(frozen=True, kw_only=True)
class OneVectorSolver(EigenSolver):
    """A solver that moves a single vector: it says how, in ``iterate``; further pairs come by deflation."""

    @abstractmethod
    def iterate(
        self,
        product: Product,
        start: Float[Tensor, " n"],
        locked: Float[Tensor, "m n"],
        preconditioner: Product | None,
        floor: float,
    ) -> EigenResult:
        """One pair orthogonal to the locked vectors; the vector returned is the one the residual was measured at."""

    @final
    def solve(
        self, product: Product, start: Float[Tensor, " n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The pair that the iteration goes to from this start."""
        return self.iterate(product, start, start.new_empty(0, len(start)), preconditioner, 0.0)

    @final
    def several(
        self,
        product: BlockProduct,
        starts: Float[Tensor, "k n"],
        locked: Float[Tensor, "m n"],
        *,
        preconditioner: Product | None = None,
        floor: float = 0.0,
    ) -> EigenPairs:
        """One pair, from the sum of the start vectors."""
        start = without(unit(starts.sum(0)), locked)
        return pairs_of(self.iterate(lambda v: product(v[None])[0], start, locked, preconditioner, floor))


def rounding_floor(scale: float, like: Tensor) -> float:
    """Below what an eigenvalue is zero to rounding, where ``scale`` is the matrix's largest one known."""
    return 100 * torch.finfo(like.dtype).eps * scale


def unit(start: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The start vector at norm 1. Raises ``ValueError`` for a zero or non-finite one."""
    norm = float(start.norm())
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"EigenSolver: the start vector must be finite and not zero, its norm is {norm}.")
    return start / norm


def without(v: Float[Tensor, "*k n"], locked: Float[Tensor, "m n"]) -> Float[Tensor, "*k n"]:
    """A vector, or rows, less the components along orthonormal rows."""
    return v - (v @ locked.T) @ locked if len(locked) else v


def orthonormal(rows: Float[Tensor, "k n"], against: Float[Tensor, "m n"]) -> Float[Tensor, "j n"]:
    """The rows made orthonormal, to each other and to others, twice over; fewer where only rounding is left."""
    kept = against
    for row in rows:
        norm = float(row.norm())
        if not 0 < norm < math.inf:
            continue
        row = row / norm
        for _ in range(2):
            row = row - (kept @ row) @ kept
        norm = float(row.norm())
        if norm > 10 * torch.finfo(row.dtype).eps:
            kept = torch.cat([kept, (row / norm)[None]])
    return kept[len(against) :]


def pairs_of(result: EigenResult) -> EigenPairs:
    """A single pair as ``EigenPairs``."""
    value, residual = torch.tensor([[result.value], [result.residual]], dtype=torch.float64)
    return EigenPairs(value, result.vector[None], residual, result.products, result.reason)
