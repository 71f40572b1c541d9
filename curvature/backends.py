"""Which backend makes the batch problems: ``auto`` takes the fastest that supports every layer and says which.

``native``: compiled sweeps for chains of layers on the CPU; ``rop``: R and R^2 rules over any traced network of known
layers; ``autograd``: double backward, any module.  All are exact; a backend that was asked for by name and can't serve
the network is an error that says why, while ``auto`` goes on to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.native.lower import native_network
from spectral_run.curvature.native.problem import NativeProblem
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.rop.base import UnsupportedError
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.trace import trace

BACKENDS = ("auto", "native", "rop", "autograd")
Maker: TypeAlias = Callable[..., BatchProblem]


@final
@dataclass(frozen=True, kw_only=True)
class Backend:
    """A backend's name and why it was chosen; called with a batch, it gives the problem."""

    name: str
    why: str
    make: Maker
    weight_decay: float = 0.0

    def __call__(
        self, objective: Objective, inputs: Tensor, targets: Tensor, params: Float[Tensor, " n"] | None = None
    ) -> BatchProblem:
        """The batch problem at the model's parameters, or at others."""
        return self.make(objective, inputs, targets, weight_decay=self.weight_decay, params=params)


def choose_backend(name: str, objective: Objective, inputs: Tensor, *, weight_decay: float = 0.0) -> Backend:
    """The backend of that name for this network on inputs of this shape and type (their number is free).

    Raises ``ValueError`` with the names there are, or with what keeps the backend from serving the network.
    """
    if name not in BACKENDS:
        raise ValueError(f"curvature.backend must be one of {', '.join(BACKENDS)}; got {name!r}.")
    reasons: dict[str, list[str]] = {}  # what keeps which backends from it: for two it may be the same
    for candidate in BACKENDS[1:] if name == "auto" else (name,):
        try:
            make = _MAKERS[candidate](objective, inputs)
        except UnsupportedError as error:
            if name != "auto":
                raise ValueError(f"curvature.backend={name}: {error}") from error
            reasons.setdefault(str(error).rstrip("."), []).append(candidate)
        else:
            against = [f"not {' or '.join(names)}: {reason}" for reason, names in reasons.items()]
            why = "; ".join([_MERITS[candidate], *against]) if name == "auto" else "asked for"
            return Backend(name=candidate, why=why, make=make, weight_decay=weight_decay)
    raise AssertionError("autograd takes every network")


def _native(objective: Objective, inputs: Tensor) -> Maker:
    network = native_network(objective, inputs)
    return lambda *batch, **settings: NativeProblem(network, *batch, **settings)


def _rop(objective: Objective, inputs: Tensor) -> Maker:
    program = trace(objective)
    return lambda *batch, **settings: RopProblem(*batch, program=program, **settings)


_MAKERS: dict[str, Callable[[Objective, Tensor], Maker]] = {
    "native": _native,
    "rop": _rop,
    "autograd": lambda objective, inputs: AutogradProblem,
}
_MERITS = {
    "native": "its sweeps are compiled for this processor",
    "rop": "it has a rule for every layer",
    "autograd": "it differentiates any module",
}
