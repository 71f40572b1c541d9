"""Entropy-SGD: gradient descent on the local entropy, whose gradient an inner chain of Langevin steps estimates.

Source: Chaudhari et al. 2017, "Entropy-SGD: biasing gradient descent into wide valleys", algorithm 1 and equation (4).
At a scope ``gamma`` (loss per squared parameter) the local entropy is

    F(x) = log of the integral over x' of exp(-f(x') - gamma/2 |x - x'|^2),    -grad F(x) = gamma (x - <x'>),

``<x'>`` the mean over the density inside. A step begins at x' = mu = x and does ``inner_steps`` times, each on a fresh
minibatch,

    x' <- x' - inner_lr (grad f(x') + gamma (x' - x)) + sqrt(inner_lr) noise N(0, I)
    mu <- (1 - average) mu + average x'

so the last iterates weigh most; mu stands for ``<x'>``. Then x goes against ``x - mu`` with momentum, and gamma grows
by the factor ``1 + gamma1``, up to ``gamma_max`` (scoping: gamma = gamma0 (1 + gamma1)^t, t the steps so far, kept in
the parameter groups). The cap is ours: without one a long run's gamma passes 2 / inner_lr, where the chain diverges.
Temperature: the chain samples exp(-2 U / noise^2), U the exponent above: ``noise = sqrt(2)`` samples the
density itself, the paper's 1e-4 one that is all but concentrated on its mode.

Cost: ``inner_steps`` gradients and as many batches a step; an epoch has that many fewer steps. Three vectors of memory
besides the gradient: x, mu, momentum. Fails: the chain diverges along a curvature lambda with
inner_lr (lambda + gamma) > 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from spectral_run.optimizers.base import Closure, require_closure


@final
class EntropySGD(torch.optim.Optimizer):
    """Descent on the local entropy with (Nesterov) momentum, without dampening.

    ``divide_by_gamma``: the direction is ``x - mu`` and ``lr = 1`` goes the whole way to mu: the learning rate of
    algorithm 1 divided by gamma. Without it the direction is ``gamma (x - mu)``, algorithm 1 to the letter.
    ``weight_decay`` adds ``weight_decay/2 |x|^2`` to f, inside the local entropy.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float = 1.0,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        divide_by_gamma: bool = True,
        inner_steps: int = 20,
        inner_lr: float = 0.1,
        noise: float = 1e-4,
        average: float = 0.75,
        gamma0: float = 0.03,
        gamma1: float = 1e-3,
        gamma_max: float = 1.0,
    ) -> None:
        at_least_0 = {"lr": lr, "weight_decay": weight_decay, "noise": noise, "gamma0": gamma0, "gamma1": gamma1}
        for name, value in at_least_0.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"EntropySGD: {name} must be >= 0 and finite, got {value}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"EntropySGD: momentum must be in [0, 1), got {momentum}.")
        if nesterov and momentum == 0:
            raise ValueError("EntropySGD: nesterov needs momentum > 0, got 0.")
        if inner_steps < 1:
            raise ValueError(f"EntropySGD: inner_steps must be >= 1, got {inner_steps}.")
        if not 0 < inner_lr < math.inf:
            raise ValueError(f"EntropySGD: inner_lr must be > 0 and finite, got {inner_lr}.")
        if not 0 < average <= 1:
            raise ValueError(f"EntropySGD: average must be in (0, 1], got {average}.")
        if not gamma_max >= gamma0:
            raise ValueError(f"EntropySGD: gamma_max must be >= gamma0 = {gamma0}, got {gamma_max}.")
        if not inner_lr * gamma_max < 2:
            raise ValueError(f"EntropySGD: inner_lr * gamma_max must be < 2, got {inner_lr} * {gamma_max}: unstable.")
        self.divide_by_gamma, self.inner_steps = divide_by_gamma, inner_steps
        self.inner_lr, self.noise, self.average = inner_lr, noise, average
        self.gamma0, self.gamma1, self.gamma_max = gamma0, gamma1, gamma_max
        # What a group may have for itself; "steps", the t of scoping, is state that state_dict keeps.
        held = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "steps": 0}
        super().__init__(params, held)

    @property
    def gamma(self) -> float:
        """The scope of the step to come."""
        growth = self.param_groups[0]["steps"] * math.log1p(self.gamma1)
        return min(self.gamma_max, self.gamma0 * math.exp(min(growth, 700.0)))

    def step(self, closure: Closure) -> float:  # type: ignore[override]  # it cannot do without
        """One outer step. Returns the loss at x on the first batch; parameters stay at x where the closure raises."""
        closure = require_closure("EntropySGD", closure)
        gamma = self.gamma
        with torch.no_grad():
            start = {p: p.clone() for group in self.param_groups for p in group["params"]}
            mean = {p: x.clone() for p, x in start.items()}
            try:
                loss = self._inner_steps(closure, gamma, start, mean)
            finally:
                for p, x in start.items():
                    p.copy_(x)
            for group in self.param_groups:
                for p in group["params"]:
                    direction = start[p].sub_(mean[p])
                    self._outer_step(p, direction if self.divide_by_gamma else direction.mul_(gamma), group)
                group["steps"] += 1
        return loss

    def _inner_steps(
        self, closure: Closure, gamma: float, start: dict[Tensor, Tensor], mean: dict[Tensor, Tensor]
    ) -> float:
        """Run the chain in the parameters' place, its average in ``mean``."""
        first = math.nan
        for inner in range(self.inner_steps):
            if inner > 0:
                closure.next_batch()
            with torch.enable_grad():
                loss = closure()
            first = loss if inner == 0 else first
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    drift = p.grad.add(p - start[p], alpha=gamma).add_(p, alpha=group["weight_decay"])
                    p.sub_(drift, alpha=self.inner_lr)
                    if self.noise > 0:
                        normal = torch.randn(p.shape, generator=closure.generator, dtype=p.dtype)
                        p.add_(normal.to(p.device), alpha=math.sqrt(self.inner_lr) * self.noise)
                    mean[p].lerp_(p, self.average)
        return first

    def _outer_step(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        momentum = group["momentum"]
        if momentum > 0:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"].mul_(momentum).add_(direction)
            direction = direction.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        p.sub_(direction, alpha=group["lr"])
