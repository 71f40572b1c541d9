"""From a traced network to what the kernels for multilayer perceptrons take, or the reason why there is no way.

It takes chains, in which every node reads the one before: flattening, affine layers, at most one elementwise function
after each; then cross-entropy of class numbers or squared error, both in the mean.  All else is another backend's.
Sizes: what a product touches, for one tile of rows, must fit in ``CAPACITY`` bytes.
"""

from __future__ import annotations

import inspect
import math
import os
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.objective import Objective
from spectral_run.curvature.rop.base import LossRule, Rule, UnsupportedError
from spectral_run.curvature.rop.graph import Graph, Slot, Step
from spectral_run.curvature.rop.losses import cross_entropy, mse
from spectral_run.curvature.rop.rules import (
    dropout,
    elu,
    flatten,
    identity,
    leaky_relu,
    linear,
    relu,
    reshape,
    sigmoid,
    softplus,
    tanh,
)
from spectral_run.curvature.rop.trace import trace

Precision: TypeAlias = Literal["exact", "tf32x3", "tf32"]
"""Of matrix products in float32: "tf32" rounds factors to 10 bits, "tf32x3" takes three such products for one."""

CAPACITY = 227 * 1024
"""Bytes that a product may touch: what a program may have of a multiprocessor's memory at compute capability 9.0, and
about what the kernels leave of it as cache, which is where they keep it."""

TILE = 128
"""Rows that one program carries at once, at most."""

MOST_ROWS = 256
"""In a solve, which is one program; larger batches are solved with a launch per product."""

_LEAST_TILE = 32
_MOST_OUTPUTS = 128  # the loss takes a row of outputs as one block
_FUNCTIONS: dict[type[Rule], int] = {  # as the kernels number them; 0 is the identity, those above 2 are curved
    relu.ReLU: 1,
    leaky_relu.LeakyReLU: 2,
    tanh.Tanh: 3,
    sigmoid.Sigmoid: 4,
    softplus.Softplus: 5,
    elu.ELU: 6,
}


def mlp_network(objective: Objective, inputs: Tensor, *, precision: Precision = "exact") -> MLPNetwork:
    """The network for inputs of this shape and type. Raises ``UnsupportedError``."""
    if find_spec("triton") is None:
        raise UnsupportedError("its kernels need triton, which is not installed")
    if inputs.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UnsupportedError(f"it runs on CUDA, the inputs are on {inputs.device.type}")
    if inputs.dtype not in (torch.float32, torch.float64):
        raise UnsupportedError(f"it computes in float32 and float64, not in {inputs.dtype}")
    types = {p.dtype for p in objective.parameters}
    if types - {inputs.dtype}:
        raise UnsupportedError(f"it takes parameters of the inputs' type, {inputs.dtype}")
    program = trace(objective)
    graph = program.graph()
    chain = _Chain(graph, tuple(inputs.shape[1:]))
    for step in graph.steps:
        chain.add(step)
    chain.check_end()
    network = MLPNetwork(chain, _loss(program.loss()), inputs.dtype, precision)
    network.check_size(len(inputs))
    return network


@final
class _Chain:
    """The affine layers so far, each with the function after it."""

    def __init__(self, graph: Graph, size: tuple[int, ...]) -> None:
        self.graph = graph
        self.widths: list[int] = []
        self.weights: list[int] = []  # offsets in the flat vector
        self.biases: list[int] = []  # -1 for none
        self.functions: list[tuple[int, float]] = []
        counts = [p.numel() for p in graph.parameters]
        self._offsets = {slot: sum(counts[:i]) for i, slot in enumerate(graph.parameter_slots)}
        self._free = set(graph.parameter_slots)
        self._size, self._last = size, graph.input

    def add(self, step: Step) -> None:
        """One node more."""
        if step.rule is None:  # a computation on sizes
            return
        if step.tensors[0] != self._last:
            raise UnsupportedError(f"it takes chains, but node {step.name!r} does not read the node before it")
        bound = inspect.signature(step.rule.forward0).bind(None, *step.arguments, **step.keywords)
        bound.apply_defaults()
        try:
            self._take(step.rule, bound.arguments)
        except UnsupportedError as error:
            raise UnsupportedError(f"{error} (node {step.name!r})") from error
        self._last = step.out

    def check_end(self) -> None:
        """Raise unless there is a layer, the output is the last one's, and every parameter was met."""
        if not self.widths or self.graph.output != self._last:
            raise UnsupportedError("the output must be that of a chain with an affine layer")
        if self._free:
            raise UnsupportedError(f"{len(self._free)} of the trainable parameters belong to no layer of the chain")
        if self.widths[-1] > _MOST_OUTPUTS:
            raise UnsupportedError(f"it takes at most {_MOST_OUTPUTS} outputs, the network has {self.widths[-1]}")

    def _take(self, rule: type[Rule], given: dict[str, Any]) -> None:
        if rule is linear.Linear:
            self._affine(given)
        elif rule in _FUNCTIONS:
            self._function(_FUNCTIONS[rule], given)
        elif rule is flatten.Flatten:
            if given["start_dim"] != 1 or given["end_dim"] not in (-1, len(self._size)):
                raise UnsupportedError("it flattens all dimensions but the batch's")
            self._size = (math.prod(self._size),)
        elif rule is reshape.Reshape:
            shape = given["shape"][0] if len(given["shape"]) == 1 else given["shape"]
            if len(shape) != 2 or shape[1] not in (-1, math.prod(self._size)):
                raise UnsupportedError("it reshapes to (rows, all the rest)")
            self._size = (math.prod(self._size),)
        elif rule is dropout.Dropout:
            if given["p"] > 0:
                raise UnsupportedError("it has no dropout")
        elif rule is not identity.Identity:
            raise UnsupportedError(f"it has no {rule.__name__}")

    def _affine(self, given: dict[str, Any]) -> None:
        if len(self._size) != 1:
            raise UnsupportedError(f"it has affine layers on vectors, not on inputs of shape (rows, *{self._size})")
        weight = self._claim(given["weight"])
        width = self.graph.parameters[weight].shape[0]
        if not self.widths:
            self.widths.append(self._size[0])
        self.widths.append(width)
        self._size = (width,)
        self.weights.append(self._offsets[given["weight"].number])
        self.biases.append(-1)
        if given["bias"] is not None:
            self._claim(given["bias"])
            self.biases[-1] = self._offsets[given["bias"].number]
        self.functions.append((0, 0.0))

    def _claim(self, value: Any) -> int:
        """Which parameter this is; each is used once, and trainable."""
        if not isinstance(value, Slot) or value.number not in self._offsets:
            raise UnsupportedError("its weights must be trainable parameters")
        if value.number not in self._free:
            raise UnsupportedError("no two layers may share a parameter")
        self._free.remove(value.number)
        return self.graph.parameter_slots.index(value.number)

    def _function(self, number: int, given: dict[str, Any]) -> None:
        if not self.functions or self.functions[-1][0]:
            raise UnsupportedError(
                "it takes a single elementwise function after an affine layer, none before the first"
            )
        setting = 0.0
        if number == _FUNCTIONS[leaky_relu.LeakyReLU]:
            setting = float(given["negative_slope"])
            if setting < 0:
                raise UnsupportedError(f"it takes slopes of at least 0, got {setting}")
        elif number == _FUNCTIONS[elu.ELU]:
            setting = float(given["alpha"])
            if setting <= 0:
                raise UnsupportedError(f"it takes ELU with positive alpha, got {setting}")
        elif number == _FUNCTIONS[softplus.Softplus]:
            setting = float(given["beta"])
            if setting <= 0 or given["threshold"] != 20:
                raise UnsupportedError("it takes Softplus with positive beta and a threshold of 20")
        self.functions[-1] = number, setting


def _loss(rule: LossRule) -> int:
    """The kernels' number of the loss."""
    defaults = {"weight": None, "ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
    for name, value in rule.given.items():
        default = defaults[name]
        if value is not None and (isinstance(value, Tensor) or value != default):
            raise UnsupportedError(f"it takes {type(rule).__name__} without {name}")
    if isinstance(rule, cross_entropy.CrossEntropy):
        return 0
    if isinstance(rule, mse.MSE):
        return 1
    raise UnsupportedError(f"it has no loss {type(rule).__name__}")


@final
class MLPNetwork:
    """A network and its loss in the kernels' terms; ``parameters`` are the trainable ones, in order."""

    def __init__(self, chain: _Chain, loss: int, dtype: torch.dtype, precision: Precision) -> None:
        self.loss, self.dtype = loss, dtype
        self.precision: Precision = precision
        self.layers, self.widths = len(chain.weights), tuple(chain.widths)
        self.parameters = chain.graph.parameters
        self.n = sum(p.numel() for p in self.parameters)
        self._offsets = tuple(chain.weights), tuple(chain.biases)
        self._functions = tuple(chain.functions)
        self._strides = (self.widths[0], *(-(-width // 4) * 4 for width in self.widths[1:]))

    def point(self) -> Float[Tensor, " n"]:
        """The parameters as they are now, in one vector."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def tile(self, rows: int) -> int:
        """Rows that a program carries of a batch of so many: the most whose data fit, a power of 2 of at least 16."""
        tile = min(max(16, power_of_2(rows)), TILE)
        while tile > _LEAST_TILE and self.touched(tile) > CAPACITY:
            tile //= 2
        return tile

    def touched(self, tile: int) -> int:
        """Bytes that a product of one tile reads or writes: w, v, Hv; inputs, y, g, y1, z1, g1 and p of every row."""
        return (3 * self.n + tile * self._per_row()) * torch.empty(0, dtype=self.dtype).element_size()

    def check_size(self, rows: int) -> None:
        """Raise unless what a product touches fits, and the batch is one for a single program."""
        tile = self.tile(rows)
        if self.touched(tile) > CAPACITY:
            raise UnsupportedError(
                f"a product touches {self.touched(tile)} bytes ({self.n} parameters three times, {tile} rows of "
                f"{self._per_row()} numbers), beside a multiprocessor there is room for {CAPACITY}"
            )
        if rows > MOST_ROWS:
            raise UnsupportedError(f"it takes batches of at most {MOST_ROWS} rows, got {rows}")

    def _per_row(self) -> int:
        curved = [4 if function > 2 else 3 for function, _ in self._functions]
        layers = sum(count * stride for count, stride in zip(curved, self._strides[1:], strict=True))
        return self.widths[0] + layers + 2 * max(self._strides[1:]) + self._strides[-1]

    def kept(self, tile: int) -> int:
        """Numbers that the primal pass of a tile keeps."""
        return tile * (2 * sum(self._strides[1:]) + self._strides[-1])

    def jets(self, tile: int, order: int) -> int:
        """Numbers of scratch that a product takes."""
        return tile * order * 2 * (sum(self._strides[1:]) + max(self._strides[1:]))

    def net(self, tile: int) -> tuple[Any, ...]:
        """``NET`` of the kernels."""
        offsets = tuple(tile * sum(self._strides[1:i]) for i in range(len(self._strides)))
        blocks = tuple(min(max(16, power_of_2(width)), 64) for width in self.widths[:-1])
        blocks += (max(16, power_of_2(self.widths[-1])),)
        numbers, settings = zip(*self._functions, strict=True)
        return (
            self.widths,
            self._strides,
            offsets,
            *self._offsets,
            numbers,
            settings,
            blocks,
            tuple(min(block, 32) for block in blocks),
            max(self._strides[1:]),
            tile * sum(self._strides[1:]),
        )


def power_of_2(count: int) -> int:
    """The least power of 2 that is not below."""
    return 1 << (count - 1).bit_length()
