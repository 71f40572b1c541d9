"""Multilayer perceptron: affine layers with an activation between them, on flattened inputs.

Source: appendix C.3 of the spectral-radius paper (forest cover: three hidden layers of 20, ReLU).
Parameters: sum over layers of ``(inputs + 1) * outputs``, without the 1 where ``bias`` is off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from spectral_run.models.checks import activation_factory, check_interface, positive_integer


@final
class MLP(nn.Module):
    """Affine layers of the given widths, then one to the classes; no widths make it a linear classifier."""

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (64, 32),
        activation: str = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_interface("MLP", tuple(input_shape), classes)
        if not all(positive_integer(width) for width in widths):
            raise ValueError(f"MLP: widths must be positive integers, got {widths!r}.")
        make_activation = activation_factory("MLP", activation)
        sizes = [math.prod(input_shape), *widths, classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, bias=bias), make_activation()]
        self.layers = nn.Sequential(*layers[:-1])  # the last affine layer gives the logits

    def forward(self, x: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows classes"]:
        """Logits of a batch."""
        logits: Tensor = self.layers(x)
        return logits
