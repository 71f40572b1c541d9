"""The sweeps of backend ``rop`` recorded over static tensors: for one shape of batch, one mode of the network.

Three recordings share one memory: the primal pass (loss and gradient, and what the rules keep of it), a product, and a
product with ``grad v'Hv``.  A batch is loaded by copies into the static tensors and a replay of the first.
Before a plan is trusted it compares one product of each kind with the rules run one by one on the same numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.cuda.capture import Captured, CaptureError
from spectral_run.curvature.cuda.lanczos import DeviceOperator
from spectral_run.curvature.cuda.program import (
    Moments,
    Replacements,
    nothing_kept,
    settle,
    specialized,
    statistics_set_aside,
)
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.trace import Program

Precision: TypeAlias = Literal["exact", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of a replay against the rules, in norm


@final
@dataclass(frozen=True)
class _Primal:
    """What the primal pass leaves: for gradients, and for products, which may be at another precision."""

    exact: RopProblem
    swept: RopProblem
    loss: Tensor
    gradient: Tensor
    moments: list[Moments]


@final
class Plan(DeviceOperator):
    """Static tensors and recordings; ``owner`` is the problem whose primal pass is in them."""

    def __init__(
        self,
        program: Program,
        inputs: Tensor,
        targets: Tensor,
        point: Float[Tensor, " n"],
        draws: dict[int, Any],
        *,
        weight_decay: float,
        precision: str,
        replacements: Replacements,
    ) -> None:
        self.owner: object = None
        self.graph = program.graph()
        self.inputs, self.targets = inputs.clone(), targets.clone()
        self.point = point.detach() / 2  # recorded elsewhere than it is checked: what is stale shows
        self.direction = _direction(self.point)
        self.draws = {slot: mask.clone() if isinstance(mask, Tensor) else mask for slot, mask in draws.items()}
        self.solves: OrderedDict[Any, Any] = OrderedDict()  # recorded solvers over these tensors
        self._program, self._weight_decay, self._precision = program, weight_decay, precision
        device = self.point.device
        like = self._reduced(self.point)
        changed = specialized(program, replacements)
        with _random_state_kept(device), _matrix_products("ieee"):
            primal = Captured(lambda: self._primal_pass(program, changed, like), device)
            self._primal = primal
            primal.replay()
            swept = primal.result.swept
            swept._version = swept._versions()  # a replay may count as a change of what it computes itself
            rules = [node[0] for node in swept._nodes]
            with _matrix_products("tf32" if precision == "tf32" else "ieee"), nothing_kept(rules):
                self._product = Captured(lambda: self._hvp(swept), device, pool=primal.pool)
                self._both = Captured(lambda: self._hvp_and_quadratic(swept), device, pool=primal.pool)
            self.point.copy_(point)
            self.error = self._check()

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Of the batch last loaded; static."""
        return self._primal.result.loss

    @property
    def gradient(self) -> Float[Tensor, " n"]:
        """Of the batch last loaded; static."""
        return self._primal.result.gradient

    @property
    def moments(self) -> list[Moments]:
        """What would move running statistics; static."""
        return self._primal.result.moments

    @property
    def product(self) -> Float[Tensor, " n"]:
        """What ``multiply`` fills; static."""
        return self._product.result

    def load(self, inputs: Tensor, targets: Tensor, point: Tensor, draws: dict[int, Any]) -> None:
        """Take a batch, a point and masks, and run the primal pass."""
        self.owner = None
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.point.copy_(point)
        for slot, mask in self.draws.items():
            if isinstance(mask, Tensor):
                mask.copy_(draws[slot])
        self._primal.replay()

    def multiply(self) -> Float[Tensor, " n"]:
        """``H direction``; static."""
        return self._product.replay()

    def multiply_both(self) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H direction`` and the gradient of ``v'Hv`` there; static."""
        return self._both.replay()

    def _reduced(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16) if self._precision == "bf16" and x.is_floating_point() else x

    def _problem(self, program: Program, *, reduced: bool = False) -> RopProblem:
        change = self._reduced if reduced else lambda x: x
        draws = {s: change(mask) if isinstance(mask, Tensor) else mask for s, mask in self.draws.items()}
        return RopProblem(
            program.objective,
            change(self.inputs),
            change(self.targets),
            weight_decay=self._weight_decay,
            params=change(self.point),
            program=program,
            draws=draws,
        )

    def _primal_pass(self, program: Program, changed: Program, like: Tensor) -> _Primal:
        model = program.objective.model
        same = like.dtype == self.point.dtype
        exact = self._problem(changed if same else specialized(program, {}))
        exact._own_point = True  # as far as running statistics go: they are set aside, and moved by the problem
        with statistics_set_aside(model) as moments:
            exact.linearize()
        swept = exact
        if not same:
            swept = self._problem(changed, reduced=True)
            swept.linearize()
        settle([node[0] for node in swept._nodes])
        return _Primal(exact, swept, exact.loss(), exact.grad(), moments)

    def _hvp(self, swept: RopProblem) -> Tensor:
        return swept.hvp(self._reduced(self.direction)).to(self.point.dtype)

    def _hvp_and_quadratic(self, swept: RopProblem) -> tuple[Tensor, Tensor]:
        first, second = swept.hvp_and_quadratic_grad(self._reduced(self.direction))
        return first.to(self.point.dtype), second.to(self.point.dtype)

    def _check(self) -> float:
        """The error of a replayed product against the rules; raises ``CaptureError`` where they should agree."""
        program = specialized(self._program, {})
        with statistics_set_aside(program.objective.model):
            eager = self._problem(program)
            gradient, (first, second) = eager.grad(), eager.hvp_and_quadratic_grad(self.direction)
        self._primal.replay()
        both = [part.clone() for part in self.multiply_both()]
        error = _distance(self.multiply(), first)
        tolerance = _TOLERANCE.get(self.point.dtype, 1e-2)
        if self._precision != "exact":
            tolerance = math.inf
        compared = {
            "gradient": (_distance(self.gradient, gradient), min(tolerance, _TOLERANCE.get(self.point.dtype, 1e-2))),
            "Hv": (max(error, _distance(both[0], first)), tolerance),
            "grad v'Hv": (_distance(both[1], second), 10 * tolerance),
        }
        for name, (distance, bound) in compared.items():
            if not distance <= bound:
                raise CaptureError(
                    f"its recorded {name} differs from the rules by {distance:.1e} (relative), beyond {bound:.0e}"
                )
        return error


def _direction(point: Tensor) -> Tensor:
    """A vector of norm 1 on the point's device, the same ever again, for the first products."""
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(len(point), generator=generator).to(point), dim=0)


def _distance(got: Tensor, want: Tensor) -> float:
    norm = float(want.norm())
    distance = float((got - want).norm())
    return distance / norm if norm else distance


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _matrix_products(precision: str) -> Iterator[None]:
    """float32 products of matrices and convolutions on the tensor cores as ``ieee`` or ``tf32``, meanwhile."""
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = precision
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
