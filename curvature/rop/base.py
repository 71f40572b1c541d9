"""What a rule and a loss are: one node of the network, and the end of it, differentiated twice along a line by hand.

Along ``w + t v`` every value of the network is a function of t. Its jet is (x0, x1, x2): value, first and second
derivative at t = 0; the jet of a cotangent g (the gradient of the loss with respect to that value) is (g0, g1, g2).
Pearlmutter 1994 calls x1 ``R{x}``; the paper's appendix A calls x2 ``R^2{x}``. The gradient's own jet is what is
wanted: ``(grad f, H v, grad_w v'Hv)``. A rule carries jets through one node, forwards and backwards.

Conventions, which keep a rule short. A value is active if it depends on a trainable parameter and the loss on it.
Of an active value x1 is always a tensor; x2 is ``None`` where it is zero (nothing yet was multiplied by a second
parameter). Of an inactive one both are ``None``. Cotangents that come in are always tensors; those that go out are
``None`` for inactive inputs. No rule changes a tensor that it was given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

Jet: TypeAlias = Tensor | None
Cotangents: TypeAlias = tuple[Jet, ...]


class UnsupportedError(ValueError):
    """The network or its loss has something in it that no rule covers."""


class Rule(ABC):
    """One node of the network on one batch: made anew by every primal pass, keeping what the products need of it.

    ``forward0`` takes the arguments of the torch function of the same name; ``tensors`` names those that may be active
    (an argument called ``tensors`` is a list of them), and every other method takes and returns them in that order.
    """

    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    methods: ClassVar[tuple[str, ...]] = ()
    tensors: ClassVar[tuple[str, ...]] = ("input",)
    keeps_draws: ClassVar[bool] = False  # whether ``draws`` is used
    views: ClassVar[bool] = False  # whether the output may share memory with the input
    vectorizes: ClassVar[bool] = True  # whether torch.func.vmap over v works and pays

    needs: tuple[bool, ...]  # which of the tensors are active
    curved: bool = True  # whether ``backward0`` keeps what ``backward1`` needs
    own_point: bool = True  # at the model's own parameters: only then may a layer's state move
    draws: Any = None  # random numbers of the first pass over this batch; later passes find them here
    jet1: Any = None  # what the backward pass needs of orders 1 and 2 of this product; the engine lets go of both
    jet2: Any = None

    @staticmethod
    def arguments(module: Any) -> tuple[Any, ...]:
        """A module as the call of its function: the arguments of ``forward0`` after the input."""
        return ()

    @classmethod
    def refusal(cls, given: Mapping[str, Any]) -> str:
        """Why these arguments of ``forward0`` are not covered; empty where they are."""
        return ""

    def straighten(self) -> None:
        """After ``forward0``: from now on only the node's derivative is wanted, ``forward1``, and its transpose.

        The transpose is ``backward0``, of any cotangent and any number of times. Gauss-Newton products need no more.
        """
        self.curved = False

    @abstractmethod
    def forward0(self, *args: Any, **kwargs: Any) -> Tensor:
        """The node's value; keeps what the other five need."""

    @abstractmethod
    def backward0(self, g0: Tensor) -> Cotangents:
        """Cotangents of the inputs, given the output's: plain backpropagation."""

    @abstractmethod
    def forward1(self, *args: Any, **kwargs: Any) -> Tensor:
        """Order 1 of the output, from order 1 of the inputs."""

    @abstractmethod
    def backward1(self, g1: Tensor) -> Cotangents:
        """Order 1 of the inputs' cotangents."""

    @abstractmethod
    def forward2(self, *args: Any, **kwargs: Any) -> Jet:
        """Order 2 of the output; comes after ``forward1``."""

    @abstractmethod
    def backward2(self, g1: Tensor, g2: Tensor) -> Cotangents:
        """Order 2 of the inputs' cotangents; comes after ``backward1``."""


class LossRule(ABC):
    """A loss on one batch: cotangent jets at the network's output."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()  # attributes of the module, keywords of the function

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.given = dict(settings)

    @classmethod
    def refusal(cls, settings: Mapping[str, Any]) -> str:
        """Why these settings are not covered; empty where they are."""
        reduction = settings.get("reduction", "mean")
        return "" if reduction in ("mean", "sum") else f"reduction must be mean or sum, got {reduction!r}"

    @abstractmethod
    def cotangent0(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Gradient of the loss with respect to the outputs; keeps what the other two need."""

    @abstractmethod
    def cotangent1(self, z1: Tensor) -> Tensor:
        """Its derivative along the line, given that of the outputs."""

    @abstractmethod
    def cotangent2(self, z1: Tensor, z2: Jet) -> Tensor:
        """Its second derivative along the line."""
