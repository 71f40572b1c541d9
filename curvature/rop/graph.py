"""The network as a list of steps, each a rule or a plain computation on sizes, with the order-0 pass through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypeAlias, final

from torch import Tensor, _utils, nn

from spectral_run.curvature.rop.base import Cotangents, Rule

# C++ loops over the parameters: a third of the time that split, view and cat take from Python.
_flatten: Callable[[Sequence[Tensor]], Tensor] = _utils._flatten_dense_tensors
unflatten: Callable[[Tensor, Sequence[Tensor]], Sequence[Tensor]] = _utils._unflatten_dense_tensors

CONSTANT = 0  # the slot of whatever has no jets

# A rule on a batch, what takes its tensors out of the list of values, their slots, the slot of its output, and slots
# that no node after it reads.
Node: TypeAlias = tuple[Rule, Callable[[list[Any]], Sequence[Any]], tuple[int, ...], int, tuple[int, ...]]


@final
@dataclass(frozen=True)
class Slot:
    """Stands among a step's arguments for the value in that slot."""

    number: int


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One node of the graph: a rule's ``forward0``, or a function of sizes where ``rule`` is None."""

    name: str
    rule: type[Rule] | None
    function: Callable[..., Any]
    arguments: tuple[Any, ...]  # with slots for values
    keywords: dict[str, Any]
    tensors: tuple[int, ...]  # the slots of the rule's tensors, CONSTANT for one that is no value of the graph
    take: Callable[[list[Any]], Sequence[Any]]  # those tensors, out of the list of all values
    needs: tuple[bool, ...]  # which of them are active
    out: int
    active: bool
    last: tuple[int, ...]  # slots that no later step reads
    last_active: tuple[int, ...]  # slots that no later active step reads


@final
@dataclass(frozen=True, kw_only=True)
class Graph:
    """What ``trace`` makes of a network in one mode; holds no batch."""

    steps: tuple[Step, ...]
    slots: int
    input: int
    output: int
    output_active: bool
    parameters: tuple[nn.Parameter, ...]  # the trainable ones, in the order of the flat vector
    parameter_slots: range
    constants: tuple[tuple[int, Callable[[], Any]], ...]  # buffers and frozen parameters that ``forward`` itself uses

    @property
    def n(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters)

    @property
    def draws(self) -> bool:
        """Whether some rule may keep random numbers for later passes over the same batch."""
        return any(step.rule is not None and step.rule.keeps_draws for step in self.steps)

    def forward(
        self, inputs: Tensor, parameters: Sequence[Tensor], *, own_point: bool, draws: dict[int, Any]
    ) -> tuple[Any, list[Node]]:
        """The output, and the active nodes. Random numbers are taken from ``draws``, or else drawn and put there."""
        values: list[Any] = [None] * self.slots
        values[self.input] = inputs
        values[self.parameter_slots.start : self.parameter_slots.stop] = parameters
        for slot, constant in self.constants:
            values[slot] = constant()
        nodes: list[Node] = []
        for step in self.steps:
            arguments = [_fill(argument, values) for argument in step.arguments]
            if step.rule is None:
                keywords = {name: _fill(value, values) for name, value in step.keywords.items()}
                values[step.out] = step.function(*arguments, **keywords)
            else:
                rule = step.rule()
                rule.needs, rule.own_point = step.needs, own_point
                if rule.keeps_draws:
                    rule.draws = draws.get(step.out)
                values[step.out] = rule.forward0(*arguments, **step.keywords)
                if rule.keeps_draws:
                    draws[step.out] = rule.draws
                if step.active:
                    nodes.append((rule, step.take, step.tensors, step.out, step.last_active))
            for slot in step.last:
                values[slot] = None
        return values[self.output], nodes


def taker(slots: Sequence[int]) -> Callable[[list[Any]], Sequence[Any]]:
    """A function that gives the values in these slots, faster than a loop: a third of a small network's overhead."""
    if len(slots) == 1:
        return itemgetter(slice(slots[0], slots[0] + 1))
    return itemgetter(*slots) if slots else lambda values: ()


def flat(pieces: list[Tensor]) -> Tensor:
    """A new vector of all the tensors' numbers."""
    # The C++ function gives a single tensor back as it is.
    return pieces[0].reshape(-1).clone() if len(pieces) == 1 else _flatten(pieces)


def hand_down(cotangents: list[Any], slots: tuple[int, ...], parts: Cotangents) -> None:
    """Add to what other readers of these values have handed down; never in place, since parts may share memory."""
    for slot, part in zip(slots, parts, strict=True):
        if part is not None:
            have = cotangents[slot]
            cotangents[slot] = part if have is None else have + part


def _fill(argument: Any, values: list[Any]) -> Any:
    kind = type(argument)
    if kind is Slot:
        return values[argument.number]
    if kind is tuple or kind is list:
        return kind(_fill(item, values) for item in argument)
    if kind is slice:
        return slice(*(_fill(item, values) for item in (argument.start, argument.stop, argument.step)))
    return argument
