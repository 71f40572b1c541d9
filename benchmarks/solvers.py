"""Products that each eigensolver takes along one real training run on USPS, warm, and how far it gets.

usage: SPECTRAL_DATA=... python benchmarks/solvers.py [steps] [seed]      some three minutes for 300 steps
In every step all of them solve the same batch, each from its own last vector; the penalty's own solves are Lanczos's.
T multiplies the residual, F is K-FAC's matrix of the batch, renewed every 4 steps, theta the last eigenvalue.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.kfac import KFAC
from spectral_run.curvature.kronecker import KroneckerFactors
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.solver import EigenResult, Product
from spectral_run.curvature.solvers import SolverName, solver
from spectral_run.datasets.base import DataHome
from spectral_run.datasets.usps import USPS
from spectral_run.models.usps_cnn import USPSCNN
from spectral_run.regularizers.base import Step
from spectral_run.regularizers.spectral_radius import SpectralRadius

REFRESH = 4
RESULTS = Path(__file__).parent / "results" / "solvers.json"
Preconditioner: TypeAlias = Callable[[KroneckerFactors, float], Product]


def inverse(damping: float) -> Preconditioner:
    return lambda factors, theta: factors.inverse(damping)


def shifted(floor: float) -> Preconditioner:
    """``|theta - F|^-1``, at most ``1 / (floor theta)``: amplifies where the eigenvector lies."""
    return lambda factors, theta: factors.function(lambda x: 1 / (abs(theta) - x).abs().clamp_min(floor * abs(theta)))


def forward(share: float) -> Preconditioner:
    return lambda factors, theta: factors.function(lambda x: x + share * abs(theta))


WAYS: dict[str, tuple[SolverName, dict[str, float], Preconditioner | None]] = {
    "power": ("power", {}, None),
    "lanczos": ("lanczos", {}, None),
    "lobpcg": ("lobpcg", {}, None),
    "lobpcg, (F + .001)^-1": ("lobpcg", {}, inverse(1e-3)),
    "lobpcg, (F + .1)^-1": ("lobpcg", {}, inverse(0.1)),
    "lobpcg, (F + 10)^-1": ("lobpcg", {}, inverse(10.0)),
    "lobpcg, |theta - F|^-1": ("lobpcg", {}, shifted(0.3)),
    "lobpcg, F + .1 theta": ("lobpcg", {}, forward(0.1)),
    "lobpcg_paper, (F + .001)^-1": ("lobpcg_paper", {}, inverse(1e-3)),
    "lobpcg_paper": ("lobpcg_paper", {}, None),
    "lobpcg_paper, shift 2": ("lobpcg_paper", {"shift": 2.0}, None),
}


def run(steps: int, seed: int) -> tuple[dict[str, list[EigenResult]], list[float], float]:
    """Results of every way, the eigenvalue in every step, and K-FAC's cost in products."""
    torch.manual_seed(seed)
    data = USPS().load(DataHome(Path(os.environ.get("SPECTRAL_DATA", "data")), download=False))
    objective = Objective(USPSCNN(input_shape=(1, 16, 16), classes=10), F.cross_entropy)
    backend = choose_backend("auto", objective, data.train.inputs[:2])
    optimizer = torch.optim.Adam(objective.parameters, 1e-3)
    penalty, kfac = SpectralRadius(mu=0.005, K=0.0), KFAC(kind="exact")
    results: dict[str, list[EigenResult]] = {way: [] for way in WAYS}
    values, costs = [], []
    state: dict[str, Tensor] = {}
    factors: KroneckerFactors | None = None
    shuffle = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.randperm(len(data.train), generator=shuffle) for _ in range(-(-steps * 128 // 6000))])
    for number in range(steps):
        batch = rows[number * 128 : (number + 1) * 128]
        problem = backend(objective, data.train.inputs[batch], data.train.targets[batch])
        generator = torch.Generator().manual_seed(seed + number)
        if factors is None or number % REFRESH == 0:
            began = time.perf_counter()
            factors = kfac.update(problem, generator)
            updated = time.perf_counter()
            problem.linearize()
            linearized = time.perf_counter()
            problem.hvp(problem.grad())
            costs.append((updated - began) / (time.perf_counter() - linearized))
        step = penalty.gradient(problem, Step(number, generator, state))
        state, theta = dict(step.state), step.log["lambda"]
        values.append(theta)
        noise = torch.randn(problem.n, generator=generator)
        for way, (name, settings, precondition) in WAYS.items():
            solve = solver(name, eps=1e-2, relative=True, cap=100, **settings).solve
            last = results[way][-1].vector if results[way] else noise
            preconditioner = precondition(factors, theta) if precondition else None
            results[way].append(solve(problem.hvp, last, preconditioner=preconditioner))
        for parameter, gradient in zip(objective.parameters, objective.split(step.gradient), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return results, values, statistics.median(costs)


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(1)
    results, values, cost = run(steps, seed)
    table = {
        way: {
            "products": statistics.fmean(r.products for r in found),
            "converged": statistics.fmean(r.converged for r in found),
            "relative_residual": statistics.median(r.residual / abs(r.value) for r in found),
            "value_over_true": statistics.median(r.value / true for r, true in zip(found, values, strict=True)),
        }
        for way, found in results.items()
    }
    print(f"{steps} steps, seed {seed}; one update of K-FAC's factors costs {cost:.1f} products")
    print(f"{'solver, T':<30}{'products':>10}{'converged':>11}{'residual':>10}{'value/true':>12}")
    for way, row in table.items():
        print(
            f"{way:<30}{row['products']:>10.1f}{row['converged']:>11.0%}"
            f"{row['relative_residual']:>10.2g}{row['value_over_true']:>12.3f}"
        )
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"steps": steps, "seed": seed, "torch": torch.__version__, "kfac_update_in_products": cost}
    RESULTS.write_text(json.dumps(about | {"ways": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
