"""Convolution over one, two or three dimensions, ``y = x * W + b``.

Keeps x and the cotangent of y, no unfolded images. Cost: at order 1 two convolutions forwards and four backwards, at
order 2 two and six.
"""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.base import Jet, UnsupportedError
from spectral_run.curvature.rop.forms import Affine

_forward = torch.ops.aten.convolution.default
_backward = torch.ops.aten.convolution_backward.default


@final
class Convolution(Affine):
    """``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d`` with zero padding."""

    modules = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    functions = (F.conv1d, F.conv2d, F.conv3d)
    vectorizes = False  # vmap makes a grouped convolution of it, half as fast as a loop (USPS network, CPU)

    @staticmethod
    def arguments(module: Any) -> tuple[Any, ...]:
        """Weight, bias and geometry."""
        if module.padding_mode != "zeros":
            raise UnsupportedError(f"padding_mode must be zeros, got {module.padding_mode!r}")
        return module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups

    def forward0(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
    ) -> Tensor:
        """The convolution."""
        spatial = weight.dim() - 2
        if input.dim() != spatial + 2:
            raise ValueError(f"Convolution: input must be (rows, channels, ...), got shape {tuple(input.shape)}.")
        dilated = _each(dilation, spatial)
        self.extra: list[int] = []  # torch pads an even kernel's "same" by one more at the end
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilated, weight.shape[2:], strict=True)]
            padding = tuple(t // 2 for t in total)
            if any(t % 2 for t in total):
                self.extra = [side for t in reversed(total) for side in (0, t % 2)]
        elif padding == "valid":
            padding = 0
        assert not isinstance(padding, str)
        self.geometry = _each(stride, spatial), _each(padding, spatial), dilated, False, [0] * spatial, groups
        self.weight_shape = weight.shape
        input = self._grown(input)
        self.keep(input, weight)
        self.input_shape = input.shape
        y: Tensor = _forward(input, weight, bias, *self.geometry)
        self.output_shape = y.shape
        return y

    def apply(self, x: Tensor, w: Tensor, onto: Jet = None) -> Tensor:
        """``x * W``."""
        bias = onto if onto is not None and onto.dim() == 1 else None
        x = x if x is self.x else self._grown(x)
        y: Tensor = _forward(x, w, bias, *self.geometry)
        return y if onto is None or bias is not None else y.add_(onto)

    def by_input(self, g: Tensor, w: Tensor, onto: Jet = None) -> Tensor:
        """The transposed convolution."""
        like = g.new_empty(self.input_shape) if self.x is None else self.x  # only its shape counts
        x: Tensor = _backward(g, like, w, None, *self.geometry, (True, False, False))[0]
        if self.extra:
            x = F.pad(x, [-side for side in self.extra])
        return x if onto is None else x.add_(onto)

    def by_weight(self, g: Tensor, x: Tensor, onto: Jet = None) -> Tensor:
        """The correlation of x with g."""
        like = g.new_empty(self.weight_shape) if self.w is None else self.w
        x = x if x is self.x else self._grown(x)
        w: Tensor = _backward(g, x, like, None, *self.geometry, (False, True, False))[1]
        return w if onto is None else w.add_(onto)

    def by_bias(self, g: Tensor) -> Tensor:
        """Sum over rows and positions."""
        return g.sum([0, *range(2, g.dim())])

    def spread(self, b: Tensor) -> Tensor:
        """The same bias at every position."""
        return b.view(-1, *[1] * (len(self.output_shape) - 2)).expand(self.output_shape)

    def _grown(self, x: Tensor) -> Tensor:
        return F.pad(x, self.extra) if self.extra else x


def _each(value: int | tuple[int, ...], spatial: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * spatial if len(values) == 1 else values
