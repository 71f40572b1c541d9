"""``x.view(...)`` and ``x.reshape(...)`` to a shape that may be computed from x's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from spectral_run.curvature.rop.forms import LinearMap


@final
class Reshape(LinearMap):
    """``torch.reshape``."""

    functions = (torch.reshape,)
    methods = ("view", "reshape")
    views = True

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str:
        """A view as another dtype is no linear map."""
        dtypes = [size for size in given["shape"] if isinstance(size, torch.dtype)]
        return f"a view as {dtypes[0]}" if dtypes else ""

    def forward0(self, input: Tensor, *shape: Any) -> Tensor:
        """The same numbers in another shape."""
        y = input.reshape(*shape)
        self.before, self.after = input.shape, y.shape
        return y

    def apply(self, x: Tensor) -> Tensor:
        """To the new shape."""
        return x.reshape(self.after)

    def transpose(self, g: Tensor) -> Tensor:
        """To the old shape."""
        return g.reshape(self.before)
