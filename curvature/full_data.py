"""The loss over a whole split, as a batch problem that never holds more than one batch.

``f(w) = sum_b (|b| / N) f_b(w)`` over batches b of N rows: an uneven last batch counts by its size.  The network must
be in evaluation mode where its layers mix the rows of a batch (BatchNorm), or f is no such sum; the caller sees to it.
Cost of a product: for every batch one primal pass and one product.  With several processes each goes through its piece
of the rows, and the sums are added up in one message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.backends import Backend, choose_backend
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.parallel import Processes
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.rows import Rows, spans


@final
class FullDataProblem(BatchProblem):
    """Sums a backend's problems over batches of ``batch_size`` rows, at the model's parameters or at others."""

    def __init__(
        self,
        objective: Objective,
        inputs: Rows,
        targets: Tensor,
        *,
        backend: Backend | None = None,
        batch_size: int = 1024,
        params: Float[Tensor, " n"] | None = None,
        processes: Processes | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"FullDataProblem: batch_size must be at least 1, got {batch_size}.")
        self.objective = objective
        self.n = objective.n
        self.products = 0
        self._inputs, self.targets = inputs, targets
        if isinstance(inputs, Tensor):
            self.inputs = inputs  # what K-FAC asks for
        self._batch_size, self._params = batch_size, params
        self._processes = processes
        self._rows = slice(None) if processes is None else processes.rows(len(inputs))
        self._backend = backend or choose_backend("autograd", objective, inputs[:1])

    @property
    def params(self) -> Float[Tensor, " n"]:
        """The point, as one vector (a copy)."""
        own = self.objective.parameters if self._params is None else [self._params]
        return flatten([p.detach() for p in own])

    def loss(self) -> Float[Tensor, ""]:
        """Mean loss over the split."""
        return self._mean(lambda problem: problem.loss(), ())

    def grad(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss."""
        return self._mean(lambda problem: problem.grad(), (self.n,))

    def hvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``H v`` over the split: one product, however many batches."""
        self.products += 1
        return self._mean(lambda problem: problem.hvp(v), (self.n,), v)

    def hvps(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """``H v`` for every row over the split: k products for one primal pass over the batches."""
        self.products += len(vectors)
        return self._mean(lambda problem: problem.hvps(vectors), tuple(vectors.shape), vectors)

    def hvp_and_quadratic_grad(self, v: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H v`` and the gradient of ``v'Hv`` over the split: one product."""
        self.products += 1
        both = self._mean(lambda problem: torch.stack(problem.hvp_and_quadratic_grad(v)), (2, self.n), v)
        return both[0], both[1]

    def at(self, params: Float[Tensor, " n"]) -> FullDataProblem:
        """The same split at other parameters."""
        return FullDataProblem(
            self.objective,
            self._inputs,
            self.targets,
            backend=self._backend,
            batch_size=self._batch_size,
            params=params,
            processes=self._processes,
        )

    def batches(self) -> Iterator[BatchProblem]:
        """One batch problem after another, each freed before the next is made; with several processes, of its rows."""
        for rows in self._spans():
            yield self._batch(rows)

    def _spans(self) -> Iterator[slice]:
        """The rows of every batch; none where there are no rows."""
        return spans(len(self._inputs), self._batch_size, self._rows)

    def _batch(self, rows: slice) -> BatchProblem:
        return self._backend(self.objective, self._inputs[rows], self.targets[rows], self._params)

    def _mean(
        self, value: Callable[[BatchProblem], Tensor], shape: tuple[int, ...], same: Tensor | None = None
    ) -> Tensor:
        count = len(self._inputs)
        if not count:
            raise ValueError("FullDataProblem: the split has no rows.")
        total: Tensor | None = None
        for rows in self._spans():
            term = value(self._batch(rows)) * ((rows.stop - rows.start) / count)
            total = term if total is None else total + term
        if total is None:  # more processes than rows
            like = self.objective.parameters[0]
            total = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return total if self._processes is None else self._processes.sum(total, same=same)[0]
