"""Generators and discriminators of two conditional GANs for small grey images: a perceptron pair, a convolutional pair.

Source: Mirza and Osindero 2014, as appendix C.3 of the spectral-radius paper uses it; the paper leaves the layers open.
Both generators take an embedding of the class beside the latent numbers, the perceptron discriminator one beside the
pixels.  The convolutional pair is a small DCGAN (Radford et al. 2016): transposed convolutions with batch norm against
strided convolutions without; its discriminator sees the class as a channel per class, one of them all ones.

Images are in [-1, 1]. A discriminator gives a score: the logit of "real", or with a squared loss the target itself.
Parameters at 16x16, 10 classes and 100 latent numbers, generator and discriminator: 970,468 and 662,629 (perceptrons),
389,957 and 404,929 (convolutional).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from spectral_run.models.checks import check_interface, positive_integer

SLOPE: Final = 0.2  # of the leaky ReLUs; DCGAN's
GENERATOR_WIDTHS: Final = (128, 256, 512, 1024)
DISCRIMINATOR_WIDTHS: Final = (512, 512, 512)
DROPOUT: Final = 0.4  # of the perceptron discriminator
CHANNELS: Final = (128, 64, 32)  # of the convolutional generator, from a quarter of the side to the whole
HIDDEN: Final = 128  # of the convolutional discriminator


def _check(owner: str, input_shape: tuple[int, ...], classes: int, latent: int = 1, multiple: int = 1) -> None:
    check_interface(owner, input_shape, classes)
    if len(input_shape) != 3 or any(side % multiple for side in input_shape[1:]):
        sides = f" with sides that are multiples of {multiple}" if multiple > 1 else ""
        raise ValueError(f"{owner}: input_shape must be (channels, height, width){sides}, got {input_shape}.")
    if not positive_integer(latent):
        raise ValueError(f"{owner}: latent must be a positive integer, got {latent!r}.")


@final
class MLPGenerator(nn.Module):
    """Latent numbers and an embedding of the class through four batch-normalized layers to an image."""

    def __init__(self, *, input_shape: Sequence[int], classes: int, latent: int) -> None:
        super().__init__()
        shape = tuple(input_shape)
        _check("MLPGenerator", shape, classes, latent)
        self.embedding = nn.Embedding(classes, classes)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((latent + classes, *GENERATOR_WIDTHS)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.LeakyReLU(SLOPE)]
        layers += [nn.Linear(GENERATOR_WIDTHS[-1], math.prod(shape)), nn.Tanh(), nn.Unflatten(1, shape)]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, latent: Float[Tensor, "rows latent"], classes: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows channels height width"]:
        """Images in (-1, 1)."""
        images: Tensor = self.layers(torch.cat([latent, self.embedding(classes)], 1))
        return images


@final
class MLPDiscriminator(nn.Module):
    """The pixels and an embedding of the class through three layers, two with dropout, to a score."""

    def __init__(self, *, input_shape: Sequence[int], classes: int) -> None:
        super().__init__()
        shape = tuple(input_shape)
        _check("MLPDiscriminator", shape, classes)
        self.embedding = nn.Embedding(classes, classes)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((math.prod(shape) + classes, *DISCRIMINATOR_WIDTHS)):
            layers += [nn.Linear(inputs, outputs), *([nn.Dropout(DROPOUT)] if layers else []), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Linear(DISCRIMINATOR_WIDTHS[-1], 1), nn.Flatten(0))

    def forward(
        self, images: Float[Tensor, "rows channels height width"], classes: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """A score per image."""
        scores: Tensor = self.layers(torch.cat([images.flatten(1), self.embedding(classes)], 1))
        return scores


@final
class ConvGenerator(nn.Module):
    """Latent numbers and an embedding of the class to a quarter of the side, which is doubled twice."""

    def __init__(self, *, input_shape: Sequence[int], classes: int, latent: int) -> None:
        super().__init__()
        shape = tuple(input_shape)
        _check("ConvGenerator", shape, classes, latent, multiple=4)
        self.embedding = nn.Embedding(classes, classes)
        first = (CHANNELS[0], shape[1] // 4, shape[2] // 4)
        layers: list[nn.Module] = [
            nn.Linear(latent + classes, math.prod(first), bias=False),
            nn.Unflatten(1, first),
            nn.BatchNorm2d(first[0]),
            nn.ReLU(),
        ]
        for inputs, outputs in pairwise(CHANNELS):
            double = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
            layers += [double, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(CHANNELS[-1], shape[0], 3, padding=1), nn.Tanh())

    def forward(
        self, latent: Float[Tensor, "rows latent"], classes: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows channels height width"]:
        """Images in (-1, 1)."""
        images: Tensor = self.layers(torch.cat([latent, self.embedding(classes)], 1))
        return images


@final
class ConvDiscriminator(nn.Module):
    """The image and a channel per class, halved twice by convolutions, a hidden layer, and a score.

    He's initialization (2015), the last layer near 0: with PyTorch's own the signal fades from layer to layer.
    """

    def __init__(self, *, input_shape: Sequence[int], classes: int) -> None:
        super().__init__()
        shape = tuple(input_shape)
        _check("ConvDiscriminator", shape, classes, multiple=4)
        self.classes = classes
        wide, middle, _ = CHANNELS
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((shape[0] + classes, middle, wide)):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        size = wide * (shape[1] // 4) * (shape[2] // 4)
        layers += [nn.Flatten(), nn.Linear(size, HIDDEN), nn.LeakyReLU(SLOPE), nn.Linear(HIDDEN, 1), nn.Flatten(0)]
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, SLOPE)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
                last = layer
        nn.init.normal_(last.weight, std=0.02)
        self.layers = nn.Sequential(*layers)

    def forward(
        self, images: Float[Tensor, "rows channels height width"], classes: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """A score per image."""
        label = functional.one_hot(classes, self.classes).to(images.dtype)[:, :, None, None]
        scores: Tensor = self.layers(torch.cat([images, label.expand(-1, -1, *images.shape[2:])], 1))
        return scores
