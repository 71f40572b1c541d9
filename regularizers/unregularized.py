"""The plain loss: ``grad f``. The baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from spectral_run.curvature.problem import BatchProblem
from spectral_run.regularizers.base import RegularizedGradient, Regularizer, Step


@final
@dataclass(frozen=True, kw_only=True)
class Unregularized(Regularizer):
    """No penalty. Cost: one gradient."""

    def gradient(self, problem: BatchProblem, step: Step) -> RegularizedGradient:
        """The gradient of the loss."""
        with step.phase("gradient"):
            gradient = problem.grad()
            loss = float(problem.loss())
        return RegularizedGradient(gradient, loss, loss)
