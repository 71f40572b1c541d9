"""Sharpness-aware minimization: a base optimizer that gets the gradient at a nearby worse point, ``grad f(w + e)``.

With g the gradient at w, rho the radius (a length of parameters; for ``unnormalized`` that over a gradient), ``e`` is

    sam            rho g / |g|                   Foret et al. 2021, equation (2) with p = 2
    asam           rho T^2 g / |T g|             Kwon et al. 2021, equation (8); T = |w| + eta, elementwise, biases too
    unnormalized   rho g                         Andriushchenko, Flammarion 2022, equation (4)

with one norm over all parameters. To O(rho^2) the gradient is that of a penalty: ``g + rho H g / |g|`` of
``f + rho |g|`` for sam, ``g + rho H g`` of ``f + rho/2 |g|^2`` for unnormalized. Both gradients are what the closure
leaves in ``.grad``: with a regularizer its gradient, so that the regularized loss is what gets flat.

Cost: two gradients a step, both on the same batch (a closure may add up micro-batches); one more vector of memory.
Fails: sam's direction is undefined where g = 0; there e = 0. Running statistics of BatchNorm are the closure's: the
runner's moves them at the first of the two calls only.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Final, final

import torch
from torch import Tensor, nn

from spectral_run.optimizers.base import MakeOptimizer, Wrapper

KINDS: Final = ("sam", "asam", "unnormalized")


@final
class SAM(Wrapper):
    """Step of ``base`` with the gradient at ``w + e``. ``eta``, a length of parameters, is of ``kind=asam`` alone."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, base: MakeOptimizer, rho: float, kind: str = "sam", eta: float = 0.01
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"SAM: kind must be one of {', '.join(KINDS)}; got {kind!r}.")
        for name, value in {"rho": rho, "eta": eta}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"SAM: {name} must be >= 0 and finite, got {value}.")
        super().__init__(params, base)
        closure = inspect.signature(self.base.step).parameters.get("closure")
        if isinstance(self.base, Wrapper) or (closure and closure.default is inspect.Parameter.empty):
            who = type(self.base).__name__
            raise ValueError(f"SAM: base must step from .grad alone, and {who} calls the closure: put SAM inside it.")
        self.kind, self.rho, self.eta = kind, rho, eta

    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]  # it cannot do without
        """One step. Returns the loss at w. Parameters stay at w where the closure raises.

        Raises ``FloatingPointError`` where the gradient at w is not finite.
        """
        with torch.enable_grad():
            loss = closure()
        moved = [p for p in self.parameters if p.grad is not None]
        with torch.no_grad():
            saved = [p.clone() for p in moved]
            try:
                self._perturb(moved)
                with torch.enable_grad():
                    closure()
            finally:
                for p, w in zip(moved, saved, strict=True):
                    p.copy_(w)
        self.base.step()
        return loss

    def _perturb(self, parameters: list[nn.Parameter]) -> None:
        """``w + e`` in the place of w. The norm is float64, where no float32 is too large or small to be squared."""
        scales = [p.abs().add_(self.eta) if self.kind == "asam" else None for p in parameters]
        scaled = [_gradient(p) if s is None else _gradient(p) * s for p, s in zip(parameters, scales, strict=True)]
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in scaled]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        if not math.isfinite(norm):
            raise FloatingPointError(f"SAM: the gradient must be finite, got one of norm {norm}.")
        for p, g, s in zip(parameters, scaled, scales, strict=True):
            if self.kind == "unnormalized":
                p.add_(g, alpha=self.rho)
            elif norm > 0:
                # Divided first and by a tensor: 1 / norm may be beyond the range of the parameters' type.
                direction = g / torch.tensor(norm, dtype=g.dtype, device=g.device)
                p.add_(direction if s is None else direction * s, alpha=self.rho)


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad
