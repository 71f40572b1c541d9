"""What a generalization test is: it asks a trained network for classes under a changed test distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from spectral_run.datasets.base import Data, DataHome, Dataset

Predict: TypeAlias = Callable[[Tensor], Tensor]
"""Inputs ``(rows, *input_shape)`` to predicted class numbers ``(rows,)``; batches by itself."""


@dataclass(frozen=True)
class Metric:
    """An estimate with its 95% confidence interval and the number of things it averages."""

    value: float
    ci_low: float
    ci_high: float
    n: int


@dataclass(frozen=True)
class TestResult:
    """Metrics by name, and what a reader needs to judge them (rules applied, rows left out, seeds, hashes)."""

    metrics: Mapping[str, Metric]
    details: Mapping[str, Any] = field(default_factory=dict)

    __test__ = False  # no test class, whatever pytest thinks of the name


class GeneralizationTest(ABC):
    """A test's settings. Perturbations come from the test's own seed, so every model meets the same ones."""

    @abstractmethod
    def check(self, dataset: Dataset) -> None:
        """Raise ``ValueError`` where this test makes no sense for the data set; called before any data is read."""

    def prepare(self, dataset: Dataset, home: DataHome) -> None:  # noqa: B027  (optional: most need no more data)
        """Fetch missing files of the test's own or raise ``FileNotFoundError``; called before any training."""

    @abstractmethod
    def evaluate(self, predict: Predict, data: Data, home: DataHome) -> TestResult:
        """Test a trained network. ``data.test`` lies on the network's device, in its dtype."""
