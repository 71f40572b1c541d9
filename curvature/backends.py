"""Which backend makes the batch problems: ``auto`` takes the fastest that supports every layer and says which.

``cuda``: for inputs on a GPU, the sweeps of ``rop`` as CUDA graphs, or of small perceptrons as single kernels;
``native``: compiled sweeps for chains of layers on the CPU; ``rop``: R and R^2 rules over any traced network of known
layers; ``autograd``: double backward, any module.
All are exact; a backend that was asked for by name and can't serve the network is an error that says why, while
``auto`` goes on to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.cuda.mlp import MLPProblem, trusted
from spectral_run.curvature.cuda.plan import PRECISIONS, Precision
from spectral_run.curvature.cuda.problem import CudaNetwork, CudaProblem
from spectral_run.curvature.native.lower import native_network
from spectral_run.curvature.native.problem import NativeProblem
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.rop.base import UnsupportedError
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.trace import trace

BACKENDS = ("auto", "cuda", "native", "rop", "autograd")
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


def choose_backend(
    name: str,
    objective: Objective,
    inputs: Tensor,
    *,
    weight_decay: float = 0.0,
    precision: str = "exact",
    fused: bool = False,
) -> Backend:
    """The backend of that name for this network on inputs of this shape and type (their number is free).

    ``precision`` (exact, tf32, bf16) and ``fused`` (kernels of our own) are for ``cuda`` alone; then ``why`` has the
    error of a product against the exact one, on random inputs of this shape.
    Raises ``ValueError`` with the names there are, or with what keeps the backend from serving the network.
    """
    if name not in BACKENDS:
        raise ValueError(f"curvature.backend must be one of {', '.join(BACKENDS)}; got {name!r}.")
    asked = next((known for known in PRECISIONS if known == precision), None)
    if asked is None:
        raise ValueError(f"curvature.precision must be one of {', '.join(PRECISIONS)}; got {precision!r}.")
    if (precision != "exact" or fused) and name != "cuda":
        raise ValueError(f"curvature.backend={name} has no precision and no fused kernels to choose; cuda has.")
    reasons: dict[str, list[str]] = {}  # what keeps which backends from it: for two it may be the same
    found = [other for other in BACKENDS[1:] if other != "cuda" or _on_gpu(inputs)]
    for candidate in found if name == "auto" else (name,):
        note = ""
        try:
            if candidate == "cuda":
                make, note = _cuda(objective, inputs, weight_decay, asked, fused)
            else:
                make = _MAKERS[candidate](objective, inputs)
        except UnsupportedError as error:
            if name != "auto":
                raise ValueError(f"curvature.backend={name}: {error}") from error
            reasons.setdefault(str(error).rstrip("."), []).append(candidate)
        else:
            against = [f"not {' or '.join(names)}: {reason}" for reason, names in reasons.items()]
            why = "; ".join([_MERITS[candidate], *against]) if name == "auto" else "asked for"
            why += f"; {note}" if note else ""
            return Backend(name=candidate, why=why, make=make, weight_decay=weight_decay)
    raise AssertionError("autograd takes every network")


def _cuda(
    objective: Objective, inputs: Tensor, weight_decay: float, precision: Precision, fused: bool
) -> tuple[Maker, str]:
    if not torch.cuda.is_available():
        raise UnsupportedError("there is no CUDA device here. Take auto, native, rop or autograd, which run anywhere.")
    if not _on_gpu(inputs):
        raise UnsupportedError(f"the model is on {inputs.device.type}, not on a CUDA device. Set device=cuda.")
    against = ""
    if not fused and precision != "bf16":
        try:
            single, error = trusted(objective, inputs, weight_decay=weight_decay, precision=precision)
        except UnsupportedError as failure:
            against = f"not as single kernels: {failure}".rstrip(".")
        else:
            note = f"in single kernels, whose {precision} products differ from the rules by {error:.1e}"
            return lambda *batch, **settings: MLPProblem(single, *batch, **settings), note
    network = CudaNetwork(objective, precision=precision, fused=fused)
    try:
        network.trial(inputs, weight_decay)
    except RuntimeError as error:  # out of memory, or a kernel's: another backend may still do
        raise UnsupportedError(f"a trial failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    note = "" if precision == "exact" else f"{precision}: a product differs from the exact one by {network.error:.1e}"
    note = "; ".join(filter(None, [note, against]))
    return lambda *batch, **settings: CudaProblem(network, *batch, **settings), note


def _on_gpu(inputs: Tensor) -> bool:
    return inputs.device.type == "cuda"


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
    "cuda": "its sweeps are recorded for this GPU, and agree with the rules",
    "native": "its sweeps are compiled for this processor",
    "rop": "it has a rule for every layer",
    "autograd": "it differentiates any module",
}
