"""What optimizers here ask of the runner beyond ``step(closure)``: fresh batches, the batch problem, ends of epochs.

torch's own optimizers call their closure once; these may call it several times, and each call is a gradient evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from spectral_run.curvature.problem import BatchProblem

MakeOptimizer: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""An optimizer waiting for its parameters: in a conf file a node with ``_partial_: true``."""


@runtime_checkable
class Closure(Protocol):
    """What the runner hands to ``step``: one per step, begun on the step's own batch."""

    generator: torch.Generator
    """On the CPU, seeded by run seed, data set and step: whoever draws from it has no random state to save."""

    problem: BatchProblem
    """The batch problem of the last call: f itself, without the regularizer, at the parameters of that call."""

    def __call__(self) -> float:
        """Loss f on the current batch at the parameters as they are; leaves the gradient to follow in each ``.grad``.

        The gradient is the regularizer's. Running statistics of BatchNorm move at the first call on a batch only.
        """
        ...

    def next_batch(self) -> None:
        """Take a fresh minibatch for the calls to come; it counts as a batch of the epoch."""
        ...

    def spend(self, evaluations: int) -> None:
        """Count gradient evaluations that were made without a call."""
        ...


def require_closure(who: str, closure: object) -> Closure:
    """The closure, if it has what the runner's has. Raises ``TypeError`` naming who needs it."""
    if not isinstance(closure, Closure):
        raise TypeError(f"{who}: step needs a closure like the runner's (optimizers/base.py), got {closure!r}.")
    return closure


class Wrapper(torch.optim.Optimizer):
    """An optimizer around another one, ``base``, whose parameter groups (and so learning rates) are its own too.

    Tensors of a subclass's own go into ``self.state[parameter]``, counters into ``self.numbers``; the states of both
    optimizers are in ``state_dict``.
    """

    def __init__(self, params: Iterable[nn.Parameter], base: MakeOptimizer) -> None:
        self.base = base(list(params))
        super().__init__(self.base.param_groups, dict(self.base.defaults))
        self.param_groups = self.base.param_groups
        self.numbers: dict[str, int] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Of both: tensors and plain values only."""
        own = [dict(self.state.get(p, {})) for p in self.parameters]
        return {"base": self.base.state_dict(), "own": own, "numbers": dict(self.numbers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of both."""
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups  # loading makes new ones
        self.numbers = dict(state_dict["numbers"])
        self.state.clear()
        for p, held in zip(self.parameters, state_dict["own"], strict=True):
            self.state[p] = {
                key: value.to(p.device).clone() if isinstance(value, Tensor) else value for key, value in held.items()
            }


class Averaging(ABC):
    """Mixed into an optimizer that averages iterates: training goes on from the iterates, the average is evaluated."""

    @abstractmethod
    def end_epoch(self, epoch: int) -> None:
        """Called after an epoch's last step; epochs count from 1."""

    @abstractmethod
    def averaged(self) -> Sequence[Tensor] | None:
        """What to evaluate in the parameters' place, in their order; None as long as there is no average."""
