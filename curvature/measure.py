"""Spectral radius of a trained network over a whole split."""

from __future__ import annotations

import torch
from torch import Tensor

from spectral_run.curvature.backends import Backend
from spectral_run.curvature.full_data import FullDataProblem
from spectral_run.curvature.objective import Objective, evaluating
from spectral_run.curvature.parallel import Processes
from spectral_run.curvature.rows import Rows
from spectral_run.curvature.solver import EigenResult, EigenSolver


def measure_rho(
    objective: Objective,
    inputs: Rows,
    targets: Tensor,
    solver: EigenSolver,
    generator: torch.Generator,
    *,
    backend: Backend | None = None,
    batch_size: int = 1024,
    processes: Processes | None = None,
) -> EigenResult:
    """The eigenpair of largest modulus of the mean loss over all rows, from a random start.

    In evaluation mode: with BatchNorm's running statistics and without dropout the loss is a sum over rows.
    The network is left as it was. Cost: per product one pass over the rows, which several processes share.
    """
    with evaluating(objective.model):
        problem = FullDataProblem(
            objective, inputs, targets, backend=backend, batch_size=batch_size, processes=processes
        )
        like = objective.parameters[0]
        start = torch.randn(problem.n, generator=generator, dtype=like.dtype).to(like.device)
        return problem.eigenpair(solver, start)
