"""Checks of constructor arguments that several models share, and the activation functions by name."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from types import MappingProxyType

from torch import nn

ACTIVATIONS: MappingProxyType[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "softplus": nn.Softplus,
        "elu": nn.ELU,
        "sigmoid": nn.Sigmoid,
        "leaky_relu": nn.LeakyReLU,
    }
)


def activation_factory(owner: str, name: str) -> Callable[[], nn.Module]:
    """Constructor of the activation called ``name``; ``owner`` is the model that the error message speaks for."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    near = get_close_matches(str(name).lower(), ACTIVATIONS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"{owner}: activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}.{hint}")


def positive_integer(value: object) -> bool:
    """Whether ``value`` is an integer above zero; ``True`` is not one, though Python counts it as 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def check_interface(owner: str, input_shape: tuple[int, ...], classes: int) -> None:
    """Refuse an input shape or a number of classes that no network can have."""
    if not input_shape or not all(positive_integer(size) for size in input_shape):
        raise ValueError(f"{owner}: input_shape must be positive integers, got {input_shape}.")
    if not positive_integer(classes):
        raise ValueError(f"{owner}: classes must be a positive integer, got {classes!r}.")
