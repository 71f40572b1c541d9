"""Convolutional network for the 16x16 grey images of the USPS digits.

Source: appendix C.3 of the spectral-radius paper. Three convolutions (3x3, stride 1, padding 1) to 8, 16 and 32
channels, each followed by the activation and 2x2 max pooling, then 64 hidden nodes and the classes.
Parameters: 14,794 for 10 classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from jaxtyping import Float
from torch import Tensor, nn

from spectral_run.models.checks import activation_factory, check_interface

INPUT_SHAPE: Final = (1, 16, 16)
CHANNELS: Final = (8, 16, 32)
HIDDEN: Final = 64


@final
class USPSCNN(nn.Module):
    """The paper's network, with no size left to choose: only the activation."""

    def __init__(self, *, input_shape: Sequence[int], classes: int, activation: str = "relu") -> None:
        super().__init__()
        check_interface("USPSCNN", tuple(input_shape), classes)
        if tuple(input_shape) != INPUT_SHAPE:
            raise ValueError(
                f"USPSCNN: input_shape must be {INPUT_SHAPE}, got {tuple(input_shape)}; model=mlp takes any shape."
            )
        make_activation = activation_factory("USPSCNN", activation)
        layers: list[nn.Module] = []
        inputs, side = INPUT_SHAPE[0], INPUT_SHAPE[1]
        for outputs in CHANNELS:
            layers += [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), make_activation(), nn.MaxPool2d(2)]
            inputs, side = outputs, side // 2
        layers += [nn.Flatten(), nn.Linear(inputs * side * side, HIDDEN), make_activation(), nn.Linear(HIDDEN, classes)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "rows 1 16 16"]) -> Float[Tensor, "rows classes"]:
        """Logits of a batch."""
        logits: Tensor = self.layers(x)
        return logits
