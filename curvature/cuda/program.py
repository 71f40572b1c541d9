"""What a traced network needs before its sweeps can be recorded: no host in them, nothing kept for later, other rules.

Everything here works around the rules of backend ``rop`` without changing them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from spectral_run.curvature.cuda.capture import CaptureError
from spectral_run.curvature.rop.base import LossRule, Rule
from spectral_run.curvature.rop.forms import Elementwise
from spectral_run.curvature.rop.graph import Graph
from spectral_run.curvature.rop.losses.cross_entropy import CrossEntropy
from spectral_run.curvature.rop.trace import Program

Replacements = Mapping[type[Any], type[Any]]
"""Rules and losses to be used in the place of others: subclasses, or classes with the same methods."""

_PER_PRODUCT = ("jet1", "jet2")  # what a rule sets anew in every product


def specialized(program: Program, replacements: Replacements) -> Program:
    """The program in its present mode with other rules and losses. A change of the network's mode needs another one."""
    graph = program.graph()
    steps = tuple(
        step if step.rule is None else replace(step, rule=replacements.get(step.rule, step.rule))
        for step in graph.steps
    )
    clone = copy.copy(program)
    graphs = {mode: replace(graph, steps=steps) for mode, each in program._graphs.items() if each is graph}
    vars(clone).update(_graphs=graphs, loss=partial(_loss, program, replacements))
    return clone


def _loss(program: Program, replacements: Replacements) -> LossRule:
    rule = program.loss()
    kind: Callable[[Mapping[str, Any]], LossRule] = replacements.get(type(rule), type(rule))
    return kind(rule.given)


@final
@dataclass(frozen=True)
class Moments:
    """A batch's mean and variance in a layer that keeps running ones."""

    layer: Any
    mean: Tensor
    variance: Tensor
    count: int

    def move(self) -> None:
        """Move the layer's running statistics, where ``running_statistics(model)`` says that they move."""
        if self.layer.training and self.layer.update_statistics:
            self.layer._update(self.mean, self.variance, self.count)


@contextmanager
def statistics_set_aside(model: nn.Module) -> Iterator[list[Moments]]:
    """Collect what would have moved running statistics, which stay as they are: a warm-up or a replay moves nothing."""
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "update_statistics")]
    before = [layer.update_statistics for layer in layers]
    moments: list[Moments] = []
    for layer in layers:
        layer.update_statistics = True
        vars(layer)["_update"] = lambda mean, variance, count, layer=layer: moments.append(
            Moments(layer, mean, variance, count)
        )
    try:
        yield moments
    finally:
        for layer, update in zip(layers, before, strict=True):
            layer.update_statistics = update
            del vars(layer)["_update"]


def settle(rules: list[Rule]) -> None:
    """Compute now, with the primal pass, what rules would compute in the first product and keep for the others.

    A recorded product would hold it, and products recorded later would read what an earlier batch left there.
    """
    for rule in rules:
        if isinstance(rule, Elementwise) and rule.bend is None and hasattr(rule, "g0"):
            rule.bend = rule.second() * rule.g0


@contextmanager
def nothing_kept(rules: list[Rule]) -> Iterator[None]:
    """Raise ``CaptureError`` if a rule keeps something from a product for the next one."""
    before = [dict(vars(rule)) for rule in rules]
    yield
    for rule, had in zip(rules, before, strict=True):
        for name, value in vars(rule).items():
            if name not in _PER_PRODUCT and had.get(name, None) is not value:
                raise CaptureError(
                    f"the rule {type(rule).__name__} keeps {name!r} from one product for the next, "
                    "which a recorded product can't"
                )


@torch.no_grad()
def trial_batch(program: Program, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Random inputs like these, and targets that the loss takes. Leaves all random states as they are."""
    if inputs.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(inputs.shape, generator=generator, dtype=torch.float64).to(inputs)
    with torch.random.fork_rng([inputs.device] if inputs.device.type == "cuda" else []):
        parameters = [p.detach() for p in program.objective.parameters]
        outputs, _ = program.graph().forward(inputs, parameters, own_point=False, draws={})
    targets = torch.zeros_like(outputs)
    if isinstance(program.loss(), CrossEntropy):
        targets = targets.movedim(1, -1)[..., 0].long() if outputs.dim() > 1 else targets[0].long()
    return inputs, targets


def draws_of(graph: Graph, inputs: Tensor, parameters: list[Tensor]) -> dict[int, Any]:
    """New dropout masks, drawn as torch draws them: by a forward pass of its own."""
    draws: dict[int, Any] = {}
    with torch.no_grad():
        graph.forward(inputs, parameters, own_point=False, draws=draws)
    return draws
