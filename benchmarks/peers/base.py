"""What a benchmark asks of a library: one file per library, one class, each in a process of its own.

A *quantity* is what is timed. A library offers one or more *variants* of each: ways in which a user could do it. Every
variant is timed and the fastest counts as the library's number. No variants: the library has no such thing.

``gradient``   gradient of the loss: the unit of cost
``primal``     what products share, done once per batch
``product``    ``Hv`` with that done
``quadratic``  gradient of ``v'Hv`` with that done
``solve e``    a new batch to its eigenpair of largest modulus, relative residual e, from the given start vector
``step s``     a new batch to the gradient of ``f + mu |lambda|``, lambda solved to 1e-2 from the start vector s
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Data: TypeAlias = Mapping[str, Array]
Call: TypeAlias = Callable[[], Any]
Variants: TypeAlias = dict[str, Call]

MU = 0.005
STEP_EPS = 1e-2
CAP = 1000
"""Products after which a solve gives up."""

MEMORY_CAP = 8
"""Products of a solve whose memory is measured: more of them take no more, but for a basis."""


class UnsupportedError(Exception):
    """The library can't do this network."""


@dataclass(frozen=True)
class Solution:
    """An eigenpair in the library's own form, and the products that it took."""

    value: float
    vector: Any
    products: int


@dataclass(frozen=True)
class Penalized:
    """A gradient of the regularized objective, and the products that its solve took."""

    gradient: Any
    products: int


class Peer(ABC):
    """A library. ``load`` comes first; then ``variants`` gives calls without arguments, ready to be timed."""

    packages: ClassVar[tuple[str, ...]]
    """Distributions whose versions are recorded."""

    @abstractmethod
    def load(self, network: Mapping[str, Any], data: Data) -> None:
        """Take over network and batch. Raises ``UnsupportedError`` with the reason."""

    @abstractmethod
    def gradient(self) -> Variants:
        """The gradient of a new batch's loss."""

    def primal(self) -> Variants:
        """What products share."""
        return {}

    @abstractmethod
    def product(self, v: Array) -> Variants:
        """``Hv``, what products share being done."""

    def multiply(self, v: Array) -> Any:
        """``Hv``, for checks."""
        return next(iter(self.product(v).values()))()

    def quadratic(self, v: Array) -> Variants:
        """The gradient of ``v'Hv``."""
        return {}

    @abstractmethod
    def solve(self, start: Array, eps: float) -> Variants:
        """Calls that return a ``Solution``."""

    def step(self, start: Array) -> Variants:
        """Calls that return a ``Penalized``."""
        return {}

    @abstractmethod
    def short_solve(self, start: Array) -> Call:
        """A solve of at most ``MEMORY_CAP`` products, for its memory; nothing runs yet, but all is compiled."""

    @abstractmethod
    def plain_gradient(self) -> Call:
        """A gradient, for its memory; nothing runs yet, but all is compiled."""

    @abstractmethod
    def array(self, vector: Any) -> npt.NDArray[np.float64]:
        """A vector in the library's form as a flat array."""

    def variants(self, quantity: str, data: Data) -> Variants:
        """The calls of that quantity."""
        kind, _, detail = quantity.partition(" ")
        if kind == "gradient":
            return self.gradient()
        if kind == "primal":
            return self.primal()
        if kind == "product":
            return self.product(data["v"])
        if kind == "quadratic":
            return self.quadratic(data["v"])
        if kind == "solve":
            return self.solve(data["start"], float(detail))
        if kind == "step":
            return self.step(data["start" if detail == "cold" else "warm"])
        raise ValueError(f"no quantity is called {quantity!r}.")


def parameters(data: Data) -> list[Array]:
    """The network's parameters in their order."""
    return [data[f"parameter {i}"] for i in range(sum(name.startswith("parameter ") for name in data))]
