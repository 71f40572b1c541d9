"""Backend ``autograd``: products by differentiating the gradient's graph, which is built once per batch and kept.

Source: double backward form of Pearlmutter 1994; ``grad v'Hv`` is a third reverse pass with v held constant
(Sandler, Klabjan, Luo, lemma 3.1).  Exact for every module made of operations whose derivatives PyTorch has right:
see ``exact_layers``.  Cost in gradients: linearize 2, product about 2, ``hvp_and_quadratic_grad`` about 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.objective import FixedRandomness, Objective, flatten
from spectral_run.curvature.problem import BatchProblem


@final
class AutogradProblem(BatchProblem):
    """One batch of any module. The forward pass runs once, at the first call that needs it.

    ``weight_decay`` c adds ``c/2 |w|^2`` to f as far as curvature goes: every eigenvalue moves up by c. The gradient
    does not contain it (the optimizer applies it).
    """

    def __init__(
        self,
        objective: Objective,
        inputs: Tensor,
        targets: Tensor,
        *,
        weight_decay: float = 0.0,
        params: Float[Tensor, " n"] | None = None,
        randomness: FixedRandomness | None = None,
    ) -> None:
        self.objective = objective
        self.n = objective.n
        self.products = 0
        self.inputs, self.targets = inputs, targets
        self._weight_decay = weight_decay
        self._elsewhere = params is not None
        self._params: tuple[Tensor, ...] = (
            objective.parameters
            if params is None
            else tuple(piece.detach().requires_grad_() for piece in objective.split(params))
        )
        self._randomness = randomness
        if randomness is None and objective.random:
            self._randomness = FixedRandomness(inputs.device)
        self._loss: Tensor | None = None
        self._gradient: tuple[Tensor, ...] | None = None  # with its graph
        self._flat_gradient: Tensor | None = None

    @property
    def params(self) -> Float[Tensor, " n"]:
        """The point, as one vector (a copy)."""
        return flatten([p.detach() for p in self._params])

    def loss(self) -> Float[Tensor, ""]:
        """Mean loss over the batch."""
        return self._forward().detach()

    @torch.enable_grad()
    def grad(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss; does not build the graph that products need unless it is there already."""
        if self._flat_gradient is None:
            pieces = self._differentiate(self._forward(), graph=False)
            self._flat_gradient = flatten(pieces)
        return self._flat_gradient

    @torch.enable_grad()
    def linearize(self) -> None:
        """Build the gradient's graph: what all products share."""
        if self._gradient is None:
            self._gradient = self._differentiate(self._forward(), graph=True)
            self._flat_gradient = flatten([g.detach() for g in self._gradient])

    @torch.enable_grad()
    def hvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``H v``: the gradient's graph run backwards from v."""
        return flatten(self._product(v, graph=False))

    @torch.enable_grad()  # an optimizer's step may run without; the third derivative would then be 0 without a word
    def hvp_and_quadratic_grad(self, v: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H v`` with a graph, then the gradient of ``v'(Hv)``."""
        product = self._product(v, graph=True)
        quadratic = torch.stack([(h * piece).sum() for h, piece in zip(product, self.objective.split(v), strict=True)])
        return flatten([h.detach() for h in product]), flatten(self._differentiate(quadratic.sum(), graph=False))

    def at(self, params: Float[Tensor, " n"]) -> AutogradProblem:
        """The same batch at other parameters, with the same dropout masks."""
        if self._randomness is not None:
            self._forward()  # masks are drawn by the first pass; make sure that it is this problem's
        return AutogradProblem(
            self.objective,
            self.inputs,
            self.targets,
            weight_decay=self._weight_decay,
            params=params,
            randomness=self._randomness,
        )

    def _forward(self) -> Tensor:
        if self._loss is None:
            context: AbstractContextManager[None] = self._randomness or nullcontext()
            with context, torch.enable_grad():
                params = self._params if self._elsewhere else None
                self._loss = self.objective(self.inputs, self.targets, params)
        return self._loss

    def _product(self, v: Tensor, *, graph: bool) -> tuple[Tensor, ...]:
        self.linearize()
        self.products += 1
        assert self._gradient is not None
        pieces = self.objective.split(v)
        # A gradient without a graph is constant in w (a loss linear in that parameter): its row of H is zero.
        curved = [(g, piece) for g, piece in zip(self._gradient, pieces, strict=True) if g.requires_grad]
        if curved:
            outputs, vectors = zip(*curved, strict=True)
            product = self._differentiate(outputs, vectors, graph=graph)
        else:
            product = tuple(torch.zeros_like(piece) for piece in pieces)
        if self._weight_decay:
            product = tuple(h + self._weight_decay * piece for h, piece in zip(product, pieces, strict=True))
        return product

    def _differentiate(
        self, outputs: Tensor | Sequence[Tensor], vectors: Sequence[Tensor] | None = None, *, graph: bool
    ) -> tuple[Tensor, ...]:
        # autograd.grad and never .backward(): with create_graph the latter leaves a reference cycle per step.
        if isinstance(outputs, Tensor) and not outputs.requires_grad:
            return tuple(torch.zeros_like(p) for p in self._params)
        return torch.autograd.grad(
            outputs,
            self._params,
            grad_outputs=vectors,
            retain_graph=True,
            create_graph=graph,
            allow_unused=True,
            materialize_grads=True,
        )
