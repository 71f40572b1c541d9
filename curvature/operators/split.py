"""Rows in batches, at one point: what the operators over the same data share.

One batch at a time is held; a single batch's problem and Jacobian are kept.  The point is the one at construction:
parameters that move later do not move a matrix.  The network's mode must not change either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.backends import Backend
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.operators.jacobian import Jacobian, jacobian_of
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.rows import Rows


@final
class Split:
    """``f = sum_b (|b| / N) f_b``, batches b of at most ``batch_size`` of N rows, at ``params`` or the model's own."""

    def __init__(
        self,
        objective: Objective,
        inputs: Rows,
        targets: Tensor,
        backend: Backend,
        batch_size: int,
        params: Float[Tensor, " n"] | None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"curvature operator: batch_size must be at least 1, got {batch_size}.")
        if len(inputs) != len(targets) or not len(inputs):
            raise ValueError(
                f"curvature operator: needs as many inputs as targets, and some; got {len(inputs)} and {len(targets)}."
            )
        self.objective, self.inputs, self.targets = objective, inputs, targets
        self.backend, self.batch_size = backend, batch_size
        own = flatten([p.detach() for p in objective.parameters])
        if params is not None and (params.shape != own.shape or params.dtype != own.dtype):
            raise ValueError(
                f"curvature operator: params must have {len(own)} numbers of {own.dtype}, "
                f"got shape {tuple(params.shape)} of {params.dtype}."
            )
        self.params = own if params is None else params.detach().clone()
        self.rows = len(inputs)
        self._mode = self._modes()
        self._problem: BatchProblem | None = None
        self._jacobian: Jacobian | None = None

    @property
    def single(self) -> bool:
        """Whether one batch holds all rows."""
        return self.rows <= self.batch_size

    def problems(self, term: Callable[[slice, BatchProblem], Tensor]) -> Iterator[Tensor]:
        """The term of every batch, given its rows. Of many batches each is let go before the next is made."""
        if self._mode != self._modes():
            raise RuntimeError("curvature operator: the network's mode has changed since it was made.")
        if self.single:
            if self._problem is None:
                self._problem = self.backend(self.objective, self.inputs[:], self.targets, self.params)
            yield term(slice(0, self.rows), self._problem)
            return
        for start in range(0, self.rows, self.batch_size):
            rows = slice(start, min(start + self.batch_size, self.rows))
            yield term(rows, self.backend(self.objective, self.inputs[rows], self.targets[rows], self.params))

    def jacobians(self, term: Callable[[slice, Jacobian], Tensor]) -> Iterator[Tensor]:
        """The term of every batch's Jacobian, kept and let go likewise."""

        def of(rows: slice, problem: BatchProblem) -> Tensor:
            if not self.single:
                return term(rows, jacobian_of(problem))
            if self._jacobian is None:
                self._jacobian = jacobian_of(problem)
            return term(rows, self._jacobian)

        return self.problems(of)

    def _modes(self) -> tuple[bool, ...]:
        return tuple([module.training for module in self.objective.model.modules()])


def total(terms: Iterator[Tensor]) -> Tensor:
    """The sum of at least one term, of which two are there at a time."""
    result = next(terms)
    for term in terms:
        result = result + term
    return result
