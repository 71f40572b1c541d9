"""Padding with zeros (or cropping, by negative widths)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import LinearMap


@final
class Pad(LinearMap):
    """``F.pad`` in mode constant, ``nn.ZeroPad1d``, ``nn.ZeroPad2d``, ``nn.ZeroPad3d``."""

    modules = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
    functions = (F.pad,)

    @staticmethod
    def arguments(module: Any) -> tuple[Sequence[int]]:
        """The widths."""
        return (module.padding,)

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str:
        """Reflecting and repeating are not covered."""
        mode = given.get("mode", "constant")
        return "" if mode == "constant" else f"mode must be constant, got {mode!r}"

    def forward0(
        self, input: Tensor, pad: Sequence[int], mode: str = "constant", value: int | float | None = None
    ) -> Tensor:
        """The padded tensor."""
        self.widths = list(pad)
        return F.pad(input, self.widths, value=value)

    def apply(self, x: Tensor) -> Tensor:
        """Padded with zeros, whatever the value was."""
        return F.pad(x, self.widths)

    def transpose(self, g: Tensor) -> Tensor:
        """Cropped."""
        return F.pad(g, [-width for width in self.widths])
