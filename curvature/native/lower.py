"""From a traced network to the layers of the native backend, or the reason why there is no way.

It takes chains, in which every node reads the one before: affine layers, two-dimensional convolutions, elementwise
functions, max, average and adaptive pools, flattening; then cross-entropy, binary cross-entropy on logits or squared
error; in float32 or float64 on the CPU.  All else is the ``rop`` backend's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from spectral_run.curvature.native.build import NoNativeCodeError, library
from spectral_run.curvature.native.geometry import Axis, Windows, affine, convolution, outputs, under
from spectral_run.curvature.native.layers import Activation, Layer, Linear, Shape, Weight
from spectral_run.curvature.native.losses import BinaryCrossEntropy, CrossEntropy, Loss, SquaredError
from spectral_run.curvature.native.pools import MaxPool, MeanPool
from spectral_run.curvature.native.problem import NativeNetwork
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.rop.base import LossRule, Rule, UnsupportedError
from spectral_run.curvature.rop.forms import Elementwise
from spectral_run.curvature.rop.graph import Graph, Slot, Step
from spectral_run.curvature.rop.losses import bce_with_logits, cross_entropy, mse
from spectral_run.curvature.rop.rules import (
    adaptive_avg_pool,
    adaptive_max_pool,
    avg_pool,
    dropout,
    flatten,
    identity,
    leaky_relu,
    linear,
    max_pool,
    relu,
    reshape,
)
from spectral_run.curvature.rop.rules import convolution as conv
from spectral_run.curvature.rop.trace import trace

_MOST_TRIPLES = 1 << 22  # in a convolution's table; images that need more are some hundred pixels a side


def native_network(objective: Objective, inputs: Tensor) -> NativeNetwork:
    """The network for inputs of this shape and type. Raises ``UnsupportedError``."""
    if inputs.device.type != "cpu":
        raise UnsupportedError(f"it runs on the CPU, the model is on {inputs.device.type}")
    if inputs.dtype not in (torch.float32, torch.float64):
        raise UnsupportedError(f"it computes in float32 and float64, not in {inputs.dtype}")
    program = trace(objective)
    graph = program.graph()
    chain = _Chain(graph, tuple(inputs.shape[1:]), inputs.dtype)
    for step in graph.steps:
        chain.add(step)
    loss = _loss(program.loss())
    chain.check_end()
    try:
        library()
    except NoNativeCodeError as error:
        raise UnsupportedError(str(error)) from error
    return NativeNetwork(_pool_before_relu(chain.layers), loss, graph.parameters)


@final
class _Chain:
    """The layers so far; ``size`` is the last output's as torch has it, without the batch, ``shape`` the kernels'."""

    def __init__(self, graph: Graph, size: tuple[int, ...], dtype: torch.dtype) -> None:
        self.layers: list[Layer] = []
        self._graph, self._dtype = graph, dtype
        self._size, self._shape, self._last = size, _shape(size), graph.input
        counts = [p.numel() for p in graph.parameters]
        offsets = [sum(counts[:i]) for i in range(len(counts))]
        self._weights = {
            slot: Weight(offset, count)
            for slot, offset, count in zip(graph.parameter_slots, offsets, counts, strict=True)
        }
        self._layer_of: dict[type[Rule], Callable[[dict[str, Any]], None]] = {
            linear.Linear: self._affine,
            conv.Convolution: self._convolution,
            relu.ReLU: lambda given: self._append(Activation(self._shape)),
            leaky_relu.LeakyReLU: lambda given: self._append(Activation(self._shape, slope=given["negative_slope"])),
            max_pool.MaxPool: self._max_pool,
            avg_pool.AvgPool: self._average_pool,
            adaptive_max_pool.AdaptiveMaxPool: self._adaptive_max_pool,
            adaptive_avg_pool.AdaptiveAvgPool: self._adaptive_average_pool,
            flatten.Flatten: self._flatten,
            reshape.Reshape: self._reshape,
            identity.Identity: lambda given: None,
            dropout.Dropout: self._dropout,
        }

    def add(self, step: Step) -> None:
        """One node more."""
        if step.rule is None:  # a computation on sizes
            return
        if step.tensors[0] != self._last:
            raise UnsupportedError(f"it takes chains, but node {step.name!r} does not read the node before it")
        bound = inspect.signature(step.rule.forward0).bind(None, *step.arguments, **step.keywords)
        bound.apply_defaults()
        try:
            if issubclass(step.rule, Elementwise):
                self._append(Activation(self._shape, partial(_curve, step.rule, bound.args[2:], bound.kwargs)))
            elif step.rule in self._layer_of:
                self._layer_of[step.rule](bound.arguments)
            else:
                raise UnsupportedError(f"it has no {step.rule.__name__}")
        except UnsupportedError as error:
            raise UnsupportedError(f"{error} (node {step.name!r})") from error
        self._last = step.out

    def check_end(self) -> None:
        """Raise unless the output is one vector a row, and trainable."""
        if self._graph.output != self._last or len(self._size) != 1 or self._shape.positions != 1:
            raise UnsupportedError(f"the network's output has shape (rows, *{self._size}), it takes (rows, outputs)")
        if not self._graph.output_active:
            raise UnsupportedError("the output does not depend on any trainable parameter")

    def _append(self, layer: Layer, size: tuple[int, ...] | None = None) -> None:
        self.layers.append(layer)
        self._shape = layer.shape_out
        self._size = size or self._size

    def _weight(self, value: Any) -> Weight | None:
        if value is None:
            return None
        if isinstance(value, Slot):
            if value.number not in self._weights:
                raise UnsupportedError("its weights must be parameters of the layer")
            return self._weights[value.number]
        return Weight(None, value.numel(), value.detach())

    def _affine(self, given: dict[str, Any]) -> None:
        weight = self._weight(given["weight"])
        assert weight is not None
        if len(self._size) != 1:
            raise UnsupportedError(f"it has affine layers on vectors, not on inputs of shape (rows, *{self._size})")
        width = weight.count // self._size[0]
        out = Shape(1, width)
        self._append(
            Linear(self._shape, out, affine(self._shape.positions), weight, self._weight(given["bias"])), (width,)
        )

    def _convolution(self, given: dict[str, Any]) -> None:
        weight, groups = self._weight(given["weight"]), given["groups"]
        assert weight is not None
        size = self._image("convolutions")
        value = given["weight"]
        kernel = self._parameter(value).shape[2:]
        stride, dilation = (_pair(given[name]) for name in ("stride", "dilation"))
        before, after = _padding(given["padding"], kernel, dilation)
        axes: list[Axis] = [(size[i], kernel[i], stride[i], before[i], dilation[i]) for i in (0, 1)]
        channels = self._parameter(value).shape[0]
        if math.prod(size) * math.prod(kernel) > _MOST_TRIPLES:
            raise UnsupportedError(f"images of {size[0]} x {size[1]} pixels are too large for it")
        contraction, pixels = convolution(axes[0], axes[1], (after[0], after[1]))
        out = Shape(contraction.positions_out, channels)
        layer = Linear(self._shape, out, contraction, weight, self._weight(given["bias"]), groups)
        self._append(layer, (channels, *pixels))

    def _parameter(self, value: Any) -> Tensor:
        if isinstance(value, Slot):
            return self._graph.parameters[self._graph.parameter_slots.index(value.number)]
        assert isinstance(value, Tensor)
        return value

    def _max_pool(self, given: dict[str, Any]) -> None:
        self._pool(MaxPool, self._axes(given), given["ceil_mode"])

    def _average_pool(self, given: dict[str, Any]) -> None:
        axes = self._axes(given | {"dilation": 1})
        padding = _pair(given["padding"])

        def divisor(y: int, x: int) -> float:
            if given["divisor_override"]:
                return float(given["divisor_override"])
            if not given["count_include_pad"]:
                return float(len(under(axes[0], y)) * len(under(axes[1], x)))
            spans = []
            for axis, pad, i in zip(axes, padding, (y, x), strict=True):
                start = i * axis[2] - axis[3]
                spans.append(min(start + axis[1], axis[0] + pad) - start)  # torch counts padding, not what is beyond it
            return float(math.prod(spans))

        self._pool(MeanPool, axes, given["ceil_mode"], divisor)

    def _axes(self, given: dict[str, Any]) -> list[Axis]:
        size = self._image("pools")
        kernel, padding, dilation = (_pair(given[name]) for name in ("kernel_size", "padding", "dilation"))
        stride = _pair(given["stride"] or kernel)
        return [(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in (0, 1)]

    def _pool(
        self,
        kind: type[MaxPool] | type[MeanPool],
        axes: Sequence[Axis],
        ceiling: bool,
        divisor: Callable[[int, int], float] | None = None,
    ) -> None:
        counts = [outputs(axis, axis[3], ceiling=ceiling) for axis in axes]
        places = [[[q for q, _ in under(axis, i)] for i in range(n)] for axis, n in zip(axes, counts, strict=True)]
        self._windows(kind, places, divisor)

    def _adaptive_max_pool(self, given: dict[str, Any]) -> None:
        self._windows(MaxPool, self._adaptive(given["output_size"]))

    def _adaptive_average_pool(self, given: dict[str, Any]) -> None:
        places = self._adaptive(given["output_size"])
        self._windows(MeanPool, places, lambda y, x: float(len(places[0][y]) * len(places[1][x])))

    def _adaptive(self, asked: Any) -> list[list[list[int]]]:
        size = self._image("pools")
        counts = [n if m is None else m for n, m in zip(size, _pair(asked), strict=True)]
        return [
            [list(range(i * n // m, -(-(i + 1) * n // m))) for i in range(m)] for n, m in zip(size, counts, strict=True)
        ]

    def _windows(
        self,
        kind: type[MaxPool] | type[MeanPool],
        places: Sequence[Sequence[Sequence[int]]],
        divisor: Callable[[int, int], float] | None = None,
    ) -> None:
        size = self._image("pools")
        windows = Windows.of(places[0], places[1], size)
        pixels = len(places[0]), len(places[1])
        if kind is MaxPool:
            layer: Layer = MaxPool(self._shape, windows)
        else:
            assert divisor is not None
            shares = [1 / divisor(y, x) for y in range(pixels[0]) for x in range(pixels[1])]
            layer = MeanPool(self._shape, windows, torch.tensor(shares, dtype=self._dtype))
        self._append(layer, (self._shape.channels, *pixels))

    def _flatten(self, given: dict[str, Any]) -> None:
        if given["start_dim"] != 1 or given["end_dim"] not in (-1, len(self._size)):
            raise UnsupportedError("it flattens all dimensions but the batch's")
        self._to_vector()

    def _reshape(self, given: dict[str, Any]) -> None:
        shape = given["shape"][0] if len(given["shape"]) == 1 else given["shape"]
        if len(shape) != 2 or shape[1] not in (-1, math.prod(self._size)):
            raise UnsupportedError("it reshapes to (rows, all the rest)")
        self._to_vector()

    def _to_vector(self) -> None:
        self._size = (math.prod(self._size),)
        if not self.layers:  # an input that is flattened at once is a vector: its pixels are channels
            self._shape = _shape(self._size)

    def _dropout(self, given: dict[str, Any]) -> None:
        if given["p"] > 0:
            raise UnsupportedError("it has no dropout")

    def _image(self, what: str) -> tuple[int, int]:
        if len(self._size) != 3:
            raise UnsupportedError(f"it has {what} on images, not on inputs of shape (rows, *{self._size})")
        return self._size[1], self._size[2]


def _shape(size: tuple[int, ...]) -> Shape:
    return Shape(math.prod(size[1:]), size[0]) if size else Shape(1, 1)


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _padding(asked: Any, kernel: Sequence[int], dilation: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Before and after, per axis; "same" puts the odd one after, as torch does."""
    if asked == "valid":
        asked = 0
    if asked != "same":
        return _pair(asked), _pair(asked)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    before = total[0] // 2, total[1] // 2
    return before, (total[0] - before[0], total[1] - before[1])


def _curve(
    kind: type[Elementwise], arguments: tuple[Any, ...], keywords: dict[str, Any], x: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rule's function and its three derivatives."""
    rule = kind()
    y = rule.forward0(x, *arguments, **keywords)
    rule.slope = rule.first()
    return y, rule.slope, rule.second(), rule.third()


def _pool_before_relu(layers: list[Layer]) -> list[Layer]:
    """Max pooling takes the same entry before a ReLU as after, and leaves it less to do."""
    layers = list(layers)
    for i in range(len(layers) - 1):
        function, pool = layers[i], layers[i + 1]
        if isinstance(function, Activation) and function.is_relu and isinstance(pool, MaxPool):
            layers[i : i + 2] = [pool, Activation(pool.shape_out)]
    return layers


def _loss(rule: LossRule) -> Loss:
    mean = rule.given.get("reduction", "mean") == "mean"
    if isinstance(rule, cross_entropy.CrossEntropy):
        return CrossEntropy(rule.weighted)
    if isinstance(rule, bce_with_logits.BCEWithLogits):
        return BinaryCrossEntropy(rule.given.get("weight"), rule.given.get("pos_weight"), mean=mean)
    if isinstance(rule, mse.MSE):
        return SquaredError(mean=mean)
    raise UnsupportedError(f"it has no loss {type(rule).__name__}")
