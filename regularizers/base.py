"""What a regularizer is: it turns a batch problem into the gradient to follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.problem import BatchProblem


def _unbooked(phase: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True)
class Step:
    """Where training stands: the step's number, a generator seeded for it, and what the last step left behind.

    ``phase`` books time: ``with step.phase("eigensolver"): ...``; phases are named in ``runner/clock.py``.
    """

    number: int
    generator: torch.Generator
    state: Mapping[str, Tensor] = field(default_factory=dict)
    phase: Callable[[str], AbstractContextManager[None]] = _unbooked


@dataclass(frozen=True)
class RegularizedGradient:
    """The direction to follow, the loss and objective there, what to log, and what the next step may start from."""

    gradient: Float[Tensor, " n"]
    loss: float
    objective: float
    log: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)


class Regularizer(ABC):
    """Settings of a penalty. Keeps nothing between steps: what must last goes through ``Step.state``."""

    @abstractmethod
    def gradient(self, problem: BatchProblem, step: Step) -> RegularizedGradient:
        """Gradient of the regularized objective. Changes neither parameters nor global random state."""
