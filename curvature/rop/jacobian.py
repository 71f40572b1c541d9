"""The Jacobian of a traced network by the rules alone: ``forward1`` is ``J v``, ``backward0`` is ``J' u``.

The second derivatives of the layers take no part, so a Gauss-Newton product costs less than a Hessian-vector product:
two instead of three products with weights a layer backwards.  Exact for every rule, by what the two methods mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.operators.jacobian import Jacobian
from spectral_run.curvature.rop.graph import Graph, flat, hand_down, unflatten


@final
class RopJacobian(Jacobian):
    """Of one batch at the given parameters, with a primal pass of its own."""

    def __init__(self, graph: Graph, inputs: Tensor, params: Sequence[Tensor], draws: dict[int, Any]) -> None:
        self._graph, self._params = graph, params
        with torch.no_grad():
            self.outputs, self._nodes = graph.forward(inputs, params, own_point=False, draws=draws)
        for rule, *_ in self._nodes:
            rule.straighten()
        self._backwards = self._nodes[::-1]
        self._vectorizes = all(rule.vectorizes for rule, *_ in self._nodes)

    @torch.no_grad()
    def jvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, "rows ..."]:
        """``J v``: order 1 forwards."""
        return self._push(unflatten(v, self._params))

    @torch.no_grad()
    def vjp(self, u: Float[Tensor, "rows ..."]) -> Float[Tensor, " n"]:
        """``J' u``: order 0 backwards, from u."""
        return flat(self._pull(u))

    @torch.no_grad()
    def jvps(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k rows ..."]:
        """All at once, and in k times the memory, where every rule vectorizes."""
        if not self._vectorizes:
            return super().jvps(vectors)
        sizes = [p.numel() for p in self._params]
        parts = zip(torch.split(vectors, sizes, dim=1), self._params, strict=True)
        moved: Tensor = torch.func.vmap(self._push)([part.reshape(-1, *p.shape) for part, p in parts])
        return moved

    @torch.no_grad()
    def vjps(self, cotangents: Float[Tensor, "k rows ..."]) -> Float[Tensor, "k n"]:
        """All at once, where every rule vectorizes."""
        if not self._vectorizes:
            return super().vjps(cotangents)
        pieces = torch.func.vmap(self._pull)(cotangents)
        return torch.cat([piece.flatten(1) for piece in pieces], dim=1)

    def _push(self, v: Sequence[Tensor]) -> Tensor:
        values: list[Any] = [None] * self._graph.slots
        slots = self._graph.parameter_slots
        values[slots.start : slots.stop] = v
        for rule, inputs, _, out, last in self._nodes:
            values[out] = rule.forward1(*inputs(values))
            rule.jet1 = None
            for slot in last:
                values[slot] = None
        z1: Tensor | None = values[self._graph.output]
        return torch.zeros_like(self.outputs) if z1 is None else z1

    def _pull(self, u: Tensor) -> list[Tensor]:
        cotangents: list[Any] = [None] * self._graph.slots
        cotangents[self._graph.output] = u
        for rule, _, slots, out, _ in self._backwards:
            g, cotangents[out] = cotangents[out], None
            hand_down(cotangents, slots, rule.backward0(g))
        slots_of_parameters = self._graph.parameter_slots
        pieces = cotangents[slots_of_parameters.start : slots_of_parameters.stop]
        return [torch.zeros_like(p) if g is None else g for g, p in zip(pieces, self._params, strict=True)]
