"""What changes nothing: identity, a copy, another memory layout."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn

from spectral_run.curvature.rop.forms import LinearMap


@final
class Identity(LinearMap):
    """``nn.Identity``, ``contiguous``, ``clone``."""

    modules = (nn.Identity,)
    methods = ("contiguous", "clone")
    views = True

    def forward0(self, input: Tensor, **layout: Any) -> Tensor:
        """x."""
        return input

    def apply(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def transpose(self, g: Tensor) -> Tensor:
        """g."""
        return g
