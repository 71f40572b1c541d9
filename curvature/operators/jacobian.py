"""The Jacobian of a network's outputs on one batch with respect to its trainable parameters, by products.

``J v`` moves the outputs along v, ``J' u`` pulls a cotangent of the outputs back.  Every curvature matrix here but the
Hessian is a sum of ``J' M J`` with M acting on the outputs.  A batch problem with a method ``jacobian()`` gives its own
(``rop``, ``native``); for any other problem it is taken by autograd.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.problem import BatchProblem


class Jacobian(ABC):
    """Of one batch, at one point. ``outputs`` are the network's: (rows, ...), without a graph."""

    outputs: Tensor

    @abstractmethod
    def jvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, "rows ..."]:
        """``J v``."""

    @abstractmethod
    def vjp(self, u: Float[Tensor, "rows ..."]) -> Float[Tensor, " n"]:
        """``J' u``."""

    def jvps(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k rows ..."]:
        """``J v`` for every row. One after another, unless a backend has a batched form."""
        return torch.stack([self.jvp(v) for v in vectors])

    def vjps(self, cotangents: Float[Tensor, "k rows ..."]) -> Float[Tensor, "k n"]:
        """``J' u`` for every u."""
        return torch.stack([self.vjp(u) for u in cotangents])


@runtime_checkable
class HasJacobian(Protocol):
    """A batch problem whose backend has a Jacobian of its own."""

    def jacobian(self) -> Jacobian:
        """At the problem's point, of its batch."""
        ...


def jacobian_of(problem: BatchProblem) -> Jacobian:
    """The backend's own Jacobian of a batch problem, or autograd's."""
    if isinstance(problem, HasJacobian):
        return problem.jacobian()
    return AutogradJacobian(problem.objective, problem.inputs, problem.params)


@final
class AutogradJacobian(Jacobian):
    """Of any module, by reverse mode alone: ``J' u`` is linear in u, and its transpose with respect to u is J.

    torch's forward mode is wrong or missing for some layers (``exact_layers``), and is not used.  Cost: forward pass,
    then per ``vjp`` one backward pass and per ``jvp`` one pass through the graph of a backward pass, kept.
    """

    def __init__(self, objective: Objective, inputs: Tensor, params: Float[Tensor, " n"]) -> None:
        self._objective = objective
        model = objective.model
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        self._params = tuple(piece.detach().clone().requires_grad_() for piece in objective.split(params))
        # Copies, since torch's own BatchNorm moves its statistics with every pass in training.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with torch.enable_grad():
            outputs = functional_call(model, buffers | dict(zip(names, self._params, strict=True)), (inputs,))
        self._outputs: Tensor = outputs
        self.outputs = outputs.detach()
        self._cotangent = torch.zeros_like(self.outputs, requires_grad=True)
        self._pulled: tuple[Tensor, ...] | None = None  # J' u with its graph

    def jvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, "rows ..."]:
        """``J v``: the derivative of ``<J' u, v>`` with respect to u."""
        if self._pulled is None:
            self._pulled = self._pull(self._cotangent, graph=True)
        pairs = [(p, piece) for p, piece in zip(self._pulled, self._objective.split(v), strict=True) if p.requires_grad]
        if not pairs:
            return torch.zeros_like(self.outputs)
        pulled, pieces = zip(*pairs, strict=True)
        (moved,) = torch.autograd.grad(pulled, self._cotangent, pieces, retain_graph=True)
        return moved.detach()

    def vjp(self, u: Float[Tensor, "rows ..."]) -> Float[Tensor, " n"]:
        """``J' u``: a backward pass."""
        return flatten(self._pull(u, graph=False))

    def _pull(self, u: Tensor, *, graph: bool) -> tuple[Tensor, ...]:
        if not self._outputs.requires_grad:
            return tuple(torch.zeros_like(p) for p in self._params)
        return torch.autograd.grad(
            self._outputs,
            self._params,
            u,
            retain_graph=True,
            create_graph=graph,
            allow_unused=True,
            materialize_grads=True,
        )
