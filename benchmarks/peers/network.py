"""The benchmark's networks as PyTorch modules: this project's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from peers.base import Data, parameters
from torch import Tensor, nn

from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.models.mlp import MLP
from spectral_run.models.resnet import ResNet
from spectral_run.models.usps_cnn import USPSCNN


def build(network: Mapping[str, Any]) -> nn.Module:
    """A network with random weights."""
    kind = network["kind"]
    if kind == "mlp":
        first, *widths, classes = network["sizes"]
        return MLP(input_shape=(first,), classes=classes, widths=widths)
    if kind == "cnn":
        return USPSCNN(input_shape=(1, 16, 16), classes=10)
    if kind == "resnet":
        return ResNet(input_shape=(3, 32, 32), classes=10, blocks=network["blocks"])
    raise ValueError(f"no network is called {kind!r}.")


def load(network: Mapping[str, Any], data: Data, *, swap: bool = False) -> tuple[nn.Module, Tensor, Tensor]:
    """The network with the given weights, and the batch; float32.

    ``swap``: normalization layers in primitive operations. PyTorch's own need less memory, but have no third
    derivative and no forward mode that leaves their statistics alone.
    """
    model = swap_norms(build(network)) if swap else build(network)
    with torch.no_grad():
        for p, values in zip(model.parameters(), parameters(data), strict=True):
            p.copy_(torch.from_numpy(values))
    return model, torch.from_numpy(data["x"]), torch.from_numpy(data["y"])


def flat(vector: Any) -> np.ndarray:
    """A tensor or a list of tensors as a flat float64 array."""
    pieces = [vector] if isinstance(vector, Tensor) else list(vector)
    return torch.cat([piece.detach().reshape(-1) for piece in pieces]).double().numpy()
