"""Spectral-radius penalty ``mu max(0, rho - K)``, rho the largest modulus of an eigenvalue of the batch loss's Hessian.

Source: Sandler, Klabjan, Luo, "Non-Convex Optimization with Spectral Radius Regularization", section 3, algorithms 1
and 2.  Gradient: ``grad f + mu 1[rho > K] sign(lambda) grad_w v'H(w)v`` with v fixed (lemma 3.1), where (lambda, v) is
the eigenpair of largest modulus; lambda can be negative, and the paper's listing drops its sign.
Units: lambda is loss per squared parameter, so mu is squared parameters.
Where m eigenvalues tie for the largest modulus, rho has no gradient but a subgradient for every unit vector of their
eigenspace, and which of them a solver returns is chance.  Eigenvalues closer than its tolerance are as good as tied:
then the mean ``1/m sum_i sign(lambda_i) grad v_i'Hv_i`` is taken, which is the average over the eigenspace and depends
on no basis.  Only lanczos sees ties, about half of them; exact ones (a symmetric network's, say) no single start shows.
Cost: the solver's products, plus m that are differentiated; in mode ``track`` a fixed number, the last differentiated.
K-FAC adds two first-order passes and the decomposition of its factors every ``refresh`` penalized steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from spectral_run.curvature.kfac import KFAC
from spectral_run.curvature.kronecker import PREFIX, KroneckerFactors
from spectral_run.curvature.problem import BatchProblem
from spectral_run.curvature.solver import EigenResult, EigenSolver, Product
from spectral_run.curvature.solvers import PRECONDITIONED, SolverName, solver
from spectral_run.regularizers.base import RegularizedGradient, Regularizer, Step


@final
@dataclass(frozen=True, kw_only=True)
class SpectralRadius(Regularizer):
    """Penalize the largest curvature, whatever its sign.

    ``mode="converge"`` solves to ``eps`` in every penalized step (at most ``cap`` products); ``mode="track"`` does
    ``track`` products of power iteration from the last step's vector, which follows the eigenvector as weights move.
    ``start``: from the last vector (``warm``) or a new random one (``random``, the paper's).  ``every``: penalize only
    every so many steps.  ``clip``: largest norm of the penalty's gradient (the paper's chest X-ray runs: 100).
    ``cluster``: largest number of tied eigenvectors to average (lanczos); 1 takes the solver's vector as it comes.
    ``preconditioner="kfac"``: the inverse of K-FAC's matrix plus ``damping``, renewed every ``refresh`` penalized steps
    (lobpcg, lobpcg_paper).  ``shift``: step lengths ``exp(-4 j - shift)`` (lobpcg_paper).
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
    cluster: int = 2
    preconditioner: Literal["kfac"] | None = None
    refresh: int = 4
    damping: float = 1e-3
    shift: float = 0.0

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
        require(self.refresh >= 1, "refresh must be at least 1 step", self.refresh)
        if self.preconditioner is not None:
            require(self.mode == "converge", "a preconditioner needs mode=converge", self.mode)
            fit = f"a preconditioner needs solver={' or '.join(PRECONDITIONED)}"
            require(self.solver in PRECONDITIONED, fit, self.solver)
        require(not self.shift or self.solver == "lobpcg_paper", "shift needs solver=lobpcg_paper", self.solver)
        self._kfac()
        self._solver()

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
        kept: dict[str, Tensor] = {}
        quadratic: Tensor | None = None
        if self.mode == "track":
            result, quadratic, following = self._track(problem, start, step)
        else:
            with step.phase("eigensolver"):
                factors = self._factors(problem, step)
                preconditioner = factors.inverse(self.damping) if factors else None
                result = problem.eigenpair(self._solver(), start, preconditioner=preconditioner)
            kept = factors.tensors() if factors else {}
            # Tied vectors all go into the next start: from one of them alone the others take long to come up.
            following = sum((v for _, v in result.near), result.vector)
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
            "multiplicity": 1.0 + len(result.near),
            "penalty": 0.0,
            "penalty_gradient": 0.0,
            "clipped": 0.0,
        }
        if not math.isnan(result.gap):
            log["gap"] = result.gap
        if penalty > 0:
            if quadratic is None:
                with step.phase("gradient of rho"):
                    quadratic = self._mean_over_ties(problem, result)
            slope = math.copysign(self.mu, result.value) * quadratic
            norm = float(slope.norm())
            log |= {"penalty_gradient": norm, "penalty": self.mu * penalty}
            if self.clip is not None and norm > self.clip:
                slope = slope * (self.clip / norm)
                log["clipped"] = 1.0
            gradient = gradient + slope
        usable = bool(torch.isfinite(following).all()) and result.reason != "zero"
        state = {**kept, "vector": following} if usable else kept
        return RegularizedGradient(gradient, loss, loss + self.mu * penalty, log, state)

    def _start(self, problem: BatchProblem, gradient: Float[Tensor, " n"], step: Step) -> Float[Tensor, " n"]:
        vector = step.state.get("vector")
        if self.start == "warm" and vector is not None:
            return vector
        # Drawn on the CPU, so that a run does not depend on the device's generator.
        noise = torch.randn(problem.n, generator=step.generator, dtype=gradient.dtype)
        return noise.to(gradient.device)

    def _solver(self) -> EigenSolver:
        own: dict[str, dict[str, Any]] = {"lanczos": {"cluster": self.cluster}, "lobpcg_paper": {"shift": self.shift}}
        settings = own.get(self.solver, {})
        return solver(self.solver, eps=self.eps, relative=self.relative, cap=self.cap, **settings)

    def _kfac(self) -> KFAC:
        return KFAC(damping=self.damping)

    def _factors(self, problem: BatchProblem, step: Step) -> KroneckerFactors | None:
        """K-FAC's matrix for this step: the last one, or a new one every ``refresh`` penalized steps."""
        if self.preconditioner is None:
            return None
        held = any(name.startswith(PREFIX) for name in step.state)
        last = KroneckerFactors.from_tensors(problem.objective, step.state) if held else None
        if last is not None and (step.number // self.every) % self.refresh:
            return last
        return self._kfac().update(problem, step.generator, last)

    def _mean_over_ties(self, problem: BatchProblem, result: EigenResult) -> Float[Tensor, " n"]:
        """Gradient of ``v'Hv``, its mean over tied eigenvectors with the signs of their values against the first's."""
        total = problem.quadratic_grad(result.vector)
        for value, vector in result.near:
            total = total + math.copysign(1.0, value * result.value) * problem.quadratic_grad(vector)
        return total / (1 + len(result.near)) if result.near else total

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
