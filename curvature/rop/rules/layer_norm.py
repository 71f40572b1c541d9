"""Layer normalization over the trailing dimensions of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.exact_layers import ExactLayerNorm
from spectral_run.curvature.rop.normalization import Normalization


@final
class LayerNorm(Normalization):
    """``nn.LayerNorm``, and the exact one that ``swap_norms`` puts in its place."""

    modules = (nn.LayerNorm, ExactLayerNorm)
    functions = (F.layer_norm,)

    @staticmethod
    def arguments(module: Any) -> tuple[Any, ...]:
        """Of the normalized shape only its length counts, which is all that the exact layer knows."""
        shape = module.dims if isinstance(module, ExactLayerNorm) else module.normalized_shape
        return tuple(shape), module.weight, module.bias, module.eps

    def forward0(
        self,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: int | float = 1e-5,
    ) -> Tensor:
        """The normalized input."""
        trailing = len(normalized_shape)
        affine = [1] * (input.dim() - trailing) + list(input.shape[-trailing:])
        return self.begin(input, weight, bias, eps, dims=range(-trailing, 0), affine=affine)
