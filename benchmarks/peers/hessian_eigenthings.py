"""hessian-eigenthings: double backward with a new forward pass in every product; its power iteration and its Lanczos.

Its power iteration asks for the residual and for eigenvalues that agree. Its Lanczos takes a number of steps fixed in
advance: here the smallest that reaches the residual, found beforehand, which a user would have to guess. It draws its
start vector from a seed, which is how the benchmark draws the one that all share.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from hessian_eigenthings import HessianOperator, lanczos, power_iteration_one, supervised_loss
from peers.base import CAP, MEMORY_CAP, Array, Call, Data, Peer, Solution, Variants
from peers.network import flat, load


@final
class HessianEigenthings(Peer):
    """The operator and its solvers as its documentation uses them."""

    packages: ClassVar[tuple[str, ...]] = ("hessian-eigenthings", "torch")

    def load(self, network: Mapping[str, Any], data: Data) -> None:
        self.model, self.x, self.y = load(network, data)
        self.operator = self.new()
        self.seed = int(data["seed"])

    def new(self) -> HessianOperator:
        return HessianOperator(self.model, [(self.x, self.y)], supervised_loss(F.cross_entropy))

    def gradient(self) -> Variants:
        return {}  # PyTorch's own

    def product(self, v: Array) -> Variants:
        return {"": partial(self.operator.matvec, torch.from_numpy(v))}

    def solve(self, start: Array, eps: float) -> Variants:
        first = torch.from_numpy(start)

        def power() -> Solution:
            value, vector, _, products, _ = power_iteration_one(self.new(), init=first, tol=eps, max_iter=CAP)
            return Solution(value, vector, products)

        variants: Variants = {"power": power}
        drawn = torch.randn(len(start), generator=torch.Generator().manual_seed(self.seed))
        enough = (m for m in range(2, 101) if torch.equal(drawn, first) and self._lanczos(m, eps)[1])
        if (steps := next(enough, None)) is not None:
            variants["lanczos, steps known"] = lambda: self._lanczos(steps, eps)[0]
        return variants

    def _lanczos(self, steps: int, eps: float) -> tuple[Solution, bool]:
        found = lanczos(self.new(), k=1, max_iter=steps, tol=eps, seed=self.seed)
        return Solution(float(found.eigenvalues[0]), found.eigenvectors[0], found.iterations), bool(found.converged[0])

    def short_solve(self, start: Array) -> Call:
        return partial(self._lanczos, MEMORY_CAP, 1e-9)

    def plain_gradient(self) -> Call:
        def gradient() -> object:
            return torch.autograd.grad(F.cross_entropy(self.model(self.x), self.y), list(self.model.parameters()))

        return gradient

    def array(self, vector: Any) -> np.ndarray:
        return flat(vector)
