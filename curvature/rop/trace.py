"""From a network to its graph of rules, by symbolic tracing (torch.fx), once per model and mode.

Layers with a rule are single nodes; everything else is traced through. What is read while tracing is fixed from then
on: the settings of layers, Python control flow, ``self.training`` inside a ``forward``. A change of training mode, of
``requires_grad`` or of a parameter's identity makes a new graph; trace again after any other change to the network.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import jaxtyping
from torch import Tensor, fx, nn

from spectral_run.curvature.objective import Objective
from spectral_run.curvature.rop.base import LossRule, Rule
from spectral_run.curvature.rop.base import UnsupportedError as UnsupportedError
from spectral_run.curvature.rop.graph import CONSTANT, Graph, Slot, Step, taker
from spectral_run.curvature.rop.refusals import refuse_hooks, refuse_overwriting
from spectral_run.curvature.rop.registry import registry

_ADVICE = "Use curvature.backend=autograd, or add a rule (docs/adding_a_rule.md)."
_SIZES = ("size", "dim", "ndimension", "numel")
_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


def trace(objective: Objective) -> Program:
    """The network and its loss as rules. Raises ``UnsupportedError`` naming what has none."""
    return Program(objective)


@final
class Program:
    """A traced objective, for all its batches."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._modules = tuple(objective.model.modules())
        self._graphs: dict[tuple[bool, ...], Graph] = {}
        self._parameters: tuple[nn.Parameter, ...] = ()
        self.loss()
        self.graph()

    def loss(self) -> LossRule:
        """A new rule for the loss, for one batch."""
        return registry().loss(self.objective.loss)

    def graph(self) -> Graph:
        """The graph of the network as it is now: its mode and its trainable parameters."""
        parameters = self.objective.parameters
        if len(parameters) != len(self._parameters) or any(map(operator.is_not, parameters, self._parameters)):
            self._graphs.clear()
            self._parameters = parameters
        mode = tuple([module.training for module in self._modules])
        if mode not in self._graphs:
            self._graphs[mode] = _Builder(self.objective.model, parameters).build()
        return self._graphs[mode]


class _Root(nn.Module):
    """Holds the model, so that a model that is itself a layer with a rule is one node."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Any) -> Any:  # a proxy while tracing
        return self.model(x)


class _Proxy(fx.Proxy):
    """Tells ``x += y``, which overwrites x for all that read it, from ``x = x + y``, for which fx alone takes it."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A torch layer without a rule stays whole too, so that the message can name it.
        torch_layer = type(m).__module__.startswith("torch.") and not isinstance(m, nn.Sequential)
        return torch_layer or type(m) in registry().modules


@contextmanager
def _unchecked_shapes() -> Iterator[None]:
    """Let annotated ``forward`` methods take the tracer's stand-ins where signatures are enforced (in tests)."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


class _Builder:
    """Turns a traced graph into steps."""

    def __init__(self, model: nn.Module, parameters: tuple[nn.Parameter, ...]) -> None:
        refuse_hooks(model)
        self.root = _Root(model)
        self.parameters = parameters
        self.slot: dict[fx.Node, int] = {}
        self.parameter_slot = {id(p): 1 + i for i, p in enumerate(parameters)}
        self.slots = 1 + len(parameters)
        self.plain: set[fx.Node] = set()  # values that are no tensors: sizes
        self.drafts: list[dict[str, Any]] = []
        self.constants: list[tuple[int, Callable[[], Any]]] = []
        self.input = self.output = CONSTANT

    def build(self) -> Graph:
        try:
            with _unchecked_shapes():
                graph = _Tracer().trace(self.root)
        except UnsupportedError:
            raise
        except Exception as error:  # whatever a forward raises when it is given a stand-in for a tensor
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise UnsupportedError(f"{type(self.root.model).__name__} can't be traced: {why}. {_ADVICE}") from error
        for node in graph.nodes:
            getattr(self, f"_{node.op}")(node)
        return self._graph()

    def _placeholder(self, node: fx.Node) -> None:
        self.input = self._new(node)

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result in self.plain:
            raise UnsupportedError(f"the network must return one tensor, it returns {result!r}.")
        self.output = self.slot[result]

    def _get_attr(self, node: fx.Node) -> None:
        path = str(node.target)
        value = operator.attrgetter(path)(self.root)
        if id(value) in self.parameter_slot:
            self.slot[node] = self.parameter_slot[id(value)]
        else:
            self.constants.append((self._new(node), lambda: operator.attrgetter(path)(self.root)))

    def _call_module(self, node: fx.Node) -> None:
        module = self.root.get_submodule(str(node.target))
        name = str(node.target).removeprefix("model").removeprefix(".")
        what = f"layer {name!r} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
        rule = registry().modules.get(type(module))
        if rule is None:
            raise UnsupportedError(f"{what} has no rule. {_ADVICE}")
        try:
            arguments = rule.arguments(module)
        except UnsupportedError as error:
            raise UnsupportedError(f"{what}: {error}. {_ADVICE}") from error
        if getattr(module, "inplace", False):
            refuse_overwriting(self.root, node, what)
        self._rule(node, what, rule, (*node.args, *arguments), dict(node.kwargs))

    def _call_function(self, node: fx.Node) -> None:
        function: Any = node.target
        name = getattr(function, "__name__", str(function))
        self._call(node, f"function {name} (node {node.name!r})", registry().functions.get(function), function)

    def _call_method(self, node: fx.Node) -> None:
        name = str(node.target)
        if name in _SIZES:
            self.plain.add(node)
            self._step(node, None, operator.methodcaller(name, *node.args[1:], **node.kwargs), node.args[:1], {})
            return
        self._call(node, f"method {name} (node {node.name!r})", registry().methods.get(name), None)

    def _call(self, node: fx.Node, what: str, rule: type[Rule] | None, function: Callable[..., Any] | None) -> None:
        attribute = function is getattr and node.args[1] in _ATTRIBUTES
        if attribute or (function is not None and not any(a not in self.plain for a in node.all_input_nodes)):
            assert function is not None
            self.plain.add(node)
            self._step(node, None, function, node.args, dict(node.kwargs))
            return
        if rule is None:
            raise UnsupportedError(f"{what} has no rule. {_ADVICE}")
        if node.kwargs.get("inplace") or function in (operator.iadd, operator.isub, operator.imul):
            refuse_overwriting(self.root, node, what)
        self._rule(node, what, rule, node.args, dict(node.kwargs))

    def _rule(
        self, node: fx.Node, what: str, rule: type[Rule], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        signature = inspect.signature(rule.forward0)
        try:
            bound = signature.bind(None, *arguments, **keywords)
        except TypeError as error:
            raise UnsupportedError(f"{what}: {error}. {_ADVICE}") from error
        given = dict(bound.arguments)
        why = rule.refusal(given)
        fixed = [name for name, value in given.items() if name not in rule.tensors and self._has_tensor(value)]
        if fixed:
            why = f"{fixed[0]} must not be a tensor"
        several = [name for name in rule.tensors if name != "tensors" and isinstance(given.get(name), (list, tuple))]
        if several:
            why = f"{several[0]} must be one tensor"
        if why:
            raise UnsupportedError(f"{what}: {why}. {_ADVICE}")
        values: list[Any] = [given.get(name) for name in rule.tensors]
        if rule.tensors == ("tensors",):
            values = list(given["tensors"])
        tensors = [self._slot_of(value) for value in values]
        self._step(node, rule, rule.forward0, bound.args[1:], bound.kwargs, tuple(tensors))

    def _step(
        self,
        node: fx.Node,
        rule: type[Rule] | None,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        tensors: tuple[int, ...] = (),
    ) -> None:
        filled = tuple(self._template(a) for a in arguments)
        reads = {slot.number for slot in _slots((filled, tuple(keywords.values())))}
        reads |= {self.slot[n] for n in node.all_input_nodes}
        self.drafts.append(
            {
                "name": node.name,
                "rule": rule,
                "function": function,
                "arguments": filled,
                "keywords": {name: self._template(value) for name, value in keywords.items()},
                "tensors": tensors,
                "take": taker(tensors),
                "reads": reads,
                "out": self._new(node),
            }
        )

    def _graph(self) -> Graph:
        varies = set(self.parameter_slot.values())  # what depends on a trainable parameter
        for draft in self.drafts:
            if varies.intersection(draft["tensors"]):
                varies.add(draft["out"])
        counts = {self.output}  # what the output depends on
        for draft in reversed(self.drafts):
            if draft["out"] in counts:
                counts.update(draft["tensors"])
        active = varies & counts
        read_later: set[int] = {self.output}
        read_later_active = {self.output, *self.parameter_slot.values()}
        for draft in reversed(self.drafts):
            draft["needs"] = tuple(slot in active for slot in draft["tensors"])
            draft["active"] = draft["out"] in active
            reads = draft.pop("reads")
            draft["last"] = tuple(sorted(reads - read_later))
            read_later |= reads
            inputs = {slot for slot in draft["tensors"] if slot in active} if draft["active"] else set()
            draft["last_active"] = tuple(sorted(inputs - read_later_active))
            read_later_active |= inputs
        return Graph(
            steps=tuple(Step(**draft) for draft in self.drafts),
            slots=self.slots,
            input=self.input,
            output=self.output,
            output_active=self.output in active,
            parameters=self.parameters,
            parameter_slots=range(1, 1 + len(self.parameters)),
            constants=tuple(self.constants),
        )

    def _new(self, node: fx.Node) -> int:
        self.slot[node] = self.slots
        self.slots += 1
        return self.slot[node]

    def _slot_of(self, value: Any) -> int:
        if isinstance(value, fx.Node):
            return CONSTANT if value in self.plain else self.slot[value]
        return self.parameter_slot.get(id(value), CONSTANT)

    def _template(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Slot(self.slot[value])
        if isinstance(value, (tuple, list)):  # fx has list and tuple types of its own
            kind = tuple if isinstance(value, tuple) else list
            return kind(self._template(item) for item in value)
        if isinstance(value, slice):
            return slice(*(self._template(item) for item in (value.start, value.stop, value.step)))
        slot = self.parameter_slot.get(id(value))
        return value if slot is None else Slot(slot)

    def _has_tensor(self, value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return any(self._has_tensor(item) for item in value)
        if isinstance(value, slice):
            return any(self._has_tensor(item) for item in (value.start, value.stop, value.step))
        return isinstance(value, Tensor) or (isinstance(value, fx.Node) and value not in self.plain)


def _slots(value: Any) -> list[Slot]:
    if isinstance(value, Slot):
        return [value]
    if isinstance(value, (tuple, list)):
        return [slot for item in value for slot in _slots(item)]
    return []
