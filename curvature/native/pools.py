"""Pooling layers: linear once the batch is known, so every order goes through the same windows."""

from __future__ import annotations

from typing import final

from torch import Tensor

from spectral_run.curvature.native.geometry import Windows
from spectral_run.curvature.native.layers import Context, Layer, Shape
from spectral_run.curvature.native.operations import Operations


@final
class MaxPool(Layer):
    """Largest of each window: a selection that order 0 fixes."""

    def __init__(self, shape_in: Shape, windows: Windows) -> None:
        super().__init__(shape_in, Shape(windows.positions_out, shape_in.channels))
        self._windows = windows

    def forward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """``y_k`` is ``x_k`` where the largest ``x_0`` is."""
        if at.x[k] is None:
            return False
        choice = at.kept("choice", self.shape_out)
        sizes = [out.shape[-1], self.shape_out.positions, self.shape_out.channels]
        if k == 0:
            ops.add("max_pool", sizes, [at.x[0]], [out, choice], table=self._windows.table)
        else:
            ops.add("select", sizes, [at.x[k], choice], [out], table=self._windows.table)
        return True

    def backward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """The transposed selection."""
        if at.g[k] is None:
            return False
        w = self._windows
        sizes = [out.shape[-1], w.positions_out, self.shape_out.channels, w.positions_in, int(w.disjoint)]
        ops.add("scatter", sizes, [at.g[k], at.kept("choice", self.shape_out)], [out], table=w.table)
        return True


@final
class MeanPool(Layer):
    """Weighted sum of each window: average and adaptive average pooling."""

    def __init__(self, shape_in: Shape, windows: Windows, weights: Tensor) -> None:
        super().__init__(shape_in, Shape(windows.positions_out, shape_in.channels))
        self._windows, self._weights = windows, weights

    def forward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """Linear: the same at every order."""
        return self._run("mean", at.x[k], ops, out)

    def backward(self, k: int, ops: Operations, at: Context, out: Tensor) -> bool:
        """Its transpose."""
        return self._run("spread", at.g[k], ops, out)

    def _run(self, name: str, tensor: Tensor | None, ops: Operations, out: Tensor) -> bool:
        if tensor is None:
            return False
        w = self._windows
        sizes = [out.shape[-1], w.positions_out, self.shape_out.channels, w.positions_in]
        ops.add(name, sizes, [tensor, self._weights.to(tensor.dtype)], [out], table=w.table)
        return True
