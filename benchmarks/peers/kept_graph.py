"""Double backward written by hand, the graph of the gradient kept: PyHessian's way, on lists of tensors.

PyHessian stops its power iteration when successive eigenvalues agree; here it stops on the residual, as all others do.
The gradient of ``v'Hv`` is a third backward pass through the product's graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
import torch
import torch.nn.functional as F
from peers.base import CAP, MEMORY_CAP, MU, STEP_EPS, Array, Call, Data, Peer, Penalized, Solution, Variants
from peers.network import flat, load
from torch import Tensor

Power: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor], float, int], tuple[float, Sequence[Tensor], int]]


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return sum((p * q).sum() for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


@final
class KeptGraph(Peer):
    """What a good user of PyTorch writes in an afternoon."""

    packages: ClassVar[tuple[str, ...]] = ("torch",)

    def load(self, network: Mapping[str, Any], data: Data) -> None:
        self.model, self.x, self.y = load(network, data)
        self.parameters = list(self.model.parameters())

    def pieces(self, vector: Array) -> list[Tensor]:
        return self.split(torch.from_numpy(vector))

    def split(self, vector: Tensor) -> list[Tensor]:
        pieces = vector.split([p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    def gradients(self, *, graph: bool) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(self.model(self.x), self.y)
        return torch.autograd.grad(loss, self.parameters, create_graph=graph)

    def hv(self, gradients: Sequence[Tensor], v: Sequence[Tensor], *, graph: bool = False) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            gradients, self.parameters, grad_outputs=v, retain_graph=True, create_graph=graph, allow_unused=False
        )

    def slope(self, gradients: Sequence[Tensor], v: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(dot(self.hv(gradients, v, graph=True), v), self.parameters, retain_graph=True)

    def power(
        self, gradients: Sequence[Tensor], v: Sequence[Tensor], eps: float, cap: int
    ) -> tuple[float, Sequence[Tensor], int]:
        """Power iteration on lists of tensors."""
        norm = math.sqrt(dot(v, v))
        v = [piece / norm for piece in v]
        products = 0
        while True:
            u = self.hv(gradients, v)
            products += 1
            value, square = torch.stack((dot(u, v), dot(u, u))).tolist()
            residual = math.sqrt(dot(r := [p - value * q for p, q in zip(u, v, strict=True)], r))
            if residual <= eps * abs(value) or products == cap:
                break
            norm = math.sqrt(square)
            v = [piece / norm for piece in u]
        return value, v, products

    def flat_power(
        self, gradients: Sequence[Tensor], start: Sequence[Tensor], eps: float, cap: int
    ) -> tuple[float, Sequence[Tensor], int]:
        """The same on one vector, which PyHessian does not do: fewer, larger operations."""
        v = torch.cat([piece.reshape(-1) for piece in start])
        v = v / v.norm()
        products = 0
        while True:
            u = torch.cat([piece.reshape(-1) for piece in self.hv(gradients, self.split(v))])
            value = float(u @ v)
            products += 1
            if float((u - value * v).norm()) <= eps * abs(value) or products == cap:
                break
            v = u / u.norm()
        return value, self.split(v), products

    def gradient(self) -> Variants:
        return {"": partial(self.gradients, graph=False)}

    def primal(self) -> Variants:
        return {"": partial(self.gradients, graph=True)}

    def product(self, v: Array) -> Variants:
        return {"": partial(self.hv, self.gradients(graph=True), self.pieces(v))}

    def quadratic(self, v: Array) -> Variants:
        return {"": partial(self.slope, self.gradients(graph=True), self.pieces(v))}

    def solve(self, start: Array, eps: float) -> Variants:
        first = self.pieces(start)
        return {
            "power, lists": partial(self._solve, self.power, first, eps, CAP),
            "power, flat": partial(self._solve, self.flat_power, first, eps, CAP),
        }

    def _solve(self, power: Power, start: list[Tensor], eps: float, cap: int) -> Solution:
        return Solution(*power(self.gradients(graph=True), start, eps, cap))

    def step(self, start: Array) -> Variants:
        first = self.pieces(start)
        return {
            "power, lists": partial(self._step, self.power, first),
            "power, flat": partial(self._step, self.flat_power, first),
        }

    def _step(self, power: Power, start: list[Tensor]) -> Penalized:
        gradients = self.gradients(graph=True)
        value, v, products = power(gradients, start, STEP_EPS, CAP)
        slope = self.slope(gradients, v)
        mu = math.copysign(MU, value)
        return Penalized([g.detach() + mu * s for g, s in zip(gradients, slope, strict=True)], products)

    def short_solve(self, start: Array) -> Call:
        return partial(self._solve, self.power, self.pieces(start), 1e-9, MEMORY_CAP)

    def plain_gradient(self) -> Call:
        return partial(self.gradients, graph=False)

    def array(self, vector: Any) -> np.ndarray:
        return flat(vector)
