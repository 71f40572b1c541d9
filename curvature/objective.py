"""A network and a loss, as a function of the network's trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@final
@dataclass(frozen=True)
class Objective:
    """Mean loss of ``model(inputs)`` against ``targets``. Parameters that do not require a gradient stay fixed."""

    model: nn.Module
    loss: LossFunction

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trainable parameters, in the order of ``model.named_parameters()``."""
        return tuple(p for p in self.model.parameters() if p.requires_grad)

    @property
    def n(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters)

    @property
    def random(self) -> bool:
        """Whether a forward pass draws random numbers (dropout in training mode)."""
        return any(isinstance(m, _DROPOUTS) and m.training for m in self.model.modules())

    def __call__(self, inputs: Tensor, targets: Tensor, params: Sequence[Tensor] | None = None) -> Float[Tensor, ""]:
        """The loss, with a graph: at the model's own parameters, or at others of the same shapes."""
        if params is None:
            return self.loss(self.model(inputs), targets)
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        outputs = functional_call(self.model, dict(zip(names, params, strict=True)), (inputs,))
        return self.loss(outputs, targets)

    def split(self, flat: Float[Tensor, " n"]) -> tuple[Tensor, ...]:
        """Views of a flat vector in the parameters' shapes."""
        parameters = self.parameters
        pieces = torch.split(flat, [p.numel() for p in parameters])
        return tuple(piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def flatten(pieces: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """One contiguous vector of all the tensors' numbers, in order."""
    return torch.cat([piece.reshape(-1) for piece in pieces])


@final
class FixedRandomness:
    """The random state at which a forward pass was done first; later passes replay it and leave the state alone."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: Tensor | None = None

    def __enter__(self) -> None:
        devices = [self._device] if self._device.type == "cuda" else []
        self._fork = torch.random.fork_rng(devices) if self._state is not None else nullcontext()
        self._fork.__enter__()
        if self._state is None:
            self._state = self._get()
        else:
            self._set(self._state)

    def __exit__(self, *exception: object) -> None:
        self._fork.__exit__(None, None, None)

    def _get(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)
