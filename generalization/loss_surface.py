"""Loss and accuracy around a trained network, along the Hessian's top eigenvectors, training and test side by side.

The network's parameters are moved to ``w + a v_i`` (lines) and ``w + a v_1 + b v_2`` (the plane), v orthonormal
eigenvectors of the training loss over all rows in evaluation mode; a and b are distances in parameter space, so that
networks are compared at equal distance.  Beside the training loss stands its quadratic model
``f + a g'v + a^2/2 lambda``: where the two part, curvature at the minimum says nothing more.  An eigenvector has no
sign; here its largest entry is positive.  Distances say little by themselves: rescaling the layers of a ReLU network
changes them and not the function (Dinh et al. 2017).
Cost: ``eigenpairs`` for ``vectors`` pairs, and a pass over training and test rows for each of the
``vectors * points + plane^2`` places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from spectral_run.curvature.deflation import eigenpairs
from spectral_run.curvature.full_data import FullDataProblem
from spectral_run.curvature.objective import Objective, evaluating
from spectral_run.curvature.rows import pieces
from spectral_run.curvature.solver import EigenPairs, EigenSolver
from spectral_run.curvature.solvers import solver
from spectral_run.datasets.base import Data, DataHome, Dataset, Split
from spectral_run.generalization.base import (
    Measurement,
    Metric,
    TestResult,
    TrainedNetwork,
    check_seed,
    derived_seed,
)
from spectral_run.generalization.statistics import mean_with_ci
from spectral_run.reports.surface_figures import lines_figure, plane_figure


@final
@dataclass(frozen=True, kw_only=True)
class LossSurface(Measurement):
    """``vectors`` eigenvectors from the end ``which``; ``points`` on each line from -radius to radius.

    ``plane``: points a side of the plane of the first two; 0 for none.  ``rows``: as many of each split at most, the
    first ones, for the surface (not for the eigenvectors); null for all.
    Metrics: mean rise of the loss (nats) at distance ``radius`` along the first eigenvector, both ways, with the
    interval of that mean over rows; and the test accuracy there.
    """

    vectors: int = 2
    which: Literal["magnitude", "largest", "smallest"] = "magnitude"
    radius: float = 0.5
    points: int = 41
    plane: int = 17
    rows: int | None = None
    eps: float = 1e-3
    cap: int = 1000
    seed: int = 0  # of the eigensolver's start

    def __post_init__(self) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"LossSurface: {what}, got {got}.")

        require(self.vectors >= 1, "vectors must be at least 1", self.vectors)
        require(math.isfinite(self.radius) and self.radius > 0, "radius must be positive", self.radius)
        require(self.points >= 3 and self.points % 2 == 1, "points must be odd and at least 3", self.points)
        require(self.plane == 0 or (self.plane >= 3 and self.plane % 2 == 1), "plane must be 0 or odd >= 3", self.plane)
        require(self.plane == 0 or self.vectors >= 2, "a plane needs vectors >= 2", self.vectors)
        require(self.rows is None or self.rows >= 2, "rows must be at least 2 or null", self.rows)
        check_seed("LossSurface", self.seed)
        self._solver()

    def check(self, dataset: Dataset) -> None:
        """Any data set will do."""

    def measure(self, network: TrainedNetwork, data: Data, home: DataHome) -> TestResult:
        """Find the eigenvectors, then walk along them."""
        objective = network.objective
        with evaluating(objective.model):
            problem = FullDataProblem(
                objective,
                data.train.inputs,
                data.train.targets,
                backend=network.backend,
                batch_size=network.batch_size,
            )
            pairs = self._pairs(problem, data)
            surface = _Surface(objective, problem.params, self._some(data.train), self._some(data.test), network)
            slopes = pairs.vectors @ problem.grad()
            values = pairs.values.tolist()  # noqa: PD011  (no data frame's)
            lines = self._lines(surface, values, pairs.vectors, slopes.tolist(), float(problem.loss()))
            tables = {"lines": lines}
            figures = {"lines": lines_figure(lines, values)}
            if self.plane and len(values) >= 2:
                tables["plane"] = self._plane(surface, pairs.vectors)
                figures["plane"] = plane_figure(tables["plane"], values)
            metrics = self._ends(surface, pairs.vectors[0])
        details = {
            "eigenvalues": values,
            "residuals": pairs.residuals.tolist(),
            "converged": pairs.converged,
            "products": pairs.products,
            "slopes": slopes.tolist(),
            "radius": self.radius,
            "rows": {"train": len(surface.train), "test": len(surface.test)},
            "seed": self.seed,
        }
        return TestResult(metrics, details, tables, figures)

    def _solver(self) -> EigenSolver:
        return replace(solver("lanczos", eps=self.eps, relative=True, cap=self.cap), which=self.which)

    def _pairs(self, problem: FullDataProblem, data: Data) -> EigenPairs:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "loss_surface", data.name))
        like = problem.objective.parameters[0]
        start = torch.randn(1, problem.n, generator=generator, dtype=like.dtype).to(like.device)
        count = min(self.vectors, problem.n)
        pairs = eigenpairs(self._solver(), problem.hvp, start, count, generator, block_product=problem.hvps)
        if not len(pairs.values):
            raise ValueError("LossSurface: the Hessian's products are not finite.")
        largest = pairs.vectors.gather(1, pairs.vectors.abs().argmax(1, keepdim=True))
        return replace(pairs, vectors=pairs.vectors * largest.sign())

    def _some(self, split: Split) -> Split:
        return split if self.rows is None else Split(split.inputs[: self.rows], split.targets[: self.rows])

    def _lines(
        self, surface: _Surface, values: list[float], vectors: Float[Tensor, "k n"], slopes: list[float], loss: float
    ) -> pd.DataFrame:
        """A row per eigenvector and distance."""
        rows: list[dict[str, float]] = []
        for i, (value, vector) in enumerate(zip(values, vectors, strict=True)):
            for distance in self._distances(self.points):
                model = loss + slopes[i] * distance + value / 2 * distance**2
                place = {"vector": i + 1, "eigenvalue": value, "distance": distance}
                rows.append(place | surface.at(distance * vector) | {"train_loss_quadratic": model})
        return pd.DataFrame(rows)

    def _distances(self, points: int) -> list[float]:
        half = points // 2
        return [self.radius * (i / half) for i in range(-half, half + 1)]

    def _plane(self, surface: _Surface, vectors: Float[Tensor, "k n"]) -> pd.DataFrame:
        """A row per pair of distances."""
        distances = self._distances(self.plane)
        return pd.DataFrame(
            {"distance_1": a, "distance_2": b} | surface.at(a * vectors[0] + b * vectors[1])
            for a in distances
            for b in distances
        )

    def _ends(self, surface: _Surface, vector: Float[Tensor, " n"]) -> dict[str, Metric]:
        metrics = {}
        for name, split in (("train", surface.train), ("test", surface.test)):
            here, _ = surface.rows(split, torch.zeros_like(vector))
            there = [surface.rows(split, sign * self.radius * vector) for sign in (1, -1)]
            rise = (there[0][0] + there[1][0]) / 2 - here
            metrics[f"{name}_rise"] = mean_with_ci(rise.double().cpu().numpy())
            right = [correct for _, correct in there if correct is not None]
            if name == "test" and right:
                share = torch.stack(right).double().mean(0)
                metrics["test_accuracy"] = mean_with_ci(share.cpu().numpy())
        return metrics


@final
class _Surface:
    """Training and test rows at parameters away from a point, in evaluation mode."""

    def __init__(
        self, objective: Objective, point: Float[Tensor, " n"], train: Split, test: Split, network: TrainedNetwork
    ) -> None:
        self.train, self.test = train, test
        self._objective, self._point, self._batch_size = objective, point, network.batch_size
        self._names = [name for name, p in objective.model.named_parameters() if p.requires_grad]

    def at(self, step: Float[Tensor, " n"]) -> dict[str, float]:
        """Loss and, of classes, accuracy of both splits at ``point + step``."""
        numbers = {}
        for name, split in (("train", self.train), ("test", self.test)):
            outputs = self._outputs(split, step)
            numbers[f"{name}_loss"] = float(self._objective.loss(outputs, split.targets))
            if not split.targets.is_floating_point():
                numbers[f"{name}_accuracy"] = float((outputs.argmax(1) == split.targets).double().mean())
        return numbers

    def rows(self, split: Split, step: Float[Tensor, " n"]) -> tuple[Tensor, Tensor | None]:
        """Each row's own loss, and whether it is classified rightly."""
        outputs = self._outputs(split, step)
        losses = torch.func.vmap(lambda z, y: self._objective.loss(z[None], y[None]))(outputs, split.targets)
        right = None if split.targets.is_floating_point() else outputs.argmax(1) == split.targets
        return losses, right

    @torch.no_grad()
    def _outputs(self, split: Split, step: Float[Tensor, " n"]) -> Tensor:
        moved = self._objective.split(self._point + step)
        params = dict(zip(self._names, moved, strict=True))
        parts = pieces(split.inputs, self._batch_size)
        return torch.cat([functional_call(self._objective.model, params, (part,)) for part in parts])
