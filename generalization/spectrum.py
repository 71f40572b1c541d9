"""Spectrum of a trained network's curvature over the training set: density, both ends, trace, norm, layer by layer.

For each operator (``curvature/operators``: hessian, gauss_newton, ...): ``probes`` random directions of ``steps``
Lanczos steps give the spectral density and the ends of the spectrum; ``layer_probes`` more products give trace,
Frobenius norm and every layer's own trace, each with a standard error.  In evaluation mode, as rho is measured.
Units: eigenvalues and traces are loss per squared parameter.  Intervals: of estimates over probes, Student's 95%; of an
end of the spectrum, the Ritz value and its residual, within which there is an eigenvalue.
Cost: ``probes * steps + layer_probes + 2 sketch`` products of each operator over all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import pandas as pd
import torch

from spectral_run.curvature.objective import evaluating
from spectral_run.curvature.operators.operators import KINDS, curvature_operator
from spectral_run.curvature.spectrum.density import Ritz, SpectralDensity, spectral_density
from spectral_run.curvature.spectrum.estimates import Estimate, Moments, moments
from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.generalization.base import (
    Measurement,
    Metric,
    TestResult,
    TrainedNetwork,
    check_seed,
    derived_seed,
)
from spectral_run.reports.spectrum_figures import density_figure, layer_figure

_INDEFINITE = ("hessian", "residual")


@final
@dataclass(frozen=True, kw_only=True)
class Spectrum(Measurement):
    """``layer_probes``: 0 for neither layers nor Rademacher estimates; trace and norm are the density's own then.

    ``sketch``: directions that the estimates first take out exactly (two products each; as Hutch++): the few large
    eigenvalues that most of their spread comes from.
    ``rows``: as many of the training set at most, the first ones; null for all.
    """

    operators: Sequence[str] = ("hessian", "gauss_newton")
    steps: int = 64
    probes: int = 4
    layer_probes: int = 16
    sketch: int = 24
    rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"Spectrum: {what}, got {got}.")

        unknown = [kind for kind in self.operators if kind not in KINDS]
        require(bool(self.operators) and not unknown, f"operators must be of {', '.join(KINDS)}", unknown or "none")
        require(len(set(self.operators)) == len(self.operators), "operators must differ", list(self.operators))
        require(self.steps >= 2, "steps must be at least 2", self.steps)
        require(self.probes >= 2, "probes must be at least 2, or there is no standard error", self.probes)
        enough = self.layer_probes == 0 or self.layer_probes >= 2
        require(enough, "layer_probes must be 0 or at least 2", self.layer_probes)
        require(self.sketch >= 0, "sketch must be at least 0", self.sketch)
        require(self.rows is None or self.rows >= 1, "rows must be at least 1 or null", self.rows)
        check_seed("Spectrum", self.seed)

    def check(self, dataset: Dataset) -> None:
        """Any data set will do."""

    def measure(self, network: TrainedNetwork, data: Data, home: DataHome) -> TestResult:
        """One operator after another."""
        with evaluating(network.objective.model):
            found = {kind: self._one(kind, network, data) for kind in self.operators}
        metrics: dict[str, Metric] = {}
        for kind, (density, estimated, _) in found.items():
            metrics |= {f"{kind}_{name}": metric for name, metric in _metrics(kind, density, estimated).items()}
        densities = {kind: density for kind, (density, _, _) in found.items()}
        tables = {"nodes": _nodes(densities)}
        figures = {"density": density_figure(densities)}
        if self.layer_probes:
            tables["layers"] = pd.concat([layers for _, _, layers in found.values()], ignore_index=True)
            figures["layers"] = layer_figure(tables["layers"])
        details = {
            "operators": list(self.operators),
            "steps": self.steps,
            "probes": self.probes,
            "layer_probes": self.layer_probes,
            "sketch": self.sketch,
            "products": {
                kind: density.products + (estimated.products if estimated else 0)
                for kind, (density, estimated, _) in found.items()
            },
            "rows": len(data.train) if self.rows is None else min(self.rows, len(data.train)),
            "backend": network.backend.name,
            "seed": self.seed,
        }
        return TestResult(metrics, details, tables, figures)

    def _one(
        self, kind: str, network: TrainedNetwork, data: Data
    ) -> tuple[SpectralDensity, Moments | None, pd.DataFrame]:
        objective = network.objective

        def generator(purpose: str) -> torch.Generator:
            # The same directions for every network and operator: differences between them are then not those of probes.
            return torch.Generator().manual_seed(derived_seed(self.seed, "spectrum", purpose, data.name))

        operator = curvature_operator(
            kind,
            objective,
            data.train.inputs if self.rows is None else data.train.inputs[: self.rows],
            data.train.targets[: self.rows],
            backend=network.backend,
            batch_size=network.batch_size,
            generator=generator("labels"),
        )
        like = objective.parameters[0].detach()
        density = spectral_density(
            operator.matvecs, operator.n, generator("density"), probes=self.probes, steps=self.steps, like=like
        )
        if not math.isfinite(density.largest.value):
            raise ValueError(f"Spectrum: products with the {kind} are not finite.")
        if not self.layer_probes:
            return density, None, pd.DataFrame()
        places = {layer: operator.layout.take(names)[1] for layer, names in operator.layout.layers().items()}
        found = moments(
            operator.matvecs,
            operator.n,
            generator("layers"),
            probes=self.layer_probes,
            sketch=min(self.sketch, operator.n - 1),
            blocks=list(places.values()),
            like=like,
        )
        return density, found, _layers(kind, places, found)


def _layers(kind: str, places: Mapping[str, torch.Tensor], found: Moments) -> pd.DataFrame:
    """A row per layer: its block's trace, and that as a share of the whole."""
    whole = found.trace.value
    return pd.DataFrame(
        {
            "operator": kind,
            "layer": layer,
            "parameters": len(where),
            "trace": estimate.value,
            "standard_error": estimate.standard_error,
            "share": estimate.value / whole if whole else 0.0,
        }
        for (layer, where), estimate in zip(places.items(), found.blocks, strict=True)
    )


def _nodes(densities: Mapping[str, SpectralDensity]) -> pd.DataFrame:
    """Everything that the densities consist of: a row per operator, probe and node."""
    rows = [
        {"operator": kind, "probe": probe, "node": node, "weight": weight, "residual": residual}
        for kind, density in densities.items()
        for probe, columns in enumerate(zip(density.nodes, density.weights, density.residuals, strict=True))
        for node, weight, residual in zip(*(column.tolist() for column in columns), strict=True)
        if weight > 0  # the rest is padding
    ]
    return pd.DataFrame(rows)


def _metrics(kind: str, density: SpectralDensity, found: Moments | None) -> dict[str, Metric]:
    probes = len(density.nodes)
    metrics = {"largest": _end(density.largest, probes)}
    if kind in _INDEFINITE:
        metrics["smallest"] = _end(density.smallest, probes)
    whole = found or density
    metrics["trace"] = _estimate(whole.trace)
    metrics["frobenius_norm"] = _estimate(whole.frobenius_norm)
    return metrics


def _estimate(estimate: Estimate) -> Metric:
    low, high = estimate.interval()
    return Metric(estimate.value, low, high, int(estimate.freedom) + 1)


def _end(ritz: Ritz, probes: int) -> Metric:
    return Metric(ritz.value, ritz.value - ritz.residual, ritz.value + ritz.residual, probes)
