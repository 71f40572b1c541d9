"""Averages of iterates: training goes on from the iterates w_t, the average is what is evaluated.

    IterateAverage      a_n = (1/n) sum of n iterates   Izmailov et al. 2018; Granziol 2020, chapter 7
    ExponentialAverage  a_t = sum_i d^(t-i) w_i / sum_i d^(t-i)

Around SGD the first is SWA (He, Huang, Yuan 2019 train so for asymmetric valleys), around AdamW Gadam, around Padam
GadamX.  The trajectory is the base optimizer's, bit for bit.  With gradient noise of variance s^2 on ``l/2 w^2`` and
rate r the iterates keep the variance ``r s^2 / (l (2 - r l))``; that of a_n goes to ``s^2 / (l^2 n)``, that of an
exponential average stays above 0.  Units: d and ``every`` per step, the others per epoch.
The updates are ``torch.optim.swa_utils``' own, in float64: a running mean in float32 loses a digit over some hundred
iterates.  Not its ``AveragedModel``, which copies the network and leaves the optimizer's state; nor its ``update_bn``,
which knows no exact layers, gives a smaller last batch a full one's weight, and averages variances without the
variance of the batches' means.
Cost: no gradient; two vectors of memory, one pass over the training rows per evaluation of a network with BatchNorm.
Fails: statistics of hidden BatchNorm layers depend on how rows meet in batches; that order is seeded.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from spectral_run.curvature.exact_layers import ExactBatchNorm, ExactInstanceNorm
from spectral_run.curvature.rows import Rows
from spectral_run.optimizers.base import Averaging, MakeOptimizer, Wrapper

_Update = Callable[[Any, Any, Any], None]


class _Average(Wrapper, Averaging):
    """Keeps an average, ``self.state[p]["average"]`` in float64, of ``collected`` iterates."""

    def __init__(self, params: Iterable[nn.Parameter], base: MakeOptimizer) -> None:
        super().__init__(params, base)
        self.numbers |= {"epochs": 0, "steps": 0, "collected": 0}  # done; the steps: since averaging began

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """The base optimizer's step."""
        loss: float | None = self.base.step(closure)
        self._after_step()
        return loss

    @abstractmethod
    def _after_step(self) -> None:
        """Collect the iterate, or not."""

    def end_epoch(self, epoch: int) -> None:
        """Note that the epoch is over."""
        self.numbers["epochs"] = epoch

    @final
    def averaged(self) -> Sequence[Tensor] | None:
        """The average in the parameters' dtype."""
        if not self.numbers["collected"]:
            return None
        return [self.state[p]["average"].to(p.dtype) for p in self.parameters]

    @torch.no_grad()
    def _collect(self, update: _Update) -> None:
        now = [p.detach().double() for p in self.parameters]
        if not self.numbers["collected"]:
            for p, value in zip(self.parameters, now, strict=True):
                self.state[p]["average"] = value.clone()
        else:
            update([self.state[p]["average"] for p in self.parameters], now, self.numbers["collected"])
        self.numbers["collected"] += 1


@final
class IterateAverage(_Average):
    """Arithmetic mean of the iterates at the ends of epochs ``start`` to ``end``, or of every ``every`` steps in them.

    ``start``: an epoch, counted from 1; below 1 that share of ``epochs`` goes before. ``end``: the last epoch, or null
    for training's last. ``epochs`` of training are the runner's to say.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        base: MakeOptimizer,
        *,
        start: float,
        epochs: int,
        end: int | None = None,
        every: int | None = None,
    ) -> None:
        super().__init__(params, base)
        if not (math.isfinite(start) and start >= 0) or (start >= 1 and start != int(start)):
            raise ValueError(f"IterateAverage: start must be an epoch's number, or a share in [0, 1), got {start}.")
        self.start = int(start) if start >= 1 else int(start * epochs + 1e-9) + 1
        self.end = epochs if end is None else end
        if not self.start <= self.end <= epochs:
            raise ValueError(
                f"IterateAverage: epochs {self.start} to {self.end} must be among those of training (training.epochs), "
                f"got {epochs}."
            )
        if every is not None and every < 1:
            raise ValueError(f"IterateAverage: every must be at least 1 or null, got {every}.")
        self.every = every

    def _after_step(self) -> None:
        if self.every is not None and self.start <= self.numbers["epochs"] + 1 <= self.end:
            self.numbers["steps"] += 1
            if self.numbers["steps"] % self.every == 0:
                self._collect(get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]

    def end_epoch(self, epoch: int) -> None:
        """Collect the epoch's last iterate, where it is time."""
        super().end_epoch(epoch)
        if self.every is None and self.start <= epoch <= self.end:
            self._collect(get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]


@final
class ExponentialAverage(_Average):
    """Mean of all iterates, the last one first: each step back weighs ``decay`` times less.

    The weights sum to 1 from the first step on, so that the initial parameters, which are no iterate, have no part.
    """

    def __init__(self, params: Iterable[nn.Parameter], base: MakeOptimizer, *, decay: float) -> None:
        super().__init__(params, base)
        if not 0 <= decay < 1:
            raise ValueError(f"ExponentialAverage: decay must be in [0, 1), got {decay}.")
        self.decay = decay

    def _after_step(self) -> None:
        self.numbers["steps"] += 1
        weight = (1 - self.decay) / (1 - self.decay ** self.numbers["steps"])
        self._collect(get_ema_multi_avg_fn(1 - weight))  # type: ignore[no-untyped-call]


@torch.no_grad()
def fresh_statistics(model: nn.Module, inputs: Rows, batch_size: int, generator: torch.Generator) -> None:
    """Running statistics of one training-mode pass over all rows, each row weighing the same, and nothing before it.

    Of BatchNorm: mean and unbiased variance of all of a layer's inputs; exact for the first layer, while what reaches a
    later one was normalized in batches of ``batch_size``. Of InstanceNorm: the mean of the rows' own. The generator
    says how rows meet and seeds dropout; global random state and modes stay. Cost: a forward pass over all rows.
    """
    moments = {
        layer: _Moments(whole=isinstance(layer, ExactBatchNorm))
        for layer in model.modules()
        if isinstance(layer, ExactBatchNorm | ExactInstanceNorm) and layer.running_mean is not None
    }
    if not moments:
        return
    order = torch.randperm(len(inputs), generator=generator)
    seed = int(torch.randint(2**62, (), generator=generator))
    batches = list(torch.split(order.to(inputs.device), batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:  # a single row has no statistics: it joins the batch before
        batches[-2:] = [torch.cat(batches[-2:])]
    modes = {module: module.training for module in model.modules()}
    hooks = [layer.register_forward_pre_hook(seen) for layer, seen in moments.items()]
    try:
        model.train()
        with torch.random.fork_rng([inputs.device] if inputs.device.type == "cuda" else []):
            torch.manual_seed(seed)
            for rows in batches:
                model(inputs[rows])
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    for layer, seen in moments.items():
        if seen.count:  # a layer that no row comes by keeps what it has
            layer.running_mean.copy_(seen.mean)  # type: ignore[union-attr]
            layer.running_var.copy_(seen.variance)  # type: ignore[union-attr]


@final
class _Moments:
    """Mean and variance of a layer's inputs per channel, batch after batch (Chan, Golub, LeVeque 1979), in float64.

    ``whole``: over rows and positions together; else within each row, then their mean over rows.
    """

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.count = 0
        self.mean: Any = 0.0
        self._spread: Any = 0.0  # sum of squares about the mean; not whole: sum of the rows' variances

    @property
    def variance(self) -> Tensor:
        """Unbiased, as torch's layers keep it."""
        variance: Tensor = self._spread / (max(self.count - 1, 1) if self.whole else self.count)
        return variance

    def __call__(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        x = arguments[0].double()
        if self.whole:
            x = x.transpose(0, 1).flatten(1)
            count, mean = x.shape[1], x.mean(1)
            spread = ((x - mean[:, None]) ** 2).sum(1)
        else:
            x = x.flatten(2)
            count, mean = len(x), x.mean((0, 2))
            spread = x.var(2).sum(0) if x.shape[2] > 1 else torch.zeros_like(mean)
        total = self.count + count
        shift = mean - self.mean
        between = shift**2 * (self.count * count / total) if self.whole else 0.0
        self.mean = self.mean + shift * (count / total)
        self._spread = self._spread + spread + between
        self.count = total
