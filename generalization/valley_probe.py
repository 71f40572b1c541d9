"""Loss and accuracy on the straight line through training's last iterate and the average of iterates, and beyond both.

The network's parameters are ``w(t) = w_last + t (w_average - w_last)``, t from ``-beyond`` to ``1 + beyond``: 0 is the
last iterate, 1 the average.  In an asymmetric valley the average lies on the flat side: there the training loss is no
lower than at the last iterate, and the test loss is (He, Huang, Yuan 2019, section 4 and figure 3).
At every place BatchNorm's running statistics are of a fresh pass over the training rows, since no others belong to it;
so at the last iterate they are not the ones that training had.  Units: t is a share of the line, and ``distance`` its
length in parameter space, which rescaled layers change without changing the function (Dinh et al. 2017).
Cost: a pass over training and test rows per place, and one more over the training rows where there is BatchNorm.
Fails: where training ended before there was an average both ends are one, and all places; ``distance`` is then 0.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pandas as pd
import torch
from torch import Tensor, nn

from spectral_run.curvature.objective import Objective
from spectral_run.curvature.rows import pieces
from spectral_run.datasets.base import Data, DataHome, Dataset, Split
from spectral_run.generalization.base import (
    Measurement,
    TestResult,
    TrainedNetwork,
    check_seed,
    derived_seed,
)
from spectral_run.generalization.statistics import mean_with_ci
from spectral_run.optimizers.averaging import fresh_statistics
from spectral_run.reports.surface_figures import valley_figure


@final
@dataclass(frozen=True, kw_only=True)
class ValleyProbe(Measurement):
    """``points`` places; ``beyond`` each end a share of the line's length.

    Metrics: loss (nats) and, of classes, accuracy at the average less that at the last iterate, on training and test
    rows, with the interval of that mean over rows.
    """

    needs_last_iterate: ClassVar[bool] = True

    points: int = 31
    beyond: float = 1.0
    rows: int | None = None
    seed: int = 0  # of how the training rows meet in batches for BatchNorm

    def __post_init__(self) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"ValleyProbe: {what}, got {got}.")

        require(self.points >= 2, "points must be at least 2", self.points)
        require(math.isfinite(self.beyond) and self.beyond >= 0, "beyond must be >= 0", self.beyond)
        require(self.rows is None or self.rows >= 2, "rows must be at least 2 or null", self.rows)
        check_seed("ValleyProbe", self.seed)

    def check(self, dataset: Dataset) -> None:
        """Any data set will do."""

    def measure(self, network: TrainedNetwork, data: Data, home: DataHome) -> TestResult:
        """Walk along the line with a copy of the network."""
        if network.last is None:
            raise ValueError("ValleyProbe: a run needs its last iterate beside the average (last.pt), and has none.")
        objective = network.objective
        names = [name for name, p in objective.model.named_parameters() if p.requires_grad]
        average = [p.detach() for p in objective.parameters]
        last = [network.last[name].to(p) for name, p in zip(names, average, strict=True)]
        distance = math.sqrt(sum(float((a - b).double().square().sum()) for a, b in zip(average, last, strict=True)))
        walker = _Walker(self, network, data, last, average)
        table = pd.DataFrame([{"t": t, "distance": t * distance} | _means(walker.at(t)) for t in self.places])
        here, there = walker.at(1.0), walker.at(0.0)
        metrics = {
            f"{split}_{name}_change": mean_with_ci((value - there[split][name]).double().cpu().numpy())
            for split, numbers in here.items()
            for name, value in numbers.items()
        }
        details = {
            "distance": distance,
            "beyond": self.beyond,
            "rows": {split: len(numbers["loss"]) for split, numbers in here.items()},
            "seed": self.seed,
        }
        return TestResult(metrics, details, {"line": table}, {"line": valley_figure(table, distance)})

    @property
    def places(self) -> list[float]:
        """Values of t, evenly apart."""
        length = 1 + 2 * self.beyond
        return [-self.beyond + length * i / (self.points - 1) for i in range(self.points)]


@final
class _Walker:
    """A copy of the network, taken along the line; each row's own loss, and whether it is classified rightly."""

    def __init__(
        self, probe: ValleyProbe, network: TrainedNetwork, data: Data, last: list[Tensor], average: list[Tensor]
    ) -> None:
        self._probe, self._network, self._data = probe, network, data
        self._last, self._average = last, average
        self._objective = Objective(copy.deepcopy(network.objective.model), network.objective.loss)

    def at(self, t: float) -> dict[str, dict[str, Tensor]]:
        """By split: ``loss`` and, of classes, ``accuracy``."""
        model: nn.Module = self._objective.model
        with torch.no_grad():
            for p, start, end in zip(self._objective.parameters, self._last, self._average, strict=True):
                p.copy_(torch.lerp(start, end, t))
        generator = torch.Generator().manual_seed(derived_seed(self._probe.seed, "valley_probe", self._data.name))
        fresh_statistics(model, self._data.train.inputs, self._network.training_batch_size, generator)
        model.eval()
        return {"train": self._rows(self._data.train), "test": self._rows(self._data.test)}

    @torch.no_grad()
    def _rows(self, split: Split) -> dict[str, Tensor]:
        targets = split.targets[: self._probe.rows]
        parts = pieces(split.inputs, self._network.batch_size, slice(self._probe.rows))
        outputs = torch.cat([self._objective.model(part) for part in parts])
        loss = self._objective.loss
        numbers = {"loss": torch.func.vmap(lambda z, y: loss(z[None], y[None]))(outputs, targets)}
        if not targets.is_floating_point():
            numbers["accuracy"] = (outputs.argmax(1) == targets).double()
        return numbers


def _means(numbers: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    return {
        f"{split}_{name}": float(value.double().mean())
        for split, values in numbers.items()
        for name, value in values.items()
    }
