"""This project, one backend per process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from peers.base import (
    CAP,
    MEMORY_CAP,
    MU,
    STEP_EPS,
    Array,
    Call,
    Data,
    Peer,
    Penalized,
    Solution,
    UnsupportedError,
    Variants,
)
from peers.network import flat, load

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem
from spectral_run.regularizers.base import Step
from spectral_run.regularizers.spectral_radius import SpectralRadius


@final
class Ours(Peer):
    """Lanczos and ``SpectralRadius`` as training uses them."""

    packages: ClassVar[tuple[str, ...]] = ("spectral-run", "torch")

    def __init__(self, backend: str) -> None:
        self.name = backend

    def load(self, network: Mapping[str, Any], data: Data) -> None:
        model, self.x, self.y = load(network, data, swap=True)
        self.objective = Objective(model, F.cross_entropy)
        try:
            self.backend = choose_backend(self.name, self.objective, self.x)
        except ValueError as error:
            raise UnsupportedError(str(error)) from error

    def new(self) -> BatchProblem:
        return self.backend(self.objective, self.x, self.y)

    def gradient(self) -> Variants:
        return {"": lambda: self.new().grad()}

    def primal(self) -> Variants:
        return {"": lambda: self.new().linearize()}

    def product(self, v: Array) -> Variants:
        return {"": partial(self.ready().hvp, torch.from_numpy(v))}

    def quadratic(self, v: Array) -> Variants:
        return {"": partial(self.ready().quadratic_grad, torch.from_numpy(v))}

    def ready(self) -> BatchProblem:
        problem = self.new()
        problem.linearize()
        return problem

    def solve(self, start: Array, eps: float) -> Variants:
        return {"lanczos": partial(self._solve, Lanczos(eps=eps, cap=CAP), torch.from_numpy(start))}

    def _solve(self, solver: Lanczos, start: torch.Tensor) -> Solution:
        result = solver.solve(self.new().hvp, start)
        return Solution(result.value, result.vector, result.products)

    def step(self, start: Array) -> Variants:
        vector, regularizer = torch.from_numpy(start), SpectralRadius(mu=MU, K=0.0, eps=STEP_EPS)

        def step() -> Penalized:
            found = regularizer.gradient(self.new(), Step(0, torch.Generator(), {"vector": vector}))
            return Penalized(found.gradient, int(found.log["solver_products"]))

        return {"lanczos": step}

    def short_solve(self, start: Array) -> Call:
        return partial(self._solve, Lanczos(eps=1e-9, cap=MEMORY_CAP), torch.from_numpy(start))

    def plain_gradient(self) -> Call:
        return lambda: self.new().grad()

    def array(self, vector: Any) -> np.ndarray:
        return flat(vector)
