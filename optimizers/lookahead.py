"""Lookahead: slow weights s follow every k steps of a fast optimizer, ``s <- s + alpha (w - s)``, then ``w <- s``.

Source: Zhang, Lucas, Hinton, Ba 2019, algorithm 1.  The fast optimizer's own state (momentum) is kept.
As there, the slow weights are what is evaluated.  On ``l/2 w^2`` with gradient descent of contraction a a cycle
contracts by ``1 - alpha + alpha a^k``.  k counts steps, alpha is a share.
Cost: no gradient; one vector of memory, and as with every average one pass over the training rows per evaluation of a
network with BatchNorm, whose running statistics are the fast weights'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from spectral_run.optimizers.base import Averaging, MakeOptimizer, Wrapper


@final
class Lookahead(Wrapper, Averaging):
    """``base`` takes the fast steps."""

    def __init__(self, params: Iterable[nn.Parameter], base: MakeOptimizer, *, k: int = 5, alpha: float = 0.5) -> None:
        if isinstance(k, bool) or k < 1:
            raise ValueError(f"Lookahead: k must be at least 1, got {k}.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"Lookahead: alpha must be in [0, 1], got {alpha}.")
        super().__init__(params, base)
        self.k, self.alpha = k, alpha
        self.numbers |= {"fast": 0}  # steps since the slow weights moved

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A fast step; every k-th is followed by a slow one."""
        for p in self.parameters:
            if "slow" not in self.state[p]:
                self.state[p]["slow"] = p.detach().clone()
        loss: float | None = self.base.step(closure)
        self.numbers["fast"] += 1
        if self.numbers["fast"] == self.k:
            self.numbers["fast"] = 0
            with torch.no_grad():
                for p in self.parameters:
                    p.copy_(self.state[p]["slow"].lerp_(p, self.alpha))
        return loss

    def end_epoch(self, epoch: int) -> None:
        """Cycles go on over ends of epochs."""

    def averaged(self) -> Sequence[Tensor] | None:
        """The slow weights, from the first step on."""
        held = [self.state[p].get("slow") for p in self.parameters]
        return None if any(slow is None for slow in held) else held
