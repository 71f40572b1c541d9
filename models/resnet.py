"""Residual network for small images.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2: a 3x3 convolution to
``width`` channels, three stages of basic blocks with ``width``, ``2 * width`` and ``4 * width`` channels, the second
and third of which begin by halving height and width, global average pooling, one affine layer. Shortcuts are the
paper's option A: where the shape changes they take every second pixel and pad with zero channels, so they have no
parameters. Weights start from He normal (fan out).

Depth: ``2 * sum(blocks) + 2``; width 16 and blocks (3, 3, 3) are ResNet-20 with its 269,722 parameters for CIFAR-10
(He et al. count 0.27 million). ``norm="batch"`` is He's and ties the examples of a batch together, in training mode
also in their Hessian; ``norm="group"`` (Wu and He 2018, up to 8 groups) treats each example alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from spectral_run.models.checks import check_interface, positive_integer

GROUPS = 8
SMALLEST = 8  # two stages halve the image: at 8x8 the last one still sees 2x2 pixels


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "group": _group_norm}


@final
class BasicBlock(nn.Module):
    """Two normalized 3x3 convolutions added to a shortcut of the input."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stride = stride
        self.zero_channels = outputs - inputs
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)

    def forward(self, x: Float[Tensor, "rows inputs height width"]) -> Float[Tensor, "rows outputs height2 width2"]:
        """The block's output, ``outputs`` channels at ``1 / stride`` of the size, rounded up."""
        residual = self.norm2(self.convolution2(functional.relu(self.norm1(self.convolution1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.zero_channels:
            x = functional.pad(x, (0, 0, 0, 0, 0, self.zero_channels))
        return functional.relu(x + residual)


@final
class ResNet(nn.Module):
    """He's layout for CIFAR at any width and depth, for images of any channels from 8x8 up."""

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        classes: int,
        width: int = 16,
        blocks: Sequence[int] = (1, 1, 1),
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_interface("ResNet", tuple(input_shape), classes)
        if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST:
            raise ValueError(
                f"ResNet: input_shape must be (channels, height, width), height and width >= {SMALLEST}, "
                f"got {tuple(input_shape)}; model=mlp takes any shape."
            )
        if not positive_integer(width):
            raise ValueError(f"ResNet: width must be a positive integer, got {width!r}.")
        if len(blocks) != 3 or not all(positive_integer(count) for count in blocks):
            raise ValueError(f"ResNet: blocks must be three positive integers, got {blocks!r}.")
        if norm not in _NORMS:
            raise ValueError(f"ResNet: norm must be one of {', '.join(_NORMS)}, got {norm!r}.")
        make_norm = _NORMS[norm]
        self.convolution = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.norm = make_norm(width)
        stages: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(inputs, outputs, stride, make_norm))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows classes"]:
        """Logits of a batch."""
        features: Tensor = self.blocks(functional.relu(self.norm(self.convolution(x))))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits
