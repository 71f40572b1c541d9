"""curvlinops: ``HessianLinearOperator`` (forward over reverse mode, a new forward pass in every product) and eigsh.

scipy's ``eigsh`` stops at ``tol`` relative to the eigenvalue, which is the residual asked for; its usual 20 basis
vectors cost 20 products before the first look, so a smaller basis is offered too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, final

import numpy as np
import torch
from curvlinops import HessianLinearOperator
from peers.base import CAP, MEMORY_CAP, Array, Call, Data, Peer, Solution, Variants
from peers.network import flat, load
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import nn


@final
class Curvlinops(Peer):
    """The operator as its documentation uses it, without its check that the data are deterministic."""

    packages: ClassVar[tuple[str, ...]] = ("curvlinops-for-pytorch", "torch", "scipy")

    def load(self, network: Mapping[str, Any], data: Data) -> None:
        self.model, self.x, self.y = load(network, data, swap=True)
        self.parameters = list(self.model.parameters())
        self.operator = self.new()

    def new(self) -> HessianLinearOperator:
        batch = [(self.x, self.y)]
        return HessianLinearOperator(
            self.model, nn.CrossEntropyLoss(), self.parameters, batch, check_deterministic=False
        )

    def gradient(self) -> Variants:
        return {}  # PyTorch's own

    def product(self, v: Array) -> Variants:
        return {"": partial(self.operator.__matmul__, torch.from_numpy(v))}

    def solve(self, start: Array, eps: float) -> Variants:
        return {f"eigsh, basis of {k}": partial(self._solve, start, eps, k, None) for k in (20, 8)}

    def _solve(self, start: Array, eps: float, basis: int, restarts: int | None) -> Solution:
        multiply = self.new().to_scipy(dtype=np.float32)
        products = 0

        def counted(v: Array) -> Array:
            nonlocal products
            products += 1
            return multiply.matvec(v)

        n = len(start)
        counting = LinearOperator((n, n), matvec=counted, dtype=np.float32)
        values, vectors = eigsh(counting, k=1, which="LM", v0=start, tol=eps, ncv=basis, maxiter=restarts or CAP)
        return Solution(float(values[0]), torch.from_numpy(vectors[:, 0]), products)

    def short_solve(self, start: Array) -> Call:
        def solve() -> None:
            with suppress(ArpackNoConvergence):
                self._solve(start, 1e-9, MEMORY_CAP, 1)

        return solve

    def plain_gradient(self) -> Call:
        def gradient() -> object:
            loss = nn.functional.cross_entropy(self.model(self.x), self.y)
            return torch.autograd.grad(loss, self.parameters)

        return gradient

    def array(self, vector: Any) -> np.ndarray:
        return flat(vector)
