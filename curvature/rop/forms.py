"""The shapes that most rules have: elementwise functions, linear maps, bilinear maps.

Each carries jets by Leibniz's rule, so that a rule only says what is its own: a function's derivatives, a map and its
transpose, a product and its two transposes. Cost: an elementwise function reads each jet once or twice; a linear map
is applied once per order and direction; a bilinear map twice at order 1 and three times at order 2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from spectral_run.curvature.rop.base import Cotangents, Jet, Rule


class Elementwise(Rule):
    """``y = s(x)``: ``y1 = s' x1``, ``y2 = s' x2 + s'' x1^2``; the cotangent ``s' g`` likewise."""

    g0: Tensor
    slope: Tensor  # s'
    bend: Tensor | None = None  # s'' g0

    @abstractmethod
    def first(self) -> Tensor:
        """``s'`` at the point."""

    @abstractmethod
    def second(self) -> Tensor:
        """``s''`` at the point."""

    @abstractmethod
    def third(self) -> Tensor:
        """``s'''`` at the point."""

    def straighten(self) -> None:
        """``s'`` once for all products."""
        super().straighten()
        self.slope = self.first()

    def backward0(self, g0: Tensor) -> Cotangents:
        """``s' g0``."""
        if self.curved:
            self.g0, self.slope = g0, self.first()
        return (self.slope * g0,)

    def forward1(self, x1: Tensor) -> Tensor:
        """``s' x1``."""
        self.jet1 = x1
        return self.slope * x1

    def backward1(self, g1: Tensor) -> Cotangents:
        """``s' g1 + s'' g0 x1``."""
        if self.bend is None:
            self.bend = self.second() * self.g0
        return (torch.addcmul(self.slope * g1, self.bend, self.jet1),)

    def forward2(self, x2: Jet) -> Tensor:
        """``s' x2 + s'' x1^2``."""
        bent: Tensor = self.second() * self.jet1
        self.jet2 = x2, bent
        y2: Tensor = bent * self.jet1
        return y2 if x2 is None else y2.addcmul_(self.slope, x2)

    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """``s' g2 + 2 s'' x1 g1 + s'' g0 x2 + s''' g0 x1^2``."""
        assert self.bend is not None
        x1, (x2, bent) = self.jet1, self.jet2
        gradient: Tensor = (self.third() * self.g0) * (x1 * x1)
        gradient.addcmul_(self.slope, g2).addcmul_(bent, g1, value=2)
        return (gradient if x2 is None else gradient.addcmul_(self.bend, x2),)


class LinearMap(Rule):
    """A linear map of one tensor, fixed by ``forward0``: every order goes through it alike."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """The map."""

    @abstractmethod
    def transpose(self, g: Tensor) -> Tensor:
        """Its transpose."""

    def forward1(self, x1: Tensor) -> Tensor:
        """The map, of order 1."""
        return self.apply(x1)

    def forward2(self, x2: Jet) -> Jet:
        """The map, of order 2."""
        return None if x2 is None else self.apply(x2)

    def backward0(self, g0: Tensor) -> Cotangents:
        """The transpose."""
        return (self.transpose(g0),)

    def backward1(self, g1: Tensor) -> Cotangents:
        """The transpose, of order 1."""
        return (self.transpose(g1),)

    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """The transpose, of order 2."""
        return (self.transpose(g2),)


class Scaled(LinearMap):
    """A product with numbers that do not move along the line: a mask, the slopes of a piecewise linear function."""

    slope: Tensor | None  # None for ones

    def apply(self, x: Tensor) -> Tensor:
        """``slope x``."""
        return x if self.slope is None else x * self.slope

    def transpose(self, g: Tensor) -> Tensor:
        """``slope g``."""
        return self.apply(g)


class SumOfTwo(Rule):
    """``input + factor other`` with broadcasting, either of which may be a number."""

    tensors = ("input", "other")

    def begin(self, input: Any, other: Any, factor: int | float) -> Tensor:
        """The sum; for ``forward0``."""
        self.factor = factor
        self.shapes = tuple(t.shape if isinstance(t, Tensor) else () for t in (input, other))
        y: Tensor = input + (other if factor == 1 else factor * other)
        self.shape = y.shape
        return y

    def forward1(self, a: Jet, b: Jet) -> Tensor:
        """The sum, of order 1."""
        y = self.forward2(a, b)
        assert y is not None
        return y

    def forward2(self, a: Jet, b: Jet) -> Jet:
        """The sum, of order 2."""
        if a is not None and b is not None:
            return torch.add(a, b, alpha=self.factor)
        if a is None and b is None:
            return None
        y = a if b is None else b if self.factor == 1 else self.factor * b
        assert y is not None
        return y.expand(self.shape)

    def backward0(self, g0: Tensor) -> Cotangents:
        """g to both."""
        a = sum_to(g0, self.shapes[0]) if self.needs[0] else None
        if not self.needs[1]:
            return a, None
        b = sum_to(g0, self.shapes[1])
        return a, b if self.factor == 1 else self.factor * b

    def backward1(self, g1: Tensor) -> Cotangents:
        """g to both."""
        return self.backward0(g1)

    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """g to both."""
        return self.backward0(g2)


class Selection(LinearMap):
    """The entries at given places: max pooling, once its places are known. Never pools a second time."""

    def select(self, input: Tensor, y: Tensor, places: Tensor, *, spatial: int, distinct: bool) -> Tensor:
        """Keep the places, counted within the last ``spatial`` dimensions; for ``forward0``."""
        self.spatial, self.distinct = spatial, distinct
        self.flat, self.before = input.flatten(-spatial).shape, input.shape
        self.places, self.after = places.flatten(-spatial), y.shape
        return y

    def apply(self, x: Tensor) -> Tensor:
        """Gather."""
        return x.flatten(-self.spatial).gather(-1, self.places).reshape(self.after)

    def transpose(self, g: Tensor) -> Tensor:
        """Scatter, adding up where windows overlap."""
        x, g = g.new_zeros(self.flat), g.flatten(-self.spatial)
        if not self.distinct or is_batchedtensor(g):
            return x.scatter_add(-1, self.places, g).reshape(self.before)
        return x.scatter_(-1, self.places, g).reshape(self.before)


class Bilinear(Rule):
    """``y = B(x, w)``; either factor may be a parameter, an activation or fixed.

    ``y1 = B(x0, w1) + B(x1, w0)`` and ``y2 = B(x0, w2) + 2 B(x1, w1) + B(x2, w0)``; likewise backwards.
    Keeps x0, w0 and g0 only where some product will use them.
    """

    x: Any = None
    w: Any = None
    g: Tensor

    @abstractmethod
    def apply(self, x: Any, w: Any, onto: Jet = None) -> Tensor:
        """``onto + B(x, w)``, where onto is a bias or an earlier term."""

    @abstractmethod
    def by_input(self, g: Tensor, w: Any, onto: Jet = None) -> Tensor:
        """``onto`` plus the gradient of ``<g, B(x, w)>`` with respect to x."""

    @abstractmethod
    def by_weight(self, g: Tensor, x: Any, onto: Jet = None) -> Tensor:
        """``onto`` plus the gradient of ``<g, B(x, w)>`` with respect to w."""

    def keep(self, x: Any, w: Any) -> None:
        """Let ``forward0`` keep the factors, as far as the others vary."""
        self.x = x if self.needs[1] else None
        self.w = w if self.needs[0] else None

    def backward0(self, g0: Tensor) -> Cotangents:
        """Cotangents of x and w."""
        by_x, by_w = self.needs[0], self.needs[1]
        if by_x and by_w and self.curved:
            self.g = g0
        x = self.by_input(g0, self.w) if by_x else None
        return x, self.by_weight(g0, self.x) if by_w else None

    def forward1(self, x1: Jet, w1: Jet, onto: Jet = None) -> Tensor:
        """``onto + B(x0, w1) + B(x1, w0)``, of which x1 or w1 is there."""
        self.jet1 = x1, w1
        if w1 is not None:
            onto = self.apply(self.x, w1, onto)
        if x1 is not None:
            onto = self.apply(x1, self.w, onto)
        assert onto is not None
        return onto

    def backward1(self, g1: Tensor) -> Cotangents:
        """``g1 w0 + g0 w1`` and ``g1 x0 + g0 x1``."""
        x1, w1 = self.jet1
        x = w = None
        if x1 is not None:
            x = self.by_input(g1, self.w)
            if w1 is not None:
                x = self.by_input(self.g, w1, x)
        if w1 is not None:
            w = self.by_weight(g1, self.x)
            if x1 is not None:
                w = self.by_weight(self.g, x1, w)
        return x, w

    def forward2(self, x2: Jet, w2: Jet, onto: Jet = None) -> Jet:
        """``onto + B(x0, w2) + 2 B(x1, w1) + B(x2, w0)``."""
        x1, w1 = self.jet1
        twice = w1 + w1 if x1 is not None and w1 is not None else None
        self.jet2 = x2, w2, twice
        if w2 is not None:
            onto = self.apply(self.x, w2, onto)
        if twice is not None:
            onto = self.apply(x1, twice, onto)
        if x2 is not None:
            onto = self.apply(x2, self.w, onto)
        return onto

    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """``g2 w0 + 2 g1 w1 + g0 w2`` and ``g2 x0 + 2 g1 x1 + g0 x2``."""
        (x1, w1), (x2, w2, twice) = self.jet1, self.jet2
        x = w = None
        if x1 is not None:
            x = self.by_input(g2, self.w)
            if twice is not None:
                x = self.by_input(g1, twice, x)
            if w2 is not None:
                x = self.by_input(self.g, w2, x)
        if w1 is not None:
            if x1 is not None:
                w = self.by_weight(g1, x1)
                w = w + w
            w = self.by_weight(g2, self.x, w)
            if x2 is not None:
                w = self.by_weight(self.g, x2, w)
        return x, w


class Affine(Bilinear):
    """``y = B(x, w) + b``, where b may be missing."""

    tensors = ("input", "weight", "bias")

    @abstractmethod
    def by_bias(self, g: Tensor) -> Tensor:
        """Gradient of ``<g, b>`` with respect to b."""

    @abstractmethod
    def spread(self, b: Tensor) -> Tensor:
        """A bias in the output's shape."""

    def backward0(self, g0: Tensor) -> Cotangents:
        """Cotangents of x, w and b."""
        return *super().backward0(g0), self._bias(g0)

    def forward1(self, x1: Jet, w1: Jet, onto: Jet = None) -> Tensor:
        """``B(x0, w1) + B(x1, w0) + b1``; b1 alone where nothing else varies."""
        if x1 is None and w1 is None:
            assert onto is not None
            self.jet1 = None, None
            return self.spread(onto)
        return super().forward1(x1, w1, onto)

    def backward1(self, g1: Tensor) -> Cotangents:
        """Order 1 of the three."""
        return *super().backward1(g1), self._bias(g1)

    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """Order 2 of the three."""
        return *super().backward2(g1, g2), self._bias(g2)

    def _bias(self, g: Tensor) -> Jet:
        return self.by_bias(g) if self.needs[2] else None


def add_product_(total: Tensor, a: Tensor, b: Tensor, value: int = 1) -> Tensor:
    """``total + value a b``, in place where that is possible: vmap has no rule for it."""
    in_place = not is_batchedtensor(total)
    return total.addcmul_(a, b, value=value) if in_place else torch.addcmul(total, a, b, value=value)


def sum_to(g: Tensor, shape: Sequence[int]) -> Tensor:
    """The cotangent of a tensor of that shape that was broadcast to g's: the transpose of broadcasting."""
    if g.shape == torch.Size(shape):
        return g
    extra = g.dim() - len(shape)
    dims = [d for d in range(g.dim()) if d < extra or (shape[d - extra] == 1 and g.shape[d] != 1)]
    return g.sum(dims, keepdim=True).reshape(tuple(shape)) if dims else g.reshape(tuple(shape))
