"""Backend ``native``: the R and R^2 sweeps of a chain of layers, compiled for the processor.

Source: Pearlmutter 1994 (R); Sandler, Klabjan, Luo, appendix A (R^2), as derivatives in t of the gradient at
``w + t v``: ``Hv`` is the first, ``grad v'Hv`` the second.  Exact to rounding.  Cost in forward passes: gradient 3,
product 6 less what the first layer is spared, ``hvp_and_quadratic_grad`` 13; on one thread, on the CPU.
``lower.py`` says which networks it takes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectral_run.curvature.native.jacobian import NativeJacobian
from spectral_run.curvature.native.layers import Layer
from spectral_run.curvature.native.losses import Loss
from spectral_run.curvature.native.plan import Plan
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem

_PLANS = 8  # sizes of batches whose tensors stay allocated


@final
class NativeNetwork:
    """A network and its loss in the kernels' terms; makes and keeps a plan for each size of batch.

    ``parameters`` are the trainable ones in the flat vector's order: found once, since walking the modules takes
    longer than a small network's product.
    """

    def __init__(self, layers: Sequence[Layer], loss: Loss, parameters: Sequence[nn.Parameter]) -> None:
        self._layers, self._loss, self._parameters = layers, loss, parameters
        self.n = sum(p.numel() for p in parameters)
        self._plans: OrderedDict[tuple[int, torch.dtype], Plan] = OrderedDict()

    def plan(self, rows: int, dtype: torch.dtype) -> Plan:
        """The plan for so many rows. Cost: some milliseconds, the first time."""
        key = (rows, dtype)
        if key not in self._plans:
            self._plans[key] = Plan(self._layers, self._loss, self.n, rows, dtype)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def point(self, out: Tensor | None = None) -> Float[Tensor, " n"]:
        """The parameters as they are now, in one vector."""
        return torch.cat([p.detach().reshape(-1) for p in self._parameters], out=out)


@final
class NativeProblem(BatchProblem):
    """One batch, at the parameters of its first use.

    Problems of the same size share a plan: going back to an earlier one repeats its primal pass.
    """

    def __init__(
        self,
        network: NativeNetwork,
        objective: Objective,
        inputs: Tensor,
        targets: Tensor,
        *,
        weight_decay: float = 0.0,
        params: Float[Tensor, " n"] | None = None,
    ) -> None:
        self.objective, self.inputs, self.targets = objective, inputs, targets
        self.n = network.n
        self.products = 0
        self._network, self._weight_decay, self._point = network, weight_decay, params
        self._plan = network.plan(len(inputs), inputs.dtype)
        self._gradient: Tensor | None = None
        self._value: Tensor | None = None

    @property
    def params(self) -> Float[Tensor, " n"]:
        """The point, as one vector (a copy)."""
        return self._network.point() if self._point is None else self._point.clone()

    def loss(self) -> Float[Tensor, ""]:
        """Mean loss over the batch."""
        if self._value is None:
            self._forward()
        assert self._value is not None
        return self._value

    def grad(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss; products need nothing beyond what it leaves behind."""
        if self._gradient is None:
            self._backward()
        assert self._gradient is not None
        return self._gradient

    def linearize(self) -> None:
        """The gradient's pass: what all products share."""
        self.grad()

    def hvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``H v``: one sweep forward and one back."""
        plan = self._ready(v)
        plan.run(plan.product)
        return self._product(plan, v)

    def hvp_and_quadratic_grad(self, v: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H v`` and the gradient of ``v'Hv``: two sweeps forward and two back."""
        plan = self._ready(v)
        plan.run(plan.both)
        return self._product(plan, v), plan.gradients[2].clone()

    def quadratic_grad(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The gradient of ``v'Hv`` alone: a sixth cheaper."""
        plan = self._ready(v)
        plan.run(plan.quadratic)
        return plan.gradients[2].clone()

    def at(self, params: Float[Tensor, " n"]) -> NativeProblem:
        """The same batch at other parameters."""
        return NativeProblem(
            self._network,
            self.objective,
            self.inputs,
            self.targets,
            weight_decay=self._weight_decay,
            params=params.detach().clone(),
        )

    def jacobian(self) -> NativeJacobian:
        """Of the outputs, at this problem's point."""
        return NativeJacobian(self._primal)

    def _primal(self) -> Plan:
        """The plan with this problem's forward pass in it."""
        return self._plan if self._plan.owner is self else self._forward()

    def _forward(self) -> Plan:
        plan = self._plan
        self._gradient = None  # it may have been there, but not what its pass leaves behind in the plan
        plan.load(self.inputs, self.targets)
        if self._point is not None:
            plan.point.copy_(self._point)
        else:  # from now on this problem stays there, also when the parameters move and it has to come back
            self._point = self._network.point(out=plan.point).clone()
        plan.run(plan.forward)
        plan.owner = self
        self._value = plan.loss.clone()
        return plan

    def _backward(self) -> None:
        plan = self._primal()
        plan.run(plan.backward)
        self._gradient = plan.gradients[0].clone()

    def _ready(self, v: Tensor) -> Plan:
        """The plan with this problem's primal pass and the direction in it; one product is counted."""
        if self._gradient is None or self._plan.owner is not self:
            self._backward()
        self.products += 1
        self._plan.direction.copy_(v)
        return self._plan

    def _product(self, plan: Plan, v: Tensor) -> Tensor:
        if self._weight_decay:
            return torch.add(plan.gradients[1], v, alpha=self._weight_decay)
        return plan.gradients[1].clone()
