"""Backend ``rop``: Pearlmutter's R and the paper's R^2 as rules per layer, over activations computed once per batch.

Source: Pearlmutter 1994; Sandler, Klabjan, Luo, section 3 and appendix A. ``H v`` is the first derivative of the
gradient along v and ``grad_w v'H(w)v`` the second: jets of order 1 and 2 run forwards and backwards through the
network. No autograd graph is made anywhere. Exact for every layer with a rule, the normalizations included, whose
fused kernels autograd can't differentiate three times; ``trace`` refuses all else by name.
Cost in gradients: linearize 1, product 1 to 2, ``hvp_and_quadratic_grad`` 2 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.rop.base import LossRule
from spectral_run.curvature.rop.graph import Node, flat, hand_down, unflatten
from spectral_run.curvature.rop.jacobian import RopJacobian
from spectral_run.curvature.rop.trace import Program, trace

Values: TypeAlias = list[Any]  # a tensor or None per slot


@final
class RopProblem(BatchProblem):
    """One batch of a network whose layers all have rules. The primal pass runs once, at the first call that needs it.

    ``program`` is ``trace(objective)``, to be made once for all batches. ``weight_decay`` c adds ``c/2 |w|^2`` to f as
    far as curvature goes, as in ``AutogradProblem``. Parameters are read in place: a problem is good until they move.
    """

    def __init__(
        self,
        objective: Objective,
        inputs: Tensor,
        targets: Tensor,
        *,
        weight_decay: float = 0.0,
        params: Float[Tensor, " n"] | None = None,
        program: Program | None = None,
        draws: dict[int, Any] | None = None,
    ) -> None:
        self.program = trace(objective) if program is None else program
        if self.program.objective is not objective and self.program.objective != objective:
            raise ValueError("RopProblem: program must be a trace of this objective, got one of another.")
        self.objective = objective
        self.graph = self.program.graph()
        self.n = self.graph.n
        self.products = 0
        self.inputs, self.targets = inputs, targets
        self._weight_decay = weight_decay
        self._own_point = params is None
        self._draws: dict[int, Any] = {} if draws is None else draws
        own = [p.detach() for p in self.graph.parameters]
        self._params: list[Tensor] = own if params is None else list(unflatten(params.detach(), own))
        self._loss: Tensor | None = None
        self._outputs: Tensor | None = None
        self._nodes: list[Node] = []
        self._backwards: list[Node] = []
        self._rule: LossRule | None = None
        self._gradient: Tensor | None = None
        self._version = 0  # of the parameters, at the primal pass

    @property
    def params(self) -> Float[Tensor, " n"]:
        """The point, as one vector (a copy)."""
        return flat(self._params)

    @torch.no_grad()
    def loss(self) -> Float[Tensor, ""]:
        """Mean loss over the batch, by the objective's own function."""
        if self._loss is None:
            self._version = self._versions()
            self._outputs, self._nodes = self.graph.forward(
                self.inputs, self._params, own_point=self._own_point, draws=self._draws
            )
            self._loss = self.objective.loss(self._outputs, self.targets)
        return self._loss

    def grad(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss; what it computes on the way is what products need."""
        self.linearize()
        assert self._gradient is not None
        return self._gradient

    @torch.no_grad()
    def linearize(self) -> None:
        """One forward and one backward pass, in which every rule keeps what it will need."""
        if self._gradient is not None:
            return
        self.loss()
        self._refuse_moved()
        assert self._outputs is not None
        self._backwards = self._nodes[::-1]
        self._rule = self.program.loss()
        cotangents: Values = [None] * self.graph.slots
        cotangents[self.graph.output] = self._rule.cotangent0(self._outputs, self.targets)
        self._outputs = None
        for rule, _, slots, out, _ in self._backwards:
            g, cotangents[out] = cotangents[out], None
            hand_down(cotangents, slots, rule.backward0(g))
        self._gradient = flat(self._collect(cotangents))

    def hvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``H v``: order 1 forwards and backwards."""
        self._begin(1)
        with torch.no_grad():
            pieces = self._product(unflatten(v, self._params))
            return self._shifted(flat(pieces), v)

    def hvps(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """``H v`` for every row: k products, all at once and in k times the memory where every rule vectorizes."""
        self.linearize()
        if not all(node[0].vectorizes for node in self._nodes):
            return torch.stack([self.hvp(v) for v in vectors])
        self._begin(len(vectors))
        with torch.no_grad():
            sizes = [p.numel() for p in self._params]
            parts = zip(torch.split(vectors, sizes, dim=1), self._params, strict=True)
            pieces = torch.func.vmap(self._product)([part.reshape(-1, *p.shape) for part, p in parts])
            return self._shifted(torch.cat([piece.flatten(1) for piece in pieces], dim=1), vectors)

    def hvp_and_quadratic_grad(self, v: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H v`` and the gradient of ``v'Hv``: orders 1 and 2 in one sweep."""
        self._begin(1)
        with torch.no_grad():
            first, second = self._both(unflatten(v, self._params))
            return self._shifted(flat(first), v), flat(second)

    def at(self, params: Float[Tensor, " n"]) -> RopProblem:
        """The same batch at other parameters, with the same dropout masks; the network stays as it is."""
        if self.graph.draws:
            self.loss()  # masks are drawn by the first pass; make sure that it is this problem's
        return RopProblem(
            self.objective,
            self.inputs,
            self.targets,
            weight_decay=self._weight_decay,
            params=params,
            program=self.program,
            draws=self._draws,
        )

    def jacobian(self) -> RopJacobian:
        """Of the outputs, at the same point and with the same dropout masks. Cost: a primal pass of its own."""
        if self.graph.draws:
            self.loss()
        return RopJacobian(self.graph, self.inputs, self._params, self._draws)

    def _product(self, v: Sequence[Tensor]) -> list[Tensor]:
        x1 = self._tangents(v)
        for rule, inputs, _, out, last in self._nodes:
            x1[out] = rule.forward1(*inputs(x1))
            for slot in last:
                x1[slot] = None
        g1: Values = [None] * self.graph.slots
        z1 = x1[self.graph.output]
        if z1 is not None and self._rule is not None:
            g1[self.graph.output] = self._rule.cotangent1(z1)
            for rule, _, slots, out, _ in self._backwards:
                g, g1[out] = g1[out], None
                hand_down(g1, slots, rule.backward1(g))
                rule.jet1 = None
        return self._collect(g1)

    def _both(self, v: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        x1 = self._tangents(v)
        x2: Values = [None] * self.graph.slots
        for rule, inputs, _, out, last in self._nodes:
            x1[out] = rule.forward1(*inputs(x1))
            x2[out] = rule.forward2(*inputs(x2))
            for slot in last:
                x1[slot] = x2[slot] = None
        g1: Values = [None] * self.graph.slots
        g2: Values = [None] * self.graph.slots
        z1, z2 = x1[self.graph.output], x2[self.graph.output]
        if z1 is not None and self._rule is not None:
            g1[self.graph.output] = self._rule.cotangent1(z1)
            g2[self.graph.output] = self._rule.cotangent2(z1, z2)
            for rule, _, slots, out, _ in self._backwards:
                (first, g1[out]), (second, g2[out]) = (g1[out], None), (g2[out], None)
                hand_down(g1, slots, rule.backward1(first))
                hand_down(g2, slots, rule.backward2(first, second))
                rule.jet1 = rule.jet2 = None
        return self._collect(g1), self._collect(g2)

    def _tangents(self, v: Sequence[Tensor]) -> Values:
        """Order 1 of every value before the pass: v at the parameters."""
        values: Values = [None] * self.graph.slots
        first = self.graph.parameter_slots.start
        values[first : first + len(v)] = v
        return values

    def _collect(self, cotangents: Values) -> list[Tensor]:
        """The parameters' cotangents; zero where the loss does not depend on one."""
        slots = self.graph.parameter_slots
        pieces = cotangents[slots.start : slots.stop]
        return [torch.zeros_like(p) if g is None else g for g, p in zip(pieces, self._params, strict=True)]

    def _begin(self, products: int) -> None:
        self.linearize()
        self._refuse_moved()
        self.products += products

    def _refuse_moved(self) -> None:
        if self._version != self._versions():
            raise RuntimeError(
                "RopProblem: the parameters have moved since this batch's primal pass; make a new problem."
            )

    def _versions(self) -> int:
        """Grows with every change in place."""
        return sum([p._version for p in self._params])

    def _shifted(self, product: Tensor, v: Tensor) -> Tensor:
        return product.add_(v, alpha=self._weight_decay) if self._weight_decay else product
