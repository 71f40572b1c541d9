"""Adaptive max pooling in two dimensions: the places of the maxima are found once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.rop.forms import Selection


@final
class AdaptiveMaxPool(Selection):
    """``nn.AdaptiveMaxPool2d``."""

    modules = (nn.AdaptiveMaxPool2d,)
    functions = (F.adaptive_max_pool2d,)

    @staticmethod
    def arguments(module: nn.AdaptiveMaxPool2d) -> tuple[Any, bool]:
        """Output size."""
        return module.output_size, module.return_indices

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str:
        """Indices are no function of the parameters."""
        return "return_indices must be False" if given.get("return_indices") else ""

    def forward0(self, input: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        """The maxima."""
        y, places = F.adaptive_max_pool2d(input, output_size, return_indices=True)
        return self.select(input, y, places, spatial=2, distinct=False)
