"""Concatenation along a dimension; backwards its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from spectral_run.curvature.rop.base import Cotangents, Jet, Rule


@final
class Cat(Rule):
    """``torch.cat``."""

    functions = (torch.cat, torch.concat, torch.concatenate)
    tensors = ("tensors",)

    def forward0(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        """All parts as one."""
        self.dim, self.shapes = dim, [t.shape for t in tensors]
        return torch.cat(list(tensors), dim)

    def forward1(self, *x1: Jet) -> Tensor:
        """Order 1 of the parts as one, zeros for the inactive."""
        y = self.forward2(*x1)
        assert y is not None
        return y

    def forward2(self, *x2: Jet) -> Jet:
        """Order 2 of the parts as one, zeros where there is none."""
        some = next((x for x in x2 if x is not None), None)
        if some is None:
            return None
        parts = [some.new_zeros(shape) if x is None else x for x, shape in zip(x2, self.shapes, strict=True)]
        return torch.cat(parts, self.dim)

    def backward0(self, g0: Tensor) -> Cotangents:
        """g's parts, which share its memory."""
        parts = torch.split(g0, [shape[self.dim] for shape in self.shapes], self.dim)
        return tuple(part if need else None for part, need in zip(parts, self.needs, strict=True))

    def backward1(self, g1: Tensor) -> Cotangents:
        """g's parts."""
        return self.backward0(g1)

    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """g's parts."""
        return self.backward0(g2)
