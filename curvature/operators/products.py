"""Operators that are sums over batches: the Hessian, and ``J' M J`` with J the Jacobian of the network's outputs."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.operators.base import CurvatureOperator, Layout
from spectral_run.curvature.operators.jacobian import Jacobian
from spectral_run.curvature.operators.outputs import Action, OutputMatrix
from spectral_run.curvature.operators.split import Split, total
from spectral_run.curvature.problem import BatchProblem


@final
class Hessian(CurvatureOperator):
    """``sum_b (|b| / N) H_b``, and the backend's weight decay on the diagonal."""

    def __init__(self, split: Split) -> None:
        super().__init__(Layout.of(split.objective), split.params.dtype, split.params.device)
        self._split = split

    def multiply(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """The batches' own products."""

        def term(rows: slice, problem: BatchProblem) -> Tensor:
            products = problem.hvps(vectors) if len(vectors) > 1 else problem.hvp(vectors[0])[None]
            return torch.mul(products, (rows.stop - rows.start) / self._split.rows)

        return total(self._split.problems(term))


@final
class Pullback(CurvatureOperator):
    """``sum_b J_b' M_b J_b + shift 1``. Cost of a product, a batch: ``J v``, M on the outputs, ``J' u``."""

    def __init__(self, split: Split, matrix: OutputMatrix, *, shift: float = 0.0) -> None:
        super().__init__(Layout.of(split.objective), split.params.dtype, split.params.device)
        self._split, self._matrix, self._shift = split, matrix, shift
        self._kept: Action | None = None  # of a single batch

    def multiply(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """Along the vectors to the outputs, and back."""

        def term(rows: slice, jacobian: Jacobian) -> Tensor:
            action = self._kept or self._matrix.on(jacobian.outputs, rows)
            if self._split.single:
                self._kept = action
            if len(vectors) == 1:
                return jacobian.vjp(action(jacobian.jvp(vectors[0])[None])[0])[None]
            return jacobian.vjps(action(jacobian.jvps(vectors)))

        product = total(self._split.jacobians(term))
        return product.add_(vectors, alpha=self._shift) if self._shift else product


@final
class Outer(CurvatureOperator):
    """``g g'``, over the same parameters as another operator."""

    def __init__(self, like: CurvatureOperator, vector: Float[Tensor, " n"]) -> None:
        super().__init__(like.layout, like.dtype, like.device)
        self._vector = vector

    def multiply(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """``(g'v) g``."""
        return torch.outer(vectors @ self._vector, self._vector)
