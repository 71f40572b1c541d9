"""The batch problem: a loss over one batch as a function of a flat parameter vector, and its curvature products.

Dimension letters: ``n`` parameters.  Units: the loss is in nats (cross-entropy); an eigenvalue of its Hessian is loss
per squared parameter.  The one object that crosses folders: regularizers and solvers see nothing else of a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.objective import Objective
from spectral_run.curvature.solver import EigenResult, EigenSolver, Product


class BatchProblem(ABC):
    """Loss ``f``, gradient, Hessian-vector product ``Hv`` and ``grad_w v'H(w)v`` on one batch.

    ``products`` counts the Hessian-vector products done so far, the differentiated ones included.
    ``objective``, ``inputs`` and ``targets`` are what the batch is made of; K-FAC needs them, and refuses a problem
    without.
    """

    n: int
    products: int = 0
    objective: Objective
    inputs: Tensor
    targets: Tensor

    @property
    @abstractmethod
    def params(self) -> Float[Tensor, " n"]:
        """The point: all trainable parameters in one vector (a copy)."""

    @abstractmethod
    def loss(self) -> Float[Tensor, ""]:
        """Mean loss over the batch, without a graph. Cost: one forward pass, once."""

    @abstractmethod
    def grad(self) -> Float[Tensor, " n"]:
        """Gradient of the mean loss. Cost: one backward pass, once."""

    def linearize(self) -> None:  # noqa: B027  (optional: a backend without a primal pass has nothing to do)
        """Do now what all products share, so that its cost can be told apart from theirs."""

    @abstractmethod
    def hvp(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``H v`` (Pearlmutter 1994, the operator R). Cost: about two gradients; the primal pass is shared."""

    def hvps(self, vectors: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
        """``H v`` for every row: k products. One after another, unless a backend has a batched form."""
        return torch.stack([self.hvp(v) for v in vectors])

    @abstractmethod
    def hvp_and_quadratic_grad(self, v: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """``H v`` and the gradient of ``v'H(w)v`` with v fixed (the paper's R^2), in one sweep: one product."""

    def quadratic_grad(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Gradient with respect to w of ``v'H(w)v`` with v fixed: the paper's R^2, appendix A."""
        return self.hvp_and_quadratic_grad(v)[1]

    def eigenpair(
        self, solver: EigenSolver, start: Float[Tensor, " n"], *, preconditioner: Product | None = None
    ) -> EigenResult:
        """The Hessian's eigenpair at the solver's end; a backend may carry out the whole solve in one place."""
        return solver.solve(self.hvp, start, preconditioner=preconditioner)

    @abstractmethod
    def at(self, params: Float[Tensor, " n"]) -> BatchProblem:
        """The same batch (and the same dropout masks) at other parameters."""
