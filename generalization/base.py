"""What is asked of a trained network: how it generalizes, and what its loss looks like around it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spectral_run.curvature.backends import Backend
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.rows import Rows
from spectral_run.datasets.base import Data, DataHome, Dataset

Predict: TypeAlias = Callable[[Tensor], Tensor]
"""Inputs ``(rows, *input_shape)`` to predicted class numbers ``(rows,)``; batches by itself."""

Outputs: TypeAlias = Callable[[Rows], Tensor]
"""Inputs to the network's outputs ``(rows, classes)``, in evaluation mode; batches by itself."""


@dataclass(frozen=True)
class Metric:
    """An estimate with its 95% confidence interval and the number of things it averages."""

    value: float
    ci_low: float
    ci_high: float
    n: int


@dataclass(frozen=True)
class TestResult:
    """Metrics by name, and what a reader needs to judge them (rules applied, rows left out, seeds, hashes).

    ``tables`` and ``figures`` are written into the run's folder as ``<test>_<name>.csv``, ``.png`` and ``.pdf``,
    ``arrays``, if there are any, as ``<test>.npz``.
    """

    metrics: Mapping[str, Metric]
    details: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)  # data frames
    figures: Mapping[str, Any] = field(default_factory=dict)  # matplotlib's; a run without any loads no matplotlib
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    __test__ = False  # no test class, whatever pytest thinks of the name


@final
@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A network at its selected weights, and what computes its curvature; ``batch_size`` rows at once.

    ``last``: the state of training's last iterate, where the selected weights are an average of iterates.
    """

    objective: Objective
    backend: Backend
    predict: Predict
    outputs: Outputs
    batch_size: int = 1024
    training_batch_size: int = 128
    last: Mapping[str, Tensor] | None = None


class Measurement(ABC):
    """Settings of what is asked of a trained network; random numbers come from a seed of its own.

    So every model of a sweep meets the same ones, and a finished run can be asked later.
    """

    needs_last_iterate: ClassVar[bool] = False
    """Whether it asks for ``TrainedNetwork.last``, which an optimizer that averages leaves behind."""

    @abstractmethod
    def check(self, dataset: Dataset) -> None:
        """Raise ``ValueError`` where this makes no sense for the data set; called before any data is read."""

    def prepare(self, dataset: Dataset, home: DataHome) -> None:  # noqa: B027  (optional: most need no more data)
        """Fetch missing files of its own or raise ``FileNotFoundError``; called before any training."""

    @abstractmethod
    def measure(self, network: TrainedNetwork, data: Data, home: DataHome) -> TestResult:
        """Ask. The data lie on the network's device, in its dtype; the network is left as it was."""


@final
@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A finished run that ``Comparison.measure`` has been through: its name in tables, result and arrays."""

    label: str
    folder: Path
    result: Mapping[str, Any]  # of result.json
    arrays: Mapping[str, NDArray[Any]]


class Comparison(Measurement):
    """Asks several networks the same, then sets their answers side by side: ``run_dir=[a, b, ...]``."""

    @abstractmethod
    def compare(self, runs: Sequence[MeasuredRun], home: DataHome) -> TestResult:
        """Of two runs or more, each with the arrays of ``measure``. Raises ``ValueError`` if they do not compare."""


@final
@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images in the range and shape of the data set's test inputs, on their device, and class numbers."""

    images: Tensor  # (rows, channels, height, width)
    targets: Tensor  # (rows,)
    details: Mapping[str, Any] = field(default_factory=dict)


class ImageSource(ABC):
    """Where changed test images come from."""

    @abstractmethod
    def images(self, data: Data, home: DataHome) -> LabelledImages:
        """All of them. Raises ``FileNotFoundError`` or ``DataError``."""


class GeneralizationTest(Measurement):
    """Asks a trained network for classes under a changed test distribution."""

    @final
    def measure(self, network: TrainedNetwork, data: Data, home: DataHome) -> TestResult:
        """``evaluate``: the predictions are all that it needs."""
        return self.evaluate(network.predict, data, home)

    @abstractmethod
    def evaluate(self, predict: Predict, data: Data, home: DataHome) -> TestResult:
        """Test a trained network. ``data.test`` lies on the network's device, in its dtype."""


def derived_seed(seed: int, *purpose: str | int) -> int:
    """Seed of one purpose's generator: 63 bits of a hash of the test's seed and the purpose, never of the model."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def correctness(predict: Predict, inputs: Tensor, targets: Tensor) -> NDArray[np.bool_]:
    """Whether each prediction is right, ``(rows,)``, on the CPU."""
    right: NDArray[np.bool_] = (predict(inputs) == targets).cpu().numpy()
    return right


def require_classes(test: str, dataset: Dataset) -> None:
    """Refuse a data set without classes: all tests here count right answers."""
    if dataset.loss != "cross_entropy":
        raise ValueError(f"{test}: data set must have classes, got {dataset.name} with loss {dataset.loss}.")


def check_seed(test: str, seed: int) -> None:
    """Refuse a seed that is no integer >= 0."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"{test}: seed must be an integer >= 0, got {seed!r}.")
