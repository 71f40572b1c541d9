"""A network, a loss and a number of rows turned into lists of operations on tensors that are allocated once.

The batch is cut into parts of at most ``PART`` rows whose data stay near the processor.  What orders 1 and 2 read again
is kept per part; everything else is scratch that the parts share.  Lists: ``forward`` (loss), ``backward`` (gradient),
``product`` (``Hv``), ``quadratic`` (``grad v'Hv``) and ``both``; and, made when first asked for, the two of
``Linearized``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from spectral_run.curvature.native.layers import Context, Jet, Layer, Shape
from spectral_run.curvature.native.losses import Loss
from spectral_run.curvature.native.operations import LANES, Operations

PART = 128


@final
@dataclass(frozen=True)
class Linearized:
    """``J v`` of the plan's direction and ``J' u``, J the Jacobian of the outputs: (parts, 1, C, lanes) both.

    ``tangent`` writes ``moved``; ``pullback`` reads ``pulled`` and writes the gradient of order 1.
    """

    tangent: Operations
    pullback: Operations
    moved: Tensor
    pulled: Tensor


@final
class Plan:
    """Everything of ``network`` (layers and loss) for batches of ``rows`` rows of one floating-point type."""

    def __init__(self, layers: Sequence[Layer], loss: Loss, n: int, rows: int, dtype: torch.dtype) -> None:
        self.owner: object = None  # the problem whose primal pass the kept tensors hold
        self._layers, self._loss, self._dtype = layers, loss, dtype
        self._rows, self._parts = rows, -(-rows // PART)
        self._lanes = -(-rows // (self._parts * LANES)) * LANES  # parts as even as can be
        self._kept: dict[tuple[int, int, str], Tensor] = {}
        self._scratch: dict[tuple[int, str], Tensor] = {}
        self.point, self.direction = torch.zeros(n, dtype=dtype), torch.zeros(n, dtype=dtype)
        self.gradients = [torch.zeros(n, dtype=dtype) for _ in range(3)]
        self.loss = torch.zeros((), dtype=dtype)
        first, last = layers[0].shape_in, layers[-1].shape_out
        self._inputs = torch.zeros(self._parts, first.positions, first.channels, self._lanes, dtype=dtype)
        self._targets = {
            name: torch.zeros(self._parts, last.channels, self._lanes, dtype=dtype) for name in loss.inputs
        }
        self._lasting = _lifetimes(layers)
        widest = max(size.positions * size.channels for layer in layers for size in (layer.shape_in, layer.shape_out))
        self._passing = [torch.empty(widest * self._lanes, dtype=dtype) for _ in range(2)]
        self.forward, self.backward, self.product, self.quadratic, self.both = (Operations() for _ in range(5))
        self._emitted: list[tuple[list[Jet], list[Context], int]] = []  # of each part: values, places, first trainable
        for part in range(self._parts):
            self._emit(part)

    @property
    def outputs(self) -> Tensor:
        """The network's, as the forward pass left them: (rows, C)."""
        parts = [values[-1][0] for values, _, _ in self._emitted]
        return self.gather(torch.stack([part for part in parts if part is not None]))

    def gather(self, tensor: Tensor) -> Tensor:
        """(parts, 1, C, lanes) into (rows, C)."""
        return tensor[:, 0].transpose(1, 2).reshape(-1, tensor.shape[2])[: self._rows]

    def scatter(self, tensor: Tensor, out: Tensor) -> None:
        """(rows, C) into (parts, 1, C, lanes)."""
        self._spread(tensor[:, None], out)

    @cached_property
    def linearized(self) -> Linearized:
        """Order 1 forwards, and order 1 backwards of a network that is linear: no value but x[0] and no g[0]."""
        last = len(self._layers) - 1
        shape = self._layers[last].shape_out
        moved, pulled = torch.zeros(2, self._parts, shape.positions, shape.channels, self._lanes, dtype=self._dtype)
        tangent, pullback = Operations(), Operations()
        for part, (values, places, trainable) in enumerate(self._emitted):
            x: list[Jet] = [[value[0], None, None] for value in values]
            seen = [replace(place, x=x[i]) for i, place in enumerate(places)]
            for i, layer in enumerate(self._layers):
                out = moved[part]
                if i < last:
                    in_place = layer.in_place and i > 0
                    out = self._room(part, i + 1, 1, "x", layer.shape_out, x[i][1], in_place=in_place)
                if layer.forward(1, tangent, seen[i], out):
                    x[i + 1][1] = out
            g: list[Jet] = [[None] * 3 for _ in values]
            g[last + 1][1] = pulled[part]
            seen = [replace(place, x=[place.x[0], None, None], g=g[i + 1]) for i, place in enumerate(places[:-1])]
            self._backward(1, part, pullback, g, seen, trainable)
        return Linearized(tangent, pullback, moved, pulled)

    def load(self, inputs: Tensor, targets: Tensor) -> None:
        """Bring a batch into the kernels' layout."""
        shape = self._layers[0].shape_in
        self._spread(inputs.reshape(self._rows, shape.channels, shape.positions).transpose(1, 2), self._inputs)
        classes = self._layers[-1].shape_out.channels
        for name, tensor in zip(self._loss.inputs, self._loss.targets(targets, classes, self._dtype), strict=True):
            self._spread(tensor, self._targets[name])

    def run(self, operations: Operations) -> None:
        """Carry out one of the lists."""
        operations.run(self._dtype)

    def _spread(self, tensor: Tensor, out: Tensor) -> None:
        """(rows, ...) into (parts, ..., lanes); rows of padding stay zero."""
        whole = self._rows // self._lanes
        cut = whole * self._lanes
        if whole:
            out[:whole].copy_(tensor[:cut].reshape(whole, self._lanes, *tensor.shape[1:]).movedim(1, -1))
        if self._rows > cut:
            out[whole, ..., : self._rows - cut].copy_(tensor[cut:].movedim(0, -1))

    def _emit(self, part: int) -> None:
        count = len(self._layers)
        values: list[Jet] = [[None] * 3 for _ in range(count + 1)]
        cotangents: list[Jet] = [[None] * 3 for _ in range(count + 1)]
        values[0][0] = self._inputs[part]
        for name, tensor in self._targets.items():
            self._kept[part, count, name] = tensor[part]
        trainable = next((i for i, layer in enumerate(self._layers) if layer.reads_input), count)
        places = [self._context(part, i, values[i], cotangents[i + 1], first=i <= trainable) for i in range(count)]
        places.append(self._context(part, count, values[count], [], first=False))
        self._emitted.append((values, places, trainable))
        self._forward(0, part, self.forward, values, cotangents, places)
        self._backward(0, part, self.backward, cotangents, places, trainable)
        for operations in (self.product, self.quadratic, self.both):
            # Alone, grad v'Hv needs the cotangents of order 1, but not the product that they give.
            kept = [replace(place, gradients=[None, None, self.gradients[2]]) for place in places]
            seen = kept if operations is self.quadratic else places
            for k in (1,) if operations is self.product else (1, 2):
                self._forward(k, part, operations, values, cotangents, seen)
                self._backward(k, part, operations, cotangents, seen, trainable)

    def _forward(
        self, k: int, part: int, ops: Operations, values: list[Jet], cotangents: list[Jet], places: list[Context]
    ) -> None:
        for i, layer in enumerate(self._layers):
            out = self._room(part, i + 1, k, "x", layer.shape_out, values[i][k], in_place=layer.in_place and i > 0)
            if layer.forward(k, ops, places[i], out):
                values[i + 1][k] = out
        shape = self._layers[-1].shape_out
        end = len(self._layers)
        # Kept at order 0, since the gradient is taken after the losses of all parts.
        out = self._keep(part, end, "g0", shape) if k == 0 else self._share(end, f"g{k}", shape)
        if self._loss.emit(k, ops, places[end], shape, self.loss, out):
            cotangents[end][k] = out

    def _backward(
        self, k: int, part: int, ops: Operations, cotangents: list[Jet], places: list[Context], trainable: int
    ) -> None:
        for i in reversed(range(trainable, len(self._layers))):
            layer = self._layers[i]
            out = self._room(part, i, k, "g", layer.shape_in, cotangents[i + 1][k], in_place=layer.in_place and i > 0)
            if layer.backward(k, ops, places[i], out):
                cotangents[i][k] = out

    def _context(self, part: int, i: int, x: Jet, g: Jet, *, first: bool) -> Context:
        return Context(
            x=x,
            g=g,
            scratch=lambda name, shape: self._share(i, name, shape),
            kept=lambda name, shape: self._keep(part, i, name, shape),
            add=part > 0,
            first=first,
            point=self.point,
            direction=self.direction,
            gradients=list(self.gradients),
        )

    def _room(
        self, part: int, i: int, k: int, kind: str, shape: Shape, source: Tensor | None, *, in_place: bool
    ) -> Tensor:
        """Where value i (``kind`` x) or its cotangent (g) of order k goes, made from ``source``."""
        if in_place and source is not None:
            return source
        if k == 0 and (kind, 0, i) in self._lasting:
            return self._keep(part, i, f"{kind}0", shape)
        if (kind, k, i) in self._lasting:
            return self._share(i, f"{kind}{k}", shape)
        taken = source is not None and source.data_ptr() == self._passing[0].data_ptr()
        flat = self._passing[1 if taken else 0][: shape.positions * shape.channels * self._lanes]
        return flat.view(shape.positions, shape.channels, self._lanes)

    def _keep(self, part: int, i: int, name: str, shape: Shape) -> Tensor:
        key = (part, i, name)
        if key not in self._kept:
            self._kept[key] = self._new(shape)
        return self._kept[key]

    def _share(self, i: int, name: str, shape: Shape) -> Tensor:
        key = (i, name)
        if key not in self._scratch:
            self._scratch[key] = self._new(shape)
        return self._scratch[key]

    def _new(self, shape: Shape) -> Tensor:
        return torch.empty(shape.positions, shape.channels, self._lanes, dtype=self._dtype)


def _lifetimes(layers: Sequence[Layer]) -> set[tuple[str, int, int]]:
    """(kind, order, i) of every value i, the input of layer i, and cotangent that is read after its neighbour has."""
    count = len(layers)
    lasting = {("x", k, count) for k in range(3)}  # the loss reads the outputs' jets; who asks gets the outputs
    for i in reversed(range(count)):
        layer = layers[i]
        for k in range(3):
            read = layer.reads_jets if k else layer.reads_input
            if read or (layer.in_place and ("x", k, i + 1) in lasting):
                lasting.add(("x", k, i))
    for i, layer in enumerate(layers):
        for k in range(2):
            read = layer.reads_jets if k else layer.reads_cotangent
            if read or (layer.in_place and ("g", k, i) in lasting):
                lasting.add(("g", k, i + 1))
    return lasting
