"""Normalization layers whose third derivatives are right, and a check that no other faulty operation is used.

PyTorch's fused kernels are silently wrong where the gradient of ``v'Hv`` needs them (float64, against finite
differences): train-mode BatchNorm and InstanceNorm by 60%, LayerNorm by 20%, ``weight_norm`` already in ``Hv``;
the fused attention has no second derivative at all.  Here the norms are written in primitive operations (mean, biased
variance, rsqrt), which autograd differentiates exactly to any order.  Cost: about twice the fused kernel.
Running statistics move only inside ``running_statistics(model)``: measuring curvature must not change the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class _ExactNorm(nn.Module):
    """Shares weight, bias and running statistics with the layer it replaces, under the same names."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.eps: float = layer.eps
        self.weight: nn.Parameter | None = layer.weight
        self.bias: nn.Parameter | None = layer.bias
        self.train(layer.training)


class _ExactRunningNorm(_ExactNorm):
    """A norm over all but the kept dimensions of its input, with running statistics where the layer has them."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    counts_batches = True

    def __init__(self, layer: Any, kept: tuple[int, ...]) -> None:
        super().__init__(layer)
        self.kept = kept
        self.features: int = layer.num_features
        self.momentum: float | None = layer.momentum
        self.update_statistics = False
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize by the batch's statistics in training (or without running ones), else by the running ones."""
        if x.shape[1] != self.features:
            raise ValueError(f"normalization over {self.features} channels got an input of shape {tuple(x.shape)}.")
        running_mean, running_var = self.running_mean, self.running_var
        shape = [1, -1] + [1] * (x.dim() - 2)
        if self.training or running_mean is None or running_var is None:
            dims = [d for d in range(x.dim()) if d not in self.kept]
            mean = x.mean(dims, keepdim=True)
            centred = x - mean
            variance = (centred * centred).mean(dims, keepdim=True)
            if self.update_statistics and self.training:
                self._update(mean.detach(), variance.detach(), x.numel() // mean.numel())
        else:
            centred = x - running_mean.view(shape)
            variance = running_var.view(shape)
        y = centred * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)

    def _update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        running_mean, running_var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if running_mean is None or running_var is None or batches is None:
            return
        # Over the batch (InstanceNorm keeps that dimension), and unbiased as in torch: the biased one is for the batch.
        mean, variance = (moment.transpose(0, 1).flatten(1).mean(1) for moment in (mean, variance))
        variance = variance * (count / max(count - 1, 1))
        with torch.no_grad():
            if self.counts_batches:
                batches += 1
            weight = (1.0 / float(batches) if batches else 0.0) if self.momentum is None else self.momentum
            running_mean.lerp_(mean.to(running_mean.dtype), weight)
            running_var.lerp_(variance.to(running_var.dtype), weight)


@final
class ExactBatchNorm(_ExactRunningNorm):
    """BatchNorm1d, 2d or 3d."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer, kept=(1,))


@final
class ExactInstanceNorm(_ExactRunningNorm):
    """InstanceNorm1d, 2d or 3d, on batched input."""

    counts_batches = False  # as torch's, which leaves its counter at 0

    def __init__(self, layer: Any) -> None:
        super().__init__(layer, kept=(0, 1))


@final
class ExactLayerNorm(_ExactNorm):
    """LayerNorm over the trailing dimensions."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__(layer)
        self.dims = [-i for i in range(len(layer.normalized_shape), 0, -1)]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize every row by its own mean and biased variance."""
        centred = x - x.mean(self.dims, keepdim=True)
        y = centred * torch.rsqrt((centred * centred).mean(self.dims, keepdim=True) + self.eps)
        if self.weight is not None:
            y = y * self.weight
        return y if self.bias is None else y + self.bias


_EXACT: dict[type[nn.Module], type[_ExactNorm]] = {
    nn.BatchNorm1d: ExactBatchNorm,
    nn.BatchNorm2d: ExactBatchNorm,
    nn.BatchNorm3d: ExactBatchNorm,
    nn.InstanceNorm1d: ExactInstanceNorm,
    nn.InstanceNorm2d: ExactInstanceNorm,
    nn.InstanceNorm3d: ExactInstanceNorm,
    nn.LayerNorm: ExactLayerNorm,
}


def swap_norms(model: nn.Module) -> nn.Module:
    """Replace every fused normalization layer by its exact form, in place; parameters and their names stay."""
    if type(model) in _EXACT:
        return _EXACT[type(model)](model)
    for name, child in model.named_children():
        setattr(model, name, swap_norms(child))
    return model


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Let running statistics move: once per training step, around the forward pass."""
    layers = [m for m in model.modules() if isinstance(m, _ExactRunningNorm)]
    for layer in layers:
        layer.update_statistics = True
    try:
        yield
    finally:
        for layer in layers:
            layer.update_statistics = False


# Operations with a wrong or missing derivative of second or third order, by the start of their name.
_FAULTY = {
    "native_layer_norm": "the third derivative of fused layer_norm is wrong; use nn.LayerNorm, which is swapped",
    "_weight_norm": "the second derivative of weight_norm is wrong; write the normalization out",
    "_scaled_dot_product": "fused attention has no second derivative; run it under sdpa_kernel(SDPBackend.MATH)",
    "_cudnn_rnn": "cuDNN's recurrent layers have no second derivative; disable cuDNN for them",
}
_FUSED_BATCH_NORM = ("native_batch_norm", "_native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm")


@final
class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every faulty operation that runs, whichever module or function calls it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        for start, why in _FAULTY.items():
            if name.startswith(start) and "math" not in name:
                self.found[name] = why
        if name.startswith(_FUSED_BATCH_NORM) and _in_training(func, args, kwargs or {}):
            self.found[name] = "the third derivative of fused batch or instance norm is wrong; use the nn layers"
        return func(*args, **(kwargs or {}))


def _in_training(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return bool(given.get("training", given.get("train", True)))


def refuse_inexact(model: nn.Module, inputs: Tensor) -> None:
    """Run one forward pass and raise ``ValueError`` naming each operation whose curvature would be wrong."""
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise ValueError(f"layer {name!r} (SyncBatchNorm) has no exact form here; use BatchNorm.")
        if any("SpectralNorm" in type(m).__name__ for m in _parametrizations(module)) and module.training:
            raise ValueError(
                f"layer {name!r}: spectral_norm changes with every training pass, so its loss has no Hessian."
            )
    watch = _Watch()
    with watch, torch.no_grad(), torch.random.fork_rng():
        model(inputs)
    if watch.found:
        raise ValueError(
            "; ".join(f"{type(model).__name__} uses {name}: {why}" for name, why in watch.found.items()) + "."
        )


def _parametrizations(module: nn.Module) -> list[nn.Module]:
    lists = getattr(module, "parametrizations", None)
    return [p for group in lists.values() for p in group.children()] if isinstance(lists, nn.ModuleDict) else []
