"""The Jacobian of a chain of layers by compiled sweeps: one forward for ``J v``, one back for ``J' u``."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.native.plan import Plan
from spectral_run.curvature.operators.jacobian import Jacobian


@final
class NativeJacobian(Jacobian):
    """``primal`` gives the plan with the batch's forward pass in it, repeated where another batch has used the plan."""

    def __init__(self, primal: Callable[[], Plan]) -> None:
        self._primal = primal
        self.outputs = primal().outputs

    def jvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, "rows ..."]:
        """``J v``."""
        plan = self._primal()
        linearized = plan.linearized
        plan.direction.copy_(v)
        plan.run(linearized.tangent)
        return plan.gather(linearized.moved).clone()  # the next product writes there

    def vjp(self, u: Float[Tensor, "rows ..."]) -> Float[Tensor, " n"]:
        """``J' u``."""
        plan = self._primal()
        linearized = plan.linearized
        plan.scatter(u, linearized.pulled)
        plan.run(linearized.pullback)
        return plan.gradients[1].clone()
