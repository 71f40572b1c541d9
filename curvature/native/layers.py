"""What each layer adds to a program: operations for its value and cotangent at orders 0, 1 and 2.

A value's jet is ``x[k]``, its k-th derivative in t at parameters ``w + t v``: ``x[1]`` is Pearlmutter's R, ``x[2]`` the
paper's R^2; cotangents alike.  ``None`` stands for zero.  Order 0 runs once per batch and fills what the others read.
``forward`` and ``backward`` follow Leibniz's rule and only write operations down; nothing is computed here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

from torch import Tensor

from spectral_run.curvature.native.geometry import Contraction
from spectral_run.curvature.native.operations import Operations

Jet = list[Tensor | None]


@dataclass(frozen=True)
class Shape:
    """Numbers of positions (pixels) and channels of a value."""

    positions: int
    channels: int


@dataclass
class Context:
    """One layer's place in the program of one part of the batch.

    ``scratch`` gives a tensor that the parts share, ``kept`` one that this part's later orders find again; ``add`` says
    that another part's gradient is there already.  ``point``, ``direction`` and ``gradients[k]`` are flat vectors.
    """

    x: Jet  # of the layer's input
    g: Jet  # cotangent of its output
    scratch: Callable[[str, Shape], Tensor]
    kept: Callable[[str, Shape], Tensor]
    add: bool
    first: bool  # nothing trainable before it: nobody asks for the cotangent of x
    point: Tensor
    direction: Tensor
    gradients: list[Tensor | None]  # None: not asked for


class Layer(ABC):
    """A layer of known shapes, and what of its surroundings must last for it.

    ``reads_input``: orders 1 and 2 read x[0]; ``reads_cotangent``: they read g[0]; ``reads_jets``: going back they read
    x[1] and x[2], and order 2 reads g[1].  ``in_place``: y may overwrite x, and the cotangent of x that of y.
    """

    reads_input = False
    reads_cotangent = False
    reads_jets = False
    in_place = False

    def __init__(self, shape_in: Shape, shape_out: Shape) -> None:
        self.shape_in, self.shape_out = shape_in, shape_out

    @abstractmethod
    def forward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """Write down how y[k] comes about in ``out``; False where it is zero."""

    @abstractmethod
    def backward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """Write down how the cotangent of x comes about at order k; False where it is zero."""


@final
@dataclass(frozen=True)
class Weight:
    """A parameter: where it lies in the flat vector, or a frozen one's own numbers."""

    offset: int | None
    count: int
    frozen: Tensor | None = None

    def value(self, at: Context) -> Tensor:
        """The parameter's numbers."""
        if self.frozen is not None:
            return self.frozen
        return self._piece(at.point)

    def moved(self, at: Context) -> Tensor | None:
        """Its piece of the direction v; None for a frozen one."""
        return None if self.offset is None else self._piece(at.direction)

    def gradient(self, at: Context, k: int) -> Tensor | None:
        """Its piece of the gradient at order k; None for a frozen one, or where that gradient is not asked for."""
        flat = at.gradients[k]
        return None if self.offset is None or flat is None else self._piece(flat)

    def _piece(self, flat: Tensor) -> Tensor:
        assert self.offset is not None
        return flat[self.offset : self.offset + self.count]


Terms = list[tuple[float, Tensor | None, Tensor | None]]


def _present(terms: Terms) -> list[tuple[float, Tensor, Tensor]]:
    """Terms without a zero factor, those with a scale first, as the kernels want them."""
    kept = [(scale, a, b) for scale, a, b in terms if a is not None and b is not None]
    return sorted(kept, key=lambda term: term[0] == 1.0)


@final
class Linear(Layer):
    """Affine layer or convolution: ``y = W x + b`` over the triples of a ``Contraction``."""

    reads_input = True
    reads_cotangent = True
    reads_jets = True

    def __init__(
        self,
        shape_in: Shape,
        shape_out: Shape,
        contraction: Contraction,
        weight: Weight,
        bias: Weight | None,
        groups: int = 1,
    ) -> None:
        super().__init__(shape_in, shape_out)
        self._c, self._weight, self._bias, self._groups = contraction, weight, bias, groups
        self._outputs, self._inputs = shape_out.channels // groups, shape_in.channels // groups
        self._step_output = self._inputs * contraction.taps  # torch: (outputs, inputs of the group, kernel)
        self._group_step = self._outputs * self._step_output

    def forward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """``y_k = W x_k + k V x_{k-1}``, and the bias at order 0, its direction at order 1."""
        bias = None
        terms: Terms = [(1.0, self._weight.value(at), at.x[k])]
        if k > 0:
            terms.append((float(k), self._weight.moved(at), at.x[k - 1]))
        if self._bias is not None and k < 2:
            bias = self._bias.value(at) if k == 0 else self._bias.moved(at)
        present = _present(terms)
        if not present and bias is None:
            return False
        self._apply(ops, present, bias, out, transposed=False)
        return True

    def backward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """``G_k = sum_j C(k, j) g_j x_{k-j}'``; to x goes ``W' g_k + k V' g_{k-1}``."""
        rows, c = out.shape[-1], self._c
        gradient = self._weight.gradient(at, k)
        if gradient is not None:
            binomial = ((1.0,), (1.0, 1.0), (1.0, 2.0, 1.0))[k]
            terms = _present([(binomial[j], at.g[j], at.x[k - j]) for j in range(k, -1, -1)])
            sizes = [rows, c.taps, c.blocks, self._outputs, self._inputs, self._step_output, c.taps, len(terms)]
            sizes += [self._groups, int(at.add), self._group_step]
            tensors = [tensor for _, g, x in terms for tensor in (g, x)]
            ops.add("weights", sizes, tensors, [gradient], scales=[s for s, _, _ in terms], table=c.weights)
        bias = self._bias.gradient(at, k) if self._bias is not None else None
        if bias is not None:
            positions = c.positions_out if at.g[k] is not None else 0
            ops.add("bias", [rows, positions, self.shape_out.channels, int(at.add)], [at.g[k]], [bias])
        if at.first:
            return False
        back: Terms = [(1.0, self._weight.value(at), at.g[k])]
        if k > 0:
            back.append((float(k), self._weight.moved(at), at.g[k - 1]))
        present = _present(back)
        if present:
            self._apply(ops, present, None, out, transposed=True)
        return bool(present)

    def _apply(
        self,
        ops: Operations,
        terms: list[tuple[float, Tensor, Tensor]],
        bias: Tensor | None,
        out: Tensor,
        *,
        transposed: bool,
    ) -> None:
        rows, c = out.shape[-1], self._c
        if transposed:
            sizes = [rows, c.positions_in, self._inputs, self._outputs, c.taps, self._step_output]
        else:
            sizes = [rows, c.positions_out, self._outputs, self._inputs, self._step_output, c.taps]
        sizes += [len(terms), self._groups, self._group_step]
        tensors: list[Tensor | None] = [tensor for _, weights, data in terms for tensor in (weights, data)]
        tensors += [None] * (4 - len(tensors))
        table = c.transposed if transposed else c.forward
        ops.add("apply", sizes, [*tensors, bias], [out], scales=[s for s, _, _ in terms], table=table)


Curve = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def _fill(outs: tuple[Tensor, ...], curve: Curve, x: Tensor) -> None:
    for out, derivative in zip(outs, curve(x), strict=True):
        out.copy_(derivative)


@final
class Activation(Layer):
    """An elementwise function s: ``y_1 = s' x_1``, ``y_2 = s' x_2 + s'' x_1^2``.

    Cotangents: ``s' g_1 + (s'' g) x_1`` and ``s' g_2 + 2 s'' x_1 g_1 + (s'' g) x_2 + (s''' g) x_1^2``.  ``curve`` gives
    s and its three derivatives at a tensor; without it s is the leaky ReLU of that ``slope``.
    """

    def __init__(self, shape: Shape, curve: Curve | None = None, slope: float = 0.0) -> None:
        super().__init__(shape, shape)
        self._curve, self._slope = curve, slope
        self._curved = curve is not None
        self.is_relu = curve is None and slope == 0
        self.reads_jets = self._curved
        self.in_place = not self._curved

    def forward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """The derivatives are kept at order 0."""
        sizes = [out.shape[-1], self.shape_in.positions * self.shape_in.channels]
        if k == 0:
            slope, x = at.kept("slope", self.shape_in), at.x[0]
            if self._curve is None:
                ops.add("leaky", sizes, [x], [out, slope], scales=[self._slope])
            else:
                assert x is not None
                outs = (out, slope, at.kept("bend", self.shape_in), at.kept("third of g", self.shape_in))
                ops.call(partial(_fill, outs, self._curve, x))
            return True
        terms: Terms = [(1.0, at.kept("slope", self.shape_in), at.x[k])]
        if k == 2 and self._curved and at.x[1] is not None:
            square = at.scratch("square", self.shape_in)
            ops.add("products", sizes, [at.x[1], at.x[1]], [square])
            terms.append((1.0, at.kept("bend", self.shape_in), square))
        return self._sum(ops, sizes, terms, out)

    def backward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """At order 0 ``s'' g`` and ``s''' g`` are formed once for all products."""
        sizes = [out.shape[-1], self.shape_in.positions * self.shape_in.channels]
        slope = at.kept("slope", self.shape_in)
        if k == 0:
            if self._curved:
                bend, third = (at.kept(name, self.shape_in) for name in ("bend", "third of g"))
                ops.add("products", sizes, [bend, at.g[0]], [at.kept("bend of g", self.shape_in)])
                ops.add(
                    "products", sizes, [third, at.g[0]], [third]
                )  # in place: the third derivative has done its work
            return self._sum(ops, sizes, [(1.0, slope, at.g[0])], out)
        terms: Terms = [(1.0, slope, at.g[k])]
        if self._curved:
            terms.append((1.0, at.kept("bend of g", self.shape_in), at.x[k]))
        if k == 2 and self._curved and at.x[1] is not None:
            twist = at.scratch("twist", self.shape_in)  # 2 s'' g_1 + (s''' g) x_1
            bend, third = (at.kept(name, self.shape_in) for name in ("bend", "third of g"))
            if at.g[1] is None:
                ops.add("products", sizes, [third, at.x[1]], [twist])
            else:
                ops.add("products", sizes, [bend, at.g[1], third, at.x[1]], [twist], scales=[2.0, 1.0])
            terms.append((1.0, twist, at.x[1]))
        return self._sum(ops, sizes, terms, out)

    def _sum(self, ops: Operations, sizes: list[int], terms: Terms, out: Tensor) -> bool:
        present = _present(terms)
        if present:
            tensors = [tensor for _, a, b in present for tensor in (a, b)]
            ops.add("products", sizes, tensors, [out], scales=[s for s, _, _ in present])
        return bool(present)
