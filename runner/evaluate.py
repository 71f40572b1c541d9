"""Loss and predictions of a network over a split, in evaluation mode and without a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectral_run.curvature.objective import Objective
from spectral_run.curvature.parallel import Processes
from spectral_run.datasets.base import Split
from spectral_run.generalization.base import Metric
from spectral_run.generalization.statistics import proportion

ROWS = 1024  # rows at once; bounds memory


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, and for classes the accuracy with its 95% interval."""

    loss: float
    accuracy: Metric | None

    def numbers(self) -> dict[str, float]:
        """For the record."""
        numbers = {"loss": self.loss}
        if self.accuracy is not None:
            numbers |= {
                "accuracy": self.accuracy.value,
                "ci_low": self.accuracy.ci_low,
                "ci_high": self.accuracy.ci_high,
                "n": self.accuracy.n,
            }
        return numbers


def outputs(model: nn.Module, inputs: Tensor, processes: Processes | None = None) -> Tensor:
    """The network's outputs for all rows; several processes each compute a piece, and have the whole."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if processes is None:
                return torch.cat([model(part) for part in torch.split(inputs, ROWS)])
            rows = processes.rows(len(inputs))
            own = outputs(model, inputs[rows] if rows.stop > rows.start else inputs[:1])
            whole = own.new_zeros(len(inputs), *own.shape[1:])
            whole[rows] = own[: rows.stop - rows.start]
            return processes.sum(whole)[0]
    finally:
        model.train(training)


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Predicted class numbers ``(rows,)``."""
    return outputs(model, inputs).argmax(1)


def evaluate(objective: Objective, split: Split, processes: Processes | None = None) -> Evaluation:
    """Loss, and accuracy where the targets are class numbers."""
    y = outputs(objective.model, split.inputs, processes)
    loss = float(objective.loss(y, split.targets))
    if split.targets.is_floating_point():
        return Evaluation(loss, None)
    return Evaluation(loss, proportion((y.argmax(1) == split.targets).cpu().numpy()))
