"""Which backend makes the batch problems: ``auto`` takes the fastest that supports every layer and says which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem

BACKENDS = ("auto", "autograd")


@final
@dataclass(frozen=True, kw_only=True)
class Backend:
    """A backend's name and why it was chosen; called with a batch, it gives the problem."""

    name: str
    why: str
    weight_decay: float = 0.0

    def __call__(self, objective: Objective, inputs: Tensor, targets: Tensor) -> BatchProblem:
        """The batch problem at the model's parameters."""
        return AutogradProblem(objective, inputs, targets, weight_decay=self.weight_decay)


def choose_backend(name: str, *, weight_decay: float = 0.0) -> Backend:
    """The backend of that name. Raises ``ValueError`` with the names there are."""
    if name not in BACKENDS:
        raise ValueError(f"curvature.backend must be one of {', '.join(BACKENDS)}; got {name!r}.")
    why = "asked for" if name != "auto" else "it differentiates any module"
    return Backend(name="autograd", why=why, weight_decay=weight_decay)
