"""Loss and predictions of a network over a split, in evaluation mode and without a graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectral_run.curvature.objective import Objective
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


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """The network's outputs for all rows."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(part) for part in torch.split(inputs, ROWS)])
    finally:
        model.train(training)


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Predicted class numbers ``(rows,)``."""
    return outputs(model, inputs).argmax(1)


def evaluate(objective: Objective, split: Split) -> Evaluation:
    """Loss, and accuracy where the targets are class numbers."""
    y = outputs(objective.model, split.inputs)
    loss = float(objective.loss(y, split.targets))
    if split.targets.is_floating_point():
        return Evaluation(loss, None)
    return Evaluation(loss, proportion((y.argmax(1) == split.targets).cpu().numpy()))
