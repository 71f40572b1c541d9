"""K-FAC: the gradient times the inverse of the Kronecker-factored Fisher (generalized Gauss-Newton) matrix.

Source: Martens and Grosse 2015; Grosse and Martens 2016 for convolutions.  For a layer with weights W (the bias as one
more column), gradient V, and factors A (of its inputs) and G (of derivatives at its outputs; ``curvature/kfac.py``):
``A_k = e A_(k-1) + (1 - e) A(batch)``, ``e = min(1 - 1/k, decay)``, and G likewise (section 5);
``S = (G + d/pi)^-1 V (A + d pi)^-1``, ``d^2 = damping + weight_decay``, ``pi^2 = (tr A / dim A) / (tr G / dim G)``
(section 6.3);
``nu = min(1, sqrt(kl_clip / sum lr^2 <S, V>))`` over all layers (Ba, Grosse, Martens 2017);
``m <- momentum m + nu S``, ``w <- w - lr m``.
V is the gradient that the closure leaves, the regularizer's and weight decay's parts included; A and G are those of f.
Units: damping is curvature, loss per squared parameter; kl_clip is nats: ``lr^2 nu^2 <S, F S>``, to second order twice
the divergence of the step before momentum, is at most that.
Not as in the papers: learning rate, momentum and damping are settings instead of being fitted to the quadratic model
(sections 6.4 to 7); G is made from a random sign combination of the Hessian's roots at the outputs, whose mean is the
same as that of a drawn label's (``curvature/kfac.py``).
Parameters without factors (scale and shift of norms, embeddings) follow the plain gradient with the same lr and
momentum, never clipped.
Cost of a step: one gradient evaluation and two small products per layer and side; every ``factor_every`` steps one
evaluation more (``exact``: C for C outputs), every ``inverse_every`` steps ``O(in^3 + out^3)`` per layer.
Fails where factors say nothing of f: a curvature that changes between refreshes faster than the rate allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, final

import torch
from torch import nn

from spectral_run.curvature.kfac import KFAC
from spectral_run.curvature.kronecker import Block, Layer, layers_of
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.problem import BatchProblem
from spectral_run.optimizers.base import require_closure

_FACTORS = ("input_factor", "output_factor")
_PARTS = ("input_values", "input_vectors", "output_values", "output_vectors")
_FIRST = 3  # updates of the factors that are always followed by a decomposition: Martens and Grosse, algorithm 2


@final
class KFACOptimizer(torch.optim.Optimizer):
    """K-FAC with fixed learning rate, momentum and damping. Takes all trainable parameters of one network.

    ``kind``: how G is made, see ``curvature/kfac.py``.  ``factor_every`` and ``inverse_every``: steps between updates
    of the factors, and between decompositions of them, a multiple of the former; the first three updates are always
    decomposed.  ``kl_clip=None``: no clipping.  ``weight_decay`` is part of the objective, its curvature included.
    ``outside``: names of the parameters that follow the plain gradient; known after the first step.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 1e-3,
        kl_clip: float | None = 1e-3,
        kind: Literal["exact", "sampled", "empirical"] = "sampled",
        decay: float = 0.95,
        factor_every: int = 10,
        inverse_every: int = 20,
    ) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"KFACOptimizer: {what}, got {got}.")

        require(math.isfinite(lr) and lr >= 0, "lr must be >= 0", lr)
        require(0 <= momentum < 1, "momentum must be in [0, 1)", momentum)
        require(math.isfinite(weight_decay) and weight_decay >= 0, "weight_decay must be >= 0", weight_decay)
        require(math.isfinite(damping) and damping > 0, "damping must be positive", damping)
        require(kl_clip is None or kl_clip > 0, "kl_clip must be positive or null", kl_clip)
        require(kind in ("exact", "sampled", "empirical"), "kind must be exact, sampled or empirical", repr(kind))
        require(0 <= decay < 1, "decay must be in [0, 1)", decay)
        require(factor_every >= 1, "factor_every must be at least 1 step", factor_every)
        multiple = inverse_every >= 1 and inverse_every % max(1, factor_every) == 0
        require(multiple, f"inverse_every must be a multiple of factor_every={factor_every}", inverse_every)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.damping, self.kl_clip, self.decay = damping, kl_clip, decay
        self.factor_every, self.inverse_every = factor_every, inverse_every
        self.outside: tuple[str, ...] = ()
        self._kfac = KFAC(kind=kind)
        self._layers: tuple[Layer, ...] = ()
        self._objective: Objective | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float:  # type: ignore[override]
        """One step; the loss before it. Draws from ``closure.generator`` where the factors are renewed."""
        closure = require_closure("KFACOptimizer", closure)
        with torch.enable_grad():
            loss = closure()
        problem = closure.problem
        self._look_at(problem)
        done: int = self.state[self._layers[0].module.weight].get("step", 0)
        if done % self.factor_every == 0:
            closure.spend(self._renew(problem, closure.generator, done))
        self._move()
        for p in self._parameters():
            self.state[p]["step"] = done + 1
        return loss

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def _look_at(self, problem: BatchProblem) -> None:
        """Find the layers at the first step. Raises ``ValueError`` for a network or parameters that do not fit."""
        objective = getattr(problem, "objective", None)
        if not isinstance(objective, Objective):
            raise ValueError(f"KFACOptimizer: {type(problem).__name__} is no batch of a network.")
        if self._objective is not None and objective.model is self._objective.model:
            return
        named = {id(p): name for name, p in objective.model.named_parameters() if p.requires_grad}
        if {id(p) for p in self._parameters()} != set(named):
            raise ValueError(
                "KFACOptimizer: needs exactly the network's trainable parameters, the same at every step; "
                "freeze one with requires_grad_(False) instead of leaving it out."
            )
        try:
            self._layers = layers_of(objective)
        except ValueError as error:
            raise _with_advice(error) from error
        group_of = {id(p): i for i, group in enumerate(self.param_groups) for p in group["params"]}
        for layer in self._layers:
            weight, bias = layer.module.weight, layer.module.bias
            if layer.bias is not None and bias is not None and group_of[id(weight)] != group_of[id(bias)]:
                raise ValueError(
                    f"KFACOptimizer: weight and bias of layer {layer.name!r} share factors, so they must share a group."
                )
        held = {id(p) for layer in self._layers for p in (layer.module.weight, layer.module.bias)}
        self.outside = tuple(name for key, name in named.items() if key not in held)
        self._objective = objective

    def _renew(self, problem: BatchProblem, generator: torch.Generator, done: int) -> int:
        """Average this batch's factors in, decompose them where it is time; the backward passes it took."""
        try:
            moments = self._kfac.moments(problem, generator)
        except ValueError as error:
            raise _with_advice(error) from error
        update = done // self.factor_every + 1
        weight = min(1 - 1 / update, self.decay)
        for layer, factors in zip(self._layers, moments.factors, strict=True):
            state = self.state[layer.module.weight]
            for name, factor in zip(_FACTORS, factors, strict=True):
                state[name] = torch.lerp(factor, state[name], weight) if name in state else factor
            if update <= _FIRST or done % self.inverse_every == 0:
                block = Block.of(layer, *(state[name] for name in _FACTORS))
                state.update({part: getattr(block, part) for part in _PARTS})
        return moments.passes

    def _move(self) -> None:
        """Precondition the gradients that stand in ``.grad``, clip, and follow them with momentum."""
        assert self._objective is not None
        parameters = self._objective.parameters
        groups = {id(p): group for group in self.param_groups for p in group["params"]}
        pieces = []
        for p in parameters:
            piece, decay = torch.zeros_like(p) if p.grad is None else p.grad, groups[id(p)]["weight_decay"]
            pieces.append(piece.add(p, alpha=decay) if decay else piece)
        gradient = flatten(pieces)
        step = gradient.clone()
        energy = gradient.new_zeros(())
        for layer in self._layers:
            state, group = self.state[layer.module.weight], groups[id(layer.module.weight)]
            block = Block(layer, *(state[part] for part in _PARTS))
            block.apply(1 / block.damped_values(self.damping + group["weight_decay"]), gradient, step)
            energy += group["lr"] ** 2 * (layer.matrix(step) * layer.matrix(gradient)).sum()
        if self.kl_clip is not None:
            nu = (self.kl_clip / energy).sqrt().clamp_max(1.0)
            for layer in self._layers:
                for place in (layer.weight, layer.bias):
                    if place is not None:
                        step[place] *= nu
        for p, piece in zip(parameters, self._objective.split(step), strict=True):
            group, state = groups[id(p)], self.state[p]
            held = state.get("momentum")
            # Never in place: a loaded state shares its tensors with whoever it came from.
            state["momentum"] = piece.clone() if held is None else piece + group["momentum"] * held
            p.sub_(state["momentum"], alpha=group["lr"])


def _with_advice(error: ValueError) -> ValueError:
    return ValueError(
        f"KFACOptimizer: {error} Freeze what it names (requires_grad_(False)), or take optimizer=adam or optimizer=sgd."
    )
