"""What an optimizer step gets of the runner: the batch at hand, its regularized gradient, fresh batches, their count.

The contract is ``Closure`` in ``optimizers/base.py``.  Cost is counted here: a gradient evaluation per call, and every
Hessian-vector product, the regularizer's and those that the optimizer asks of ``problem`` by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from spectral_run.curvature.problem import BatchProblem
from spectral_run.regularizers.base import RegularizedGradient, Step
from spectral_run.runner import seeding
from spectral_run.runner.clock import Clock
from spectral_run.runner.parts import Parts


@final
class StepClosure:
    """One optimizer step. ``take`` gives the epoch's next batch; ``accept`` hears of every result, before its use.

    ``gradient`` is a flat vector, which takes the gradient, and the views of it that every ``.grad`` is (made once: a
    small network's step is not much longer).  ``carried`` is the regularizer's state, and ``accept`` gets the result,
    its rows, and whether it is the step's first, which is at the network's own weights.
    """

    def __init__(
        self,
        parts: Parts,
        step: int,
        clock: Clock,
        gradient: Sequence[Tensor],
        carried: Mapping[str, Tensor],
        take: Callable[[], tuple[Tensor, Tensor]],
        accept: Callable[[RegularizedGradient, int, bool], None],
    ) -> None:
        self.carried = carried
        self.evaluations = 0
        self._parts, self._step, self._clock = parts, step, clock
        self._flat, *self._views = gradient
        self._take, self._accept = take, accept
        self._calls = 0
        self._products = 0  # of the problems that are left behind
        self._problem: BatchProblem | None = None
        if parts.processes is not None:  # masks of its own in every process, and no state of theirs to save
            purpose = ("forward", step, parts.processes.rank)
            torch.manual_seed(seeding.derive(parts.settings.seed, parts.dataset.name, *purpose))
        self.next_batch()

    @cached_property
    def generator(self) -> torch.Generator:
        """On the CPU, seeded by run seed, data set and step."""
        return seeding.generator(self._parts.settings.seed, self._parts.dataset.name, "optimizer", self._step)

    @property
    def problem(self) -> BatchProblem:
        """The last call's; before the first call, the batch's at the parameters as they are."""
        if self._problem is None:
            self._problem = self._parts.problem(self._inputs, self._targets)
        return self._problem

    @property
    def products(self) -> int:
        """Hessian-vector products so far."""
        return self._products + (0 if self._problem is None else self._problem.products)

    def next_batch(self) -> None:
        """Take the epoch's next batch; the calls to come are on it."""
        self._inputs, self._targets = self._take()
        self._leave()
        self._fresh = True

    def spend(self, evaluations: int) -> None:
        """Count gradient evaluations that were made without a call."""
        if evaluations < 0:
            raise ValueError(f"spend: evaluations must be >= 0, got {evaluations}.")
        self.evaluations += evaluations

    def __call__(self) -> float:
        """Loss on the batch at the parameters as they are; the regularizer's gradient goes into ``.grad``."""
        parts, settings = self._parts, self._parts.settings
        start = seeding.generator(settings.seed, parts.dataset.name, "eigensolver", self._step)
        self._leave()
        problem = self.problem
        with self._clock.phase("gradient"):
            if self._fresh:
                parts.first_pass(problem)
                self._fresh = False
        result = parts.regularizer.gradient(problem, Step(self._step, start, self.carried, self._clock.phase))
        self._calls += 1
        self.evaluations += 1
        self._accept(result, len(self._targets), self._calls == 1)
        self.carried = result.state
        self._flat.copy_(result.gradient)
        for parameter, view in zip(parts.objective.parameters, self._views, strict=True):
            parameter.grad = view  # anew each time: an optimizer's zero_grad() lets go of it
        return result.loss

    def _leave(self) -> None:
        """Go on from the problem at hand to another."""
        self._products = self.products
        self._problem = None
