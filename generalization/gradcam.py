"""Grad-CAM: where in an image a network finds what speaks for an output, and how far two such maps agree.

Source: Selvaraju et al. 2017, equations (1) and (2): the map of output o is ``relu(sum_c a_c A_c)``, A the activations
of the last layer that keeps positions apart, ``a_c`` the mean over positions of ``d y_o / d A_c``; y is the output
before any sigmoid (a sigmoid would scale an image's whole map by one number).  Computed by captum; then upsampled
bilinearly to the input's size.  Jaccard index of two sets of pixels: what both have, over what either has.
Cost: one forward pass an image where the layer is the last one, whatever the number of outputs; else one an output.
Fails: a map is zero everywhere where no position speaks for the output; such a map has no top pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from spectral_run.curvature.objective import evaluating

_ONES: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint16)  # bits of a byte


def feature_layers(model: nn.Module, example: Float[Tensor, "rows channels height width"]) -> list[str]:
    """Names of the layers whose output is a map (rows, channels, height, width) of several positions, as they end."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] * output.shape[3] > 1:
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with _frozen(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def choose_layer(model: nn.Module, example: Float[Tensor, "rows channels height width"], name: str | None) -> str:
    """``name``, or the last feature layer. Raises ``ValueError`` where there is none, or none of that name."""
    found = feature_layers(model, example)
    kind = type(model).__name__
    if not found:
        raise ValueError(f"Grad-CAM: {kind} has no layer whose output is a map (rows, channels, height, width).")
    if name is not None and name not in found:
        outer = [layer for layer in dict.fromkeys(found) if layer.count(".") <= 1]
        inner = len(set(found)) - len(outer)
        more = f" or of the {inner} layers in these" if inner else ""
        raise ValueError(f"Grad-CAM: layer must be one of {kind}'s {', '.join(outer)}{more}, got {name!r}.")
    return found[-1] if name is None else name


def heat_maps(
    model: nn.Module, layer: str, images: Float[Tensor, "rows channels height width"], outputs: Sequence[int]
) -> Float[Tensor, "rows outputs height width"]:
    """Maps of the given outputs, in evaluation mode, float64; the network is left as it was."""
    found = feature_layers(model, images[:1])
    module = model.get_submodule(layer)
    cam = LayerGradCam(model, module)
    rows, count = len(images), len(outputs)
    with _frozen(model):
        if found[-1] == layer and found.count(layer) == 1:
            # What follows the layer gets every row once per output, so that one pass through the rest is enough.
            repeat = module.register_forward_hook(lambda module, inputs, y: y.repeat_interleave(count, 0))
            try:
                maps = cam.attribute(images, list(outputs) * rows, relu_attributions=True)
            finally:
                repeat.remove()
            maps = maps.reshape(rows, count, *maps.shape[2:])
        else:
            maps = torch.cat([cam.attribute(images, output, relu_attributions=True) for output in outputs], 1)
    upsampled: Tensor = LayerAttribution.interpolate(maps.detach().double(), images.shape[2:], "bilinear")
    return upsampled


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no graph below the layer that gradients are taken at."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def top_pixels(maps: Float[np.ndarray, "*maps height width"], share: float) -> Bool[np.ndarray, "*maps pixels"]:
    """The ``ceil(share * pixels)`` largest of each map, of equal ones the first; none of a map that is all 0."""
    flat = maps.reshape(*maps.shape[:-2], -1)
    pixels = flat.shape[-1]
    count = math.ceil(share * pixels - 1e-9)  # 0.1 * 50 is a hair above 5
    least = np.partition(flat, pixels - count, axis=-1)[..., pixels - count, None]
    above, equal = flat > least, flat == least
    chosen = above | (equal & (np.cumsum(equal, axis=-1) <= count - above.sum(-1, keepdims=True)))
    return np.asarray(chosen & flat.any(-1, keepdims=True), dtype=np.bool_)


def jaccard(a: UInt8[np.ndarray, "*maps bytes"], b: UInt8[np.ndarray, "*maps bytes"]) -> Float[np.ndarray, "*maps"]:
    """Jaccard index of sets packed by ``np.packbits``; NaN where either set is empty."""
    both, either = (_ONES[bits].sum(-1, dtype=np.int64) for bits in (a & b, a | b))
    defined = a.any(-1) & b.any(-1)
    return np.where(defined, both / np.maximum(either, 1), np.nan)
