"""Losses as operations: from the network's outputs to the cotangent there, at orders 0, 1 and 2.

Each batch fills the tensors that carry targets and the weights of rows; padded rows weigh nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from spectral_run.curvature.native.layers import Context, Shape
from spectral_run.curvature.native.operations import Operations


class Loss(ABC):
    """``inputs`` names the tensors that ``targets`` fills, of the outputs' shape."""

    inputs: tuple[str, ...]

    @abstractmethod
    def targets(self, targets: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The tensors of ``inputs``, each (batch, outputs), for the whole batch."""

    @abstractmethod
    def emit(self, k: int, ops: Operations, at: Context, shape: Shape, value: Tensor, out: Tensor) -> bool:
        """Write down the cotangent at order k into ``out``, and at order 0 the loss; False where it is zero."""


@final
class CrossEntropy(Loss):
    """``-sum_c q_c log p_c`` with q the class weights, smoothing and mean all together; gradient ``(sum q) p - q``.

    ``weighted(outputs, targets)`` gives q; it reads no more of the outputs than their shape.
    """

    inputs = ("q",)

    def __init__(self, weighted: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._weighted = weighted

    def targets(self, targets: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """q of each row: of class indices ``(batch,)`` or probabilities ``(batch, classes)``."""
        return (self._weighted(torch.zeros(len(targets), classes, dtype=dtype), targets),)

    def emit(self, k: int, ops: Operations, at: Context, shape: Shape, value: Tensor, out: Tensor) -> bool:
        """Softmax and its jets."""
        rows, q, p = out.shape[-1], at.kept("q", shape), at.kept("p", shape)
        mass, p1 = at.kept("mass", Shape(1, 1)), at.scratch("p1", shape)
        if k == 0:
            ops.add("softmax", [rows, shape.channels, int(at.add)], [at.x[0], q], [p, out, mass, value])
            return True
        if at.x[1] is None:
            raise ValueError("native: no parameter lies between the inputs and the loss.")
        sizes = [rows, shape.channels, int(k == 2)]
        second = [p1, at.x[2]] if k == 2 else []
        ops.add("softmax_jet", sizes, [p, at.x[1], mass, *second], [out, p1])
        return True


@final
class BinaryCrossEntropy(Loss):
    """``A softplus(z) - B z``, ``A = c (w y + 1 - y)``, ``B = c w y``: w weights positives, c is the rest."""

    inputs = ("a", "b")

    def __init__(self, weight: Tensor | None = None, pos_weight: Tensor | None = None, *, mean: bool = True) -> None:
        self._weight, self._positive, self._mean = weight, pos_weight, mean

    def targets(self, targets: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """A and B; targets may be soft."""
        y = _outputs_like(targets, classes).to(dtype)
        positive = y if self._positive is None else y * self._positive.to(dtype)
        scale = torch.full_like(y, 1 / y.numel() if self._mean else 1.0)
        if self._weight is not None:
            scale = scale * self._weight.to(dtype)
        return scale * (positive + 1 - y), scale * positive

    def emit(self, k: int, ops: Operations, at: Context, shape: Shape, value: Tensor, out: Tensor) -> bool:
        """Order 0 keeps ``A s'`` and ``A s''``: the jets are those of an elementwise function."""
        sizes = [out.shape[-1], shape.channels]
        slope, bend = at.kept("slope", shape), at.kept("bend", shape)
        if k == 0:
            tensors = [at.x[0], at.kept("a", shape), at.kept("b", shape)]
            ops.add("sigmoid", [*sizes, int(at.add)], tensors, [out, slope, bend, value])
        elif k == 1:
            ops.add("products", sizes, [slope, at.x[1]], [out])
        else:
            square = at.scratch("square", shape)
            ops.add("products", sizes, [at.x[1], at.x[1]], [square])
            second = [slope, at.x[2]] if at.x[2] is not None else []
            ops.add("products", sizes, [bend, square, *second], [out])
        return True


@final
class SquaredError(Loss):
    """``A/2 (z - y)^2`` with ``A = 2 / numbers``: linear gradient, so order k is ``A z_k``."""

    inputs = ("a", "y")

    def __init__(self, *, mean: bool = True) -> None:
        self._mean = mean

    def targets(self, targets: Tensor, classes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """A and y."""
        y = _outputs_like(targets, classes).to(dtype)
        return torch.full_like(y, 2 / y.numel() if self._mean else 2.0), y

    def emit(self, k: int, ops: Operations, at: Context, shape: Shape, value: Tensor, out: Tensor) -> bool:
        """One product."""
        a = at.kept("a", shape)
        if k == 0:
            sizes = [out.shape[-1], shape.channels, int(at.add)]
            ops.add("square", sizes, [at.x[0], a, at.kept("y", shape)], [out, None, None, value])
            return True
        if at.x[k] is None:
            return False
        ops.add("products", [out.shape[-1], shape.channels], [a, at.x[k]], [out])
        return True


def _outputs_like(targets: Tensor, outputs: int) -> Tensor:
    if targets.shape != (len(targets), outputs):
        raise ValueError(f"targets {tuple(targets.shape)} must have the outputs' shape {(len(targets), outputs)}.")
    return targets
