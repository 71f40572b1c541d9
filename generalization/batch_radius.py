"""Spectral radius of a trained network as batches of several sizes see it: table 4 of the spectral-radius paper.

A batch's rho is that of its own mean loss.  Rho is a norm of the Hessian, and the full set's Hessian is the mean of the
batches' (where no row is left over), so the batches' mean rho is never below the full set's: it is biased upward.
Batches are consecutive pieces of one seeded order, the same for every network; a remainder too small for a batch is
left out.  In evaluation mode, as rho is measured.  Units: loss per squared parameter.
Interval: mean over batches +- 1.96 standard errors, which count the batches as independent.
Cost: some 5 to 15 products of one batch for each batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd
import torch

from spectral_run.curvature.objective import evaluating
from spectral_run.curvature.solvers import SolverName, solver
from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.generalization.base import (
    Measurement,
    Metric,
    TestResult,
    TrainedNetwork,
    check_seed,
    derived_seed,
)
from spectral_run.generalization.statistics import mean_with_ci


@final
@dataclass(frozen=True, kw_only=True)
class BatchRadius(Measurement):
    """``batches``: of each size at most; null for as many as the training set has."""

    sizes: Sequence[int] = (32, 64, 128, 256, 512)
    batches: int | None = 100
    solver: SolverName = "lanczos"
    eps: float = 1e-3
    relative: bool = True
    cap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or any(isinstance(size, bool) or size < 1 for size in self.sizes):
            raise ValueError(f"BatchRadius: sizes must be at least one integer >= 1, got {list(self.sizes)}.")
        if len(set(self.sizes)) != len(self.sizes):
            raise ValueError(f"BatchRadius: sizes must differ, got {list(self.sizes)}.")
        if self.batches is not None and self.batches < 2:
            raise ValueError(f"BatchRadius: batches must be at least 2 or null, got {self.batches}.")
        check_seed("BatchRadius", self.seed)
        self._solver()

    def _solver(self) -> Any:
        return solver(self.solver, eps=self.eps, relative=self.relative, cap=self.cap)

    def check(self, dataset: Dataset) -> None:
        """Any data set will do."""

    def measure(self, network: TrainedNetwork, data: Data, home: DataHome) -> TestResult:
        """Every batch's rho; sizes larger than the training set are left out and named."""
        with evaluating(network.objective.model):
            return self._measure(network, data)

    def _measure(self, network: TrainedNetwork, data: Data) -> TestResult:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "batch_radius", data.name))
        order = torch.randperm(len(data.train), generator=generator)
        metrics: dict[str, Metric] = {}
        rows: list[dict[str, Any]] = []
        for size in self.sizes:
            whole = len(order) // size
            count = whole if self.batches is None else min(whole, self.batches)
            if not count:
                continue
            found = [self._one(network, data, order[i * size : (i + 1) * size], size, i) for i in range(count)]
            values = np.array([result.rho for result in found])
            metrics[f"rho_{size}"] = mean_with_ci(values)
            rows.append(
                {
                    "batch_size": size,
                    "rho": float(values.mean()),
                    "standard_error": float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan"),
                    "batches": count,
                    "not_converged": sum(not result.converged for result in found),
                    "products": sum(result.products for result in found),
                }
            )
        if not metrics:
            raise ValueError(f"BatchRadius: sizes must include one of at most {len(order)}, the training rows.")
        details = {
            "solver": self.solver,
            "eps": self.eps,
            "relative": self.relative,
            "left_out": [size for size in self.sizes if size > len(order)],
            "not_converged": {str(row["batch_size"]): row["not_converged"] for row in rows},
            "seed": self.seed,
        }
        return TestResult(metrics, details, {"batches": pd.DataFrame(rows)})

    def _one(self, network: TrainedNetwork, data: Data, rows: torch.Tensor, size: int, number: int) -> Any:
        targets = data.train.targets
        problem = network.backend(network.objective, data.train.inputs[rows.to(targets.device)], targets[rows])
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "batch_radius", data.name, size, number))
        like = network.objective.parameters[0]
        start = torch.randn(problem.n, generator=generator, dtype=like.dtype).to(like.device)
        return problem.eigenpair(self._solver(), start)
