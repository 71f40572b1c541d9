"""Loss and predictions of a network over a split, in evaluation mode and without a graph."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spectral_run.curvature.objective import Objective, evaluating
from spectral_run.curvature.parallel import Processes
from spectral_run.curvature.rows import Rows, pieces
from spectral_run.datasets.base import Dataset, Split
from spectral_run.generalization.auc import aucs, point_aucs, without_area
from spectral_run.generalization.base import Metric, derived_seed
from spectral_run.generalization.statistics import proportion

ROWS = 1024  # rows at once, at most
NUMBERS = 1 << 22  # and numbers in them: 27 images of 224 pixels and 3 channels; both bound memory


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, and what goes with it: of classes the accuracy, of several labels the areas under their ROC curves."""

    loss: float
    accuracy: Metric | None = None
    details: dict[str, Any] | None = None  # of several labels: auc, ...

    def numbers(self) -> dict[str, Any]:
        """For the record."""
        numbers: dict[str, Any] = {"loss": self.loss}
        if self.accuracy is not None:
            numbers |= _named("accuracy", self.accuracy)
        return numbers | (self.details or {})


def rows_at_once(inputs: Rows) -> int:
    """How many rows go through the network together."""
    return max(1, min(ROWS, NUMBERS // max(1, math.prod(inputs.shape[1:]))))


def outputs(model: nn.Module, inputs: Rows, processes: Processes | None = None) -> Tensor:
    """The network's outputs for all rows; several processes each compute a piece, and have the whole."""
    with torch.no_grad(), evaluating(model):
        size = rows_at_once(inputs)
        if processes is None:
            return torch.cat([model(part) for part in pieces(inputs, size)])
        rows = processes.rows(len(inputs))
        held = rows if rows.stop > rows.start else slice(0, 1)
        own = torch.cat([model(part) for part in pieces(inputs, size, held)])
        whole = own.new_zeros(len(inputs), *own.shape[1:])
        whole[rows] = own[: rows.stop - rows.start]
        return processes.sum(whole)[0]


def predict(model: nn.Module, inputs: Rows) -> Tensor:
    """Predicted class numbers ``(rows,)``."""
    return outputs(model, inputs).argmax(1)


def evaluate(
    objective: Objective,
    split: Split,
    dataset: Dataset,
    processes: Processes | None = None,
    *,
    interval: bool = True,
    frequent: Collection[str] = (),
) -> Evaluation:
    """Loss, and by the data set's own: accuracy, or mean area under the ROC curve, without its interval if so asked.

    ``frequent``: outputs whose own mean area is given as well, since that of rare ones is mostly chance.
    """
    y = outputs(objective.model, split.inputs, processes)
    loss = float(objective.loss(y, split.targets))
    if dataset.loss == "cross_entropy":
        return Evaluation(loss, proportion((y.argmax(1) == split.targets).cpu().numpy()))
    if dataset.loss == "mse":
        return Evaluation(loss)
    scores, labels = _array(y), _array(split.targets)
    if not interval:
        return Evaluation(loss, details=_point(scores, labels))
    return Evaluation(loss, details=_areas(scores, labels, split, dataset, frequent))


def _point(scores: NDArray[np.float64], labels: NDArray[np.float64]) -> dict[str, Any]:
    each = point_aucs(scores, labels) if np.isfinite(scores).all() else np.array([])
    return {"auc": float(np.nanmean(each)) if np.isfinite(each).any() else math.nan}


def _areas(
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    split: Split,
    dataset: Dataset,
    frequent: Collection[str],
) -> dict[str, Any]:
    """Mean and each area with intervals by bootstrap over groups, positives, and what has no area and why."""
    names = dataset.outputs
    left_out = without_area(labels, names)
    if not np.isfinite(scores).all():
        left_out = dict.fromkeys(names, "outputs not finite")
    if len(left_out) == len(names):
        return {"auc": math.nan, "auc_by_output": {}, "left_out": left_out}
    groups = None if split.groups is None else split.groups.cpu().numpy()
    # The seed is the data set's: every network meets the same resamples.
    seed = derived_seed(0, "auc", dataset.name)
    found = aucs(scores, labels, names, groups=groups, seed=seed)
    positives = dict(zip(names, labels.sum(0).astype(int).tolist(), strict=True))
    each = {name: asdict(metric) | {"positives": positives[name]} for name, metric in found.each.items()}
    numbers = _named("auc", found.mean) | {"auc_by_output": each, "left_out": dict(found.left_out)}
    kept = [column for column, name in enumerate(names) if name in frequent and name not in left_out]
    if kept:
        some = [names[column] for column in kept]
        mean = aucs(scores[:, kept], labels[:, kept], some, groups=groups, seed=seed).mean
        numbers["auc_frequent"] = _named("value", mean) | {"outputs": some}
    return numbers


def _named(name: str, metric: Metric) -> dict[str, Any]:
    return {name: metric.value, "ci_low": metric.ci_low, "ci_high": metric.ci_high, "n": metric.n}


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().to("cpu", torch.float64).numpy()
