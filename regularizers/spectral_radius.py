"""Spectral-radius penalty ``mu max(0, rho - K)``, rho the largest modulus of an eigenvalue of the batch loss's Hessian.

Source: Sandler, Klabjan, Luo, "Non-Convex Optimization with Spectral Radius Regularization", section 3 and algorithm 1.
Gradient: ``grad f + mu 1[rho > K] sign(lambda) grad_w v'H(w)v`` with v fixed (lemma 3.1), where (lambda, v) is the
eigenpair of largest modulus; lambda can be negative, and the paper's listing drops its sign.
Units: lambda is loss per squared parameter, so mu is squared parameters.  Where the top eigenvalue is repeated, rho has
no gradient and this is one of its subgradients.
Cost: the solver's products, plus one that is differentiated; in mode ``track`` a fixed number, the last differentiated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.solver import EigenResult, Product
from spectral_run.curvature.solvers import SolverName, solver
from spectral_run.regularizers.base import RegularizedGradient, Regularizer, Step


@final
@dataclass(frozen=True, kw_only=True)
class SpectralRadius(Regularizer):
    """Penalize the largest curvature, whatever its sign.

    ``mode="converge"`` solves to ``eps`` in every penalized step (at most ``cap`` products); ``mode="track"`` does
    ``track`` products of power iteration from the last step's vector, which follows the eigenvector as weights move.
    ``start``: from the last vector (``warm``) or a new random one (``random``, the paper's).  ``every``: penalize only
    every so many steps.  ``clip``: largest norm of the penalty's gradient (the paper's chest X-ray runs: 100).
    """

    mu: float
    K: float
    mode: Literal["converge", "track"] = "converge"
    track: int = 1
    solver: SolverName = "lanczos"
    eps: float = 1e-2
    relative: bool = True
    cap: int = 100
    start: Literal["warm", "random"] = "warm"
    clip: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"SpectralRadius: {what}, got {got}.")

        require(math.isfinite(self.mu) and self.mu >= 0, "mu must be >= 0", self.mu)
        require(math.isfinite(self.K) and self.K >= 0, "K must be >= 0 (rho is never below 0)", self.K)
        require(self.mode in ("converge", "track"), "mode must be converge or track", self.mode)
        require(self.start in ("warm", "random"), "start must be warm or random", self.start)
        require(self.every >= 1, "every must be at least 1", self.every)
        require(self.track >= 1, "track must be at least 1 product", self.track)
        require(self.clip is None or self.clip > 0, "clip must be positive or null", self.clip)
        require(self.mode == "converge" or self.start == "warm", "mode=track needs start=warm", self.start)
        solver(self.solver, eps=self.eps, relative=self.relative, cap=self.cap)

    def gradient(self, problem: BatchProblem, step: Step) -> RegularizedGradient:
        """``grad f`` plus the penalty's gradient where rho > K on this batch."""
        if step.number % self.every:
            with step.phase("gradient"):
                gradient, loss = problem.grad(), float(problem.loss())
            return RegularizedGradient(gradient, loss, loss, {}, step.state)
        with step.phase("gradient"):
            problem.linearize()
            gradient, loss = problem.grad(), float(problem.loss())
        start = self._start(problem, gradient, step)
        if self.mode == "track":
            result, quadratic, following = self._track(problem, start, step)
        else:
            with step.phase("eigensolver"):
                settings = solver(self.solver, eps=self.eps, relative=self.relative, cap=self.cap)
                result = settings.solve(problem.hvp, start)
            following, quadratic = result.vector, None
        # NaN must not pass for a rho below K: the run has to stop at it.
        penalty = max(0.0, result.rho - self.K) if result.reason != "nan" else math.nan
        if math.isnan(penalty) and self.mu > 0:
            return RegularizedGradient(torch.full_like(gradient, math.nan), loss, math.nan)
        log = {
            "rho": result.rho,
            "lambda": result.value,
            "residual": result.residual,
            "solver_products": float(result.products),
            "converged": float(result.converged),
            "penalty": 0.0,
            "penalty_gradient": 0.0,
            "clipped": 0.0,
        }
        if penalty > 0:
            if quadratic is None:
                with step.phase("gradient of rho"):
                    quadratic = problem.quadratic_grad(result.vector)
            slope = math.copysign(self.mu, result.value) * quadratic
            norm = float(slope.norm())
            log |= {"penalty_gradient": norm, "penalty": self.mu * penalty}
            if self.clip is not None and norm > self.clip:
                slope = slope * (self.clip / norm)
                log["clipped"] = 1.0
            gradient = gradient + slope
        usable = bool(torch.isfinite(following).all()) and result.reason != "zero"
        state = {"vector": following} if usable else {}
        return RegularizedGradient(gradient, loss, loss + self.mu * penalty, log, state)

    def _start(self, problem: BatchProblem, gradient: Float[Tensor, " n"], step: Step) -> Float[Tensor, " n"]:
        vector = step.state.get("vector")
        if self.start == "warm" and vector is not None:
            return vector
        # Drawn on the CPU, so that a run does not depend on the device's generator.
        noise = torch.randn(problem.n, generator=step.generator, dtype=gradient.dtype)
        return noise.to(gradient.device)

    def _track(
        self, problem: BatchProblem, start: Float[Tensor, " n"], step: Step
    ) -> tuple[EigenResult, Tensor | None, Tensor]:
        """``track`` steps of power iteration; the last product is the one that is differentiated."""
        v = start / start.norm()
        product: Product = problem.hvp
        with step.phase("eigensolver"):
            for _ in range(self.track - 1):
                u = product(v)
                v = u / u.norm().clamp_min(torch.finfo(u.dtype).tiny)
        with step.phase("gradient of rho"):
            u, quadratic = problem.hvp_and_quadratic_grad(v)
        value = float(u @ v)
        residual = float((u - value * v).norm())
        reason = solver("power", eps=self.eps, relative=self.relative, cap=1).verdict(value, residual) or "cap"
        norm = float(u.norm())
        following = u / norm if norm > 0 and math.isfinite(norm) else v
        return EigenResult(value, v, residual, self.track, reason), quadratic, following
