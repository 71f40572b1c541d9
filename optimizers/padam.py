"""Padam: Adam with the denominator's power as a setting, between momentum SGD (0) and Adam (1/2).

Source: Chen, Zhou, Tang, Yang, Cao, Gu 2020, with decoupled decay as in Granziol 2020, chapter 7, where three slips of
the print are put right (bias correction, the place of eps, the order of averaging).  With g the gradient, r the rate:

    w <- (1 - r c) w;  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  u = max(u, v) with amsgrad, else v
    w <- w - r m / (1 - b1^t) / (sqrt(u / (1 - b2^t)) + eps)^(2p)

``partial = 1/2`` is torch's AdamW; ``partial = 0`` SGD with a bias-corrected running mean for momentum.
Cost: no gradient beyond the step's; two vectors of memory, three with amsgrad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import nn


@final
class Padam(torch.optim.Optimizer):
    """``partial`` is p. ``weight_decay`` c is decoupled: no part of the loss."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.1,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        partial: float = 0.125,
        amsgrad: bool = True,
    ) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"Padam: {what}, got {got}.")

        require(lr >= 0, "lr must be >= 0", lr)
        require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "betas must be two numbers in [0, 1)", betas)
        require(eps >= 0, "eps must be >= 0", eps)
        require(weight_decay >= 0, "weight_decay must be >= 0", weight_decay)
        require(0 <= partial <= 0.5, "partial must be in [0, 1/2]", partial)
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "partial": partial,
            "amsgrad": amsgrad,
            "decoupled_weight_decay": True,
        }
        super().__init__(params, defaults)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self._move(p, group, self.state[p])
        return loss

    @staticmethod
    def _move(p: nn.Parameter, group: dict[str, Any], state: dict[str, Any]) -> None:
        if not state:
            names = ("mean", "square", "largest") if group["amsgrad"] else ("mean", "square")
            state |= {"steps": 0} | {name: torch.zeros_like(p) for name in names}
        assert p.grad is not None
        (b1, b2), rate = group["betas"], group["lr"]
        state["steps"] += 1
        p.mul_(1 - rate * group["weight_decay"])
        state["mean"].lerp_(p.grad, 1 - b1)
        square = state["square"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
        if group["amsgrad"]:
            square = torch.maximum(state["largest"], square, out=state["largest"])
        scale = (square / (1 - b2 ** state["steps"])).sqrt_().add_(group["eps"]).pow_(2 * group["partial"])
        p.addcdiv_(state["mean"], scale, value=-rate / (1 - b1 ** state["steps"]))
