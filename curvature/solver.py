"""What an eigensolver is: from products with a symmetric matrix to its eigenvalue of largest modulus.

Every solver stops on the residual ``|Hv - lambda v|``: the eigenvalue's error is quadratic in the angle of v, but the
error of the gradient of rho is linear in it, so agreement of successive eigenvalues would stop far too early.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

Product: TypeAlias = Callable[[Tensor], Tensor]
"""``v -> H v`` (or ``T r`` for a preconditioner), both of shape ``(n,)``."""

Reason: TypeAlias = Literal["residual", "zero", "cap", "stalled", "nan"]


@dataclass(frozen=True)
class EigenResult:
    """An eigenpair and how far to trust it.

    ``value`` is signed; ``vector`` has norm 1 and is the one that ``residual = |Hv - value v|`` belongs to.
    ``reason``: ``residual`` (tolerance met), ``zero`` (H v = 0: value 0), ``cap`` (products used up),
    ``stalled`` (rounding leaves no direction to go on), ``nan``.
    """

    value: float
    vector: Float[Tensor, " n"]
    residual: float
    products: int
    reason: Reason

    @property
    def converged(self) -> bool:
        """Whether the residual met the tolerance (a zero Hessian meets it)."""
        return self.reason in ("residual", "zero")

    @property
    def rho(self) -> float:
        """The spectral radius, ``|value|``."""
        return abs(self.value)


@dataclass(frozen=True, kw_only=True)
class EigenSolver(ABC):
    """Settings of a solver: tolerance ``eps`` on the residual (relative to |lambda| or absolute), ``cap`` on products.

    The paper measures with an absolute 1e-3 and 1000 products (appendix C.2).
    """

    eps: float = 1e-3
    relative: bool = True
    cap: int = 1000

    def __post_init__(self) -> None:
        who = type(self).__name__
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"{who}: eps must be positive, got {self.eps}.")
        if self.cap < 1:
            raise ValueError(f"{who}: cap must be at least 1 product, got {self.cap}.")

    @abstractmethod
    def solve(
        self, product: Product, start: Float[Tensor, " n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The eigenpair of largest modulus, from a non-zero start vector. Deterministic."""

    def verdict(self, value: float, residual: float) -> Reason | None:
        """Why to stop at this Ritz pair, or None to go on."""
        if not (math.isfinite(value) and math.isfinite(residual)):
            return "nan"
        if value == 0.0 and residual == 0.0:
            return "zero"
        if residual <= (self.eps * abs(value) if self.relative else self.eps):
            return "residual"
        return None


def unit(start: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The start vector at norm 1. Raises ``ValueError`` for a zero or non-finite one."""
    norm = float(start.norm())
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"EigenSolver: the start vector must be finite and not zero, its norm is {norm}.")
    return start / norm
