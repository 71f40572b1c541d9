"""Normalization: centre, divide by the deviation, scale and shift, with jets of every part.

With M the mean over the normalized dimensions and r0 the inverse deviation ``(M(x0 - M x0)^2 + eps)^(-1/2)``::

    k_j = r0 (x_j - M x_j),  u0 = k0,  u1 = k1 + p u0,  u2 = k2 + 2 p k1 + q u0
    p = r1 / r0 = -M(u0 k1),  q = r2 / r0 = 3 p^2 - M(k1^2) - M(u0 k2)
    y = w u + b,  h = w g,  e = h - M h - u M(u h),  cotangent of x: r e

with Leibniz's rule on the last line, so that its order 1 is ``r0 (e1 + p e0)`` and its order 2 is
``r0 (e2 + 2 p e1 + q e0)``. PyTorch's fused kernels have wrong third derivatives (``exact_layers``); none is used. With
fixed statistics (evaluation mode) M is zero. Cost: order 1 about 25 passes over the layer's input, order 2 about 40.
Keeps u0 and g0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectral_run.curvature.rop.base import Cotangents, Jet, Rule
from spectral_run.curvature.rop.forms import add_product_, sum_to

_NATIVE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class Normalization(Rule):
    """A rule calls ``begin`` in its ``forward0`` with the layout, and is done.

    Inside, every tensor has the shape ``inner`` (GroupNorm splits the channels); weight and bias have ``affine``.
    """

    tensors = ("input", "weight", "bias")

    g: Tensor
    fixed: bool  # statistics that do not depend on x

    def begin(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: int | float,
        *,
        dims: Sequence[int],
        affine: Sequence[int],
        inner: Sequence[int] | None = None,
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``y0``, normalized over dims, or by the given mean and variance."""
        self.outer, self.inner = x.shape, torch.Size(inner) if inner is not None else x.shape
        self.dims, self.affine = list(dims), torch.Size(affine)
        self.shapes = tuple(torch.Size() if p is None else p.shape for p in (weight, bias))
        x = x.reshape(self.inner)
        self.fixed = statistics is not None
        mean = x.mean(self.dims, keepdim=True) if statistics is None else statistics[0]
        u = x - mean
        variance = self._mean(u, u) if statistics is None else statistics[1]
        self.moments = mean, variance
        self.r = torch.rsqrt(variance + eps)
        self.u = u.mul_(self.r)
        self.w = x.new_ones(()) if weight is None else weight.reshape(self.affine)
        y = self.w * u
        return (y if bias is None else y.add_(bias.reshape(self.affine))).reshape(self.outer)

    def backward0(self, g0: Tensor) -> Cotangents:
        """``r e``, ``sum g u``, ``sum g``."""
        g = g0.reshape(self.inner)
        x = None
        if self.needs[0]:
            h = self.w * g
            if not self.fixed:
                a0, b0 = h.mean(self.dims, keepdim=True), self._mean(self.u, h)
                h = add_product_(h - a0, self.u, b0, value=-1)
                if self.curved:
                    self.a0, self.b0 = a0, b0
            x = h.mul_(self.r).reshape(self.outer)
        if self.curved:
            self.g = g
        return x, *self._parameters(g, [(g, self.u, 1)])

    def forward1(self, x1: Jet, w1: Jet = None, b1: Jet = None) -> Tensor:
        """``w u1 + w1 u + b1``."""
        u1 = p = None
        if x1 is not None:
            u1 = self._standard(x1)
            if not self.fixed:
                p = -self._mean(self.u, u1)
                u1 = add_product_(u1, self.u, p)
        w1 = None if w1 is None else w1.reshape(self.affine)
        self.jet1 = u1, p, w1
        y = self._plus(_sum([(self.w, u1, 1), (w1, self.u, 1)]), b1)
        assert y is not None
        return y

    def backward1(self, g1: Tensor) -> Cotangents:
        """``r (h1 + p h0 - M(h1 + p h0) - u0 (b1 + p b0) - u1 b0)`` with ``b = M(u h)``; order 1 of the sums."""
        u1, p, w1 = self.jet1
        g0, g1 = self.g, g1.reshape(self.inner)
        x = None
        if u1 is not None:
            h = _sum([(self.w, g1, 1), (w1, g0, 1)])
            assert h is not None
            if not self.fixed:
                h0 = self.w * g0
                a1, b1 = h.mean(self.dims, keepdim=True), self._mean(self.u, h) + self._mean(u1, h0)
                self.jet1 = u1, p, w1, h, a1, b1
                h = torch.addcmul(h, p, h0).sub_(a1 + p * self.a0)
                h = add_product_(h, self.u, b1 + p * self.b0, value=-1)
                h = add_product_(h, u1, self.b0, value=-1)
            x = (h * self.r).reshape(self.outer)
        return x, *self._parameters(g1, [(g1, self.u, 1), (g0, u1, 1)])

    def forward2(self, x2: Jet, w2: Jet = None, b2: Jet = None) -> Jet:
        """``w u2 + 2 w1 u1 + w2 u0 + b2``."""
        u1, p, w1 = self.jet1
        u2 = None if x2 is None else self._standard(x2)
        q = None
        if u1 is not None and not self.fixed:
            k1 = torch.addcmul(u1, self.u, p, value=-1)
            q = 3 * p * p - self._mean(k1, k1)
            if u2 is not None:
                q = q - self._mean(self.u, u2)
            k1.mul_(2 * p).addcmul_(self.u, q)
            u2 = k1 if u2 is None else u2.add_(k1)
        w2 = None if w2 is None else w2.reshape(self.affine)
        self.jet2 = u2, q, w2
        return self._plus(_sum([(self.w, u2, 1), (w1, u1, 2), (w2, self.u, 1)]), b2)

    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """``r (e2 + 2 p e1 + q e0)``, expanded as in ``backward1``; order 2 of the sums."""
        (u1, p, w1), (u2, q, w2) = self.jet1[:3], self.jet2
        g0, g1, g2 = self.g, g1.reshape(self.inner), g2.reshape(self.inner)
        x = None
        if u1 is not None:
            h = _sum([(self.w, g2, 1), (w1, g1, 2), (w2, g0, 1)])
            assert h is not None
            if not self.fixed:
                h1, a1, b1 = self.jet1[3:]
                h0 = self.w * g0
                a2 = h.mean(self.dims, keepdim=True)
                b2 = self._mean(self.u, h) + 2 * self._mean(u1, h1) + self._mean(u2, h0)
                h.addcmul_(p, h1, value=2).addcmul_(q, h0).sub_(a2 + 2 * p * a1 + q * self.a0)
                h.addcmul_(self.u, b2 + 2 * p * b1 + q * self.b0, value=-1)
                h.addcmul_(u1, b1 + p * self.b0, value=-2).addcmul_(u2, self.b0, value=-1)
            x = h.mul_(self.r).reshape(self.outer)
        return x, *self._parameters(g2, [(g2, self.u, 1), (g1, u1, 2), (g0, u2, 1)])

    def _standard(self, x: Tensor) -> Tensor:
        x = x.reshape(self.inner)
        return x * self.r if self.fixed else (x - x.mean(self.dims, keepdim=True)).mul_(self.r)

    def _mean(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).mean(self.dims, keepdim=True)

    def _plus(self, y: Jet, bias: Jet) -> Jet:
        if bias is not None:
            bias = bias.reshape(self.affine)
            y = bias.expand(self.inner) if y is None else y.add_(bias)
        return None if y is None else y.reshape(self.outer)

    def _parameters(self, g: Tensor, terms: list[tuple[Jet, Jet, int]]) -> Cotangents:
        weight = _sum(terms) if self.needs[1] else None
        if weight is not None:
            weight = sum_to(weight, self.affine).reshape(self.shapes[0])
        return weight, sum_to(g, self.affine).reshape(self.shapes[1]) if self.needs[2] else None


class RunningNormalization(Normalization):
    """Over all but the kept dimensions; by the running statistics, where there are any, in evaluation mode.

    They move as ``exact_layers`` moves them: in the first pass inside ``running_statistics(model)`` and never else,
    torch's own layers included.
    """

    kept: ClassVar[tuple[int, ...]]
    smallest: ClassVar[int]  # number of dimensions of the input

    @staticmethod
    def arguments(module: Any) -> tuple[Any, ...]:
        """Weight, bias and the layer, whose statistics are read at every pass."""
        return module.weight, module.bias, module

    def forward0(self, input: Tensor, weight: Tensor | None, bias: Tensor | None, layer: Any) -> Tensor:
        """The normalized input."""
        features = layer.num_features if isinstance(layer, _NATIVE) else layer.features
        if input.dim() < self.smallest or input.shape[1] != features:
            raise ValueError(f"normalization over {features} channels got an input of shape {tuple(input.shape)}.")
        affine = [1, -1] + [1] * (input.dim() - 2)
        mean, variance, statistics = layer.running_mean, layer.running_var, None
        if not layer.training and mean is not None and variance is not None:
            statistics = mean.view(affine), variance.view(affine)
        affine[1] = features
        dims = [d for d in range(input.dim()) if d not in self.kept]
        y = self.begin(input, weight, bias, layer.eps, dims=dims, affine=affine, statistics=statistics)
        if self.own_point and layer.training and getattr(layer, "update_statistics", False):
            layer._update(*self.moments, input.numel() // self.moments[0].numel())
        del self.moments
        return y


def _sum(terms: list[tuple[Jet, Jet, int]]) -> Jet:
    """The sum of ``factor a b`` over the terms of which neither is zero."""
    total: Jet = None
    for a, b, factor in terms:
        if a is not None and b is not None:
            if total is None:
                total = a * b if factor == 1 else (a * b).mul_(factor)
            else:
                total = add_product_(total, a, b, value=factor)
    return total
