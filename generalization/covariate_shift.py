"""Accuracy when the test examples are weighted so that the features' means move.

Source: appendix C.2 of the spectral-radius paper. On standardized features x, a shift d gives example i the weight

    w_i = prod_j N(x_ij; d_j, 1) / N(x_ij; 0, 1) = exp(sum_j d_j x_ij - d_j^2 / 2)

and the shifted accuracy is ``sum_i w_i correct_i / sum_i w_i``, where the factor without i cancels. The relative change
is shifted / plain accuracy - 1. Over many random shifts d_j ~ N(0, scale^2) the paper's table 2 has its mean.

Which features are left alone. The paper first moves each feature alone by ``probe`` = 0.1, and drops the ones whose
accuracy is out of line: rare binary columns, whose few examples get most of the weight. A rule that looked at the
accuracy would give every model its own shifts. So ours looks at the weights: the effective sample size
``(sum w)^2 / sum w^2`` of n normal examples is ``n exp(-d^2)``, hence a feature whose own probe gives
``-log(effective sample size / n) > tolerance * probe^2`` is dropped, as is one that is constant over the test split.

Measured on 5,930 test rows of forest cover, probe 0.1: the ten continuous columns keep 98.8% to 99.1% (normal: 99.0%).
Tolerance 5 (95.1%) drops 13 binary columns, all with fewer than 0.55% of the rows, and 3 that are empty; over seven
other splits none above 0.8% was dropped. Over 1000 shifts of scale 0.05 on the remaining 38 columns the mean effective
share is 90% (normal: 91%), the least 51%, and the relative change has a standard deviation of 0.7%. With all columns
they are 53%, 0.02% and 9%: one column with a single test row does that. The intervals of the paper's table 2 imply
standard deviations of 6% to 9%, so it may have kept such a column.

Cost: one prediction of the test split and ``rows * features * shifts`` multiplications in float64, on the CPU (so the
weights don't depend on the device), a block of shifts at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from spectral_run.datasets.base import Data, DataHome, Dataset
from spectral_run.generalization.base import (
    GeneralizationTest,
    Metric,
    Predict,
    TestResult,
    check_seed,
    correctness,
    derived_seed,
    require_classes,
)
from spectral_run.generalization.statistics import mean_with_ci, normal_interval, proportion, standard_deviation

_BLOCK: Final = 4_000_000  # weights held at a time: 32 MB


def shift_weights(
    x: Float[np.ndarray, "rows features"], shifts: Float[np.ndarray, "shifts features"]
) -> Float[np.ndarray, "rows shifts"]:
    """Weight of each row under each shift, scaled to a largest weight of 1 (the scale cancels and can't overflow)."""
    log_weights: NDArray[np.float64] = x @ shifts.T
    log_weights -= log_weights.max(axis=0)
    return np.exp(log_weights, out=log_weights)


def effective_sample_size(weights: Float[np.ndarray, "rows shifts"]) -> Float[np.ndarray, " shifts"]:
    """``(sum w)^2 / sum w^2`` of each column (Kish)."""
    size: NDArray[np.float64] = weights.sum(axis=0) ** 2 / np.square(weights).sum(axis=0)
    return size


@dataclass(frozen=True)
class _Shifted:
    """Accuracy and effective sample size under each shift; influence of each example on the mean accuracy."""

    accuracy: NDArray[np.float64]
    effective: NDArray[np.float64]
    influence: NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True)
class CovariateShift(GeneralizationTest):
    """Relative change of the accuracy over random shifts of the features' means."""

    shifts: int = 1000
    scale: float = 0.05
    probe: float = 0.1
    tolerance: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shifts < 2:
            raise ValueError(f"CovariateShift: shifts must be >= 2, got {self.shifts}.")
        if not self.scale >= 0:
            raise ValueError(f"CovariateShift: scale must be >= 0, got {self.scale}.")
        if not self.probe > 0:
            raise ValueError(f"CovariateShift: probe must be > 0, got {self.probe}.")
        if not self.tolerance > 1:
            raise ValueError(f"CovariateShift: tolerance must be > 1, a normal feature's, got {self.tolerance}.")
        check_seed("CovariateShift", self.seed)

    def check(self, dataset: Dataset) -> None:
        """Standardized features and classes are needed."""
        require_classes("CovariateShift", dataset)
        if len(dataset.input_shape) != 1:
            raise ValueError(
                f"CovariateShift: inputs must be features (one dimension), got {dataset.name} with "
                f"{dataset.input_shape}."
            )
        if not dataset.standardized:
            raise ValueError(
                f"CovariateShift: features must be standardized, for the weights are ratios of N(d, 1) to N(0, 1); "
                f"{dataset.name} is not."
            )

    def random_shifts(self, dataset: str, features: int) -> Float[np.ndarray, "shifts features"]:
        """The shifts of all features, dropped ones included: whether one is dropped leaves the others' as they are."""
        rng = np.random.default_rng(derived_seed(self.seed, "covariate_shift", dataset))
        return rng.normal(0.0, self.scale, size=(self.shifts, features))

    def evaluate(self, predict: Predict, data: Data, home: DataHome) -> TestResult:
        """Accuracy under each shift; the relative changes are left out where the plain accuracy is 0.

        ``relative_change`` has the paper's interval, for the mean over shifts of this test split;
        ``relative_change_examples`` is the same mean with the interval for another test split of this size
        (delta method over examples).
        """
        correct = correctness(predict, data.test.tensor, data.test.targets)
        x = data.test.tensor.detach().to("cpu", torch.float64).numpy()
        rows, features = x.shape
        probes = self._apply(x, correct, self.probe * np.eye(features))
        constant = np.ptp(x, axis=0) == 0
        floor = float(np.exp(-self.tolerance * self.probe**2))
        few = probes.effective / rows < floor
        kept = ~(constant | few)
        if not kept.any():
            raise ValueError(f"CovariateShift: no feature of {data.name} is left after the probe of {self.probe}.")
        shifted = self._apply(x[:, kept], correct, self.random_shifts(data.name, features)[:, kept])

        plain = proportion(correct)
        metrics: dict[str, Metric] = {
            "test": plain,
            "weighted_accuracy": mean_with_ci(shifted.accuracy),
            "effective_sample_size": mean_with_ci(shifted.effective),
        }
        probe_change: list[float] | None = None
        if plain.value > 0:
            change = shifted.accuracy / plain.value - 1
            probe_change = (probes.accuracy / plain.value - 1).tolist()
            mean = float(change.mean())
            influence = (shifted.influence - (1 + mean) * (correct - plain.value)) / plain.value
            standard_error = float(np.sqrt(np.square(influence).sum())) / rows
            metrics["relative_change"] = mean_with_ci(change)
            metrics["relative_change_sd"] = standard_deviation(change)
            metrics["relative_change_examples"] = normal_interval(mean, standard_error, rows)
        details = {
            "rule": f"excluded: constant, or effective share of rows < {floor:.4f} when shifted alone by {self.probe}",
            "excluded": [
                {
                    "feature": int(j),
                    "reason": "constant" if constant[j] else "few examples carry the weight",
                    "effective_share": float(probes.effective[j] / rows),
                    "rows_off_the_mode": rows - int(np.unique(x[:, j], return_counts=True)[1].max()),
                }
                for j in np.flatnonzero(~kept)
            ],
            "features_shifted": int(kept.sum()),
            "probe_relative_change": probe_change,
            "probe_effective_share": (probes.effective / rows).tolist(),
            "least_effective_share": float(shifted.effective.min() / rows),
            "shifts": self.shifts,
            "scale": self.scale,
            "seed": self.seed,
        }
        return TestResult(metrics, details)

    @staticmethod
    def _apply(
        x: Float[np.ndarray, "rows features"],
        correct: Bool[np.ndarray, " rows"],
        shifts: Float[np.ndarray, "shifts features"],
    ) -> _Shifted:
        rows, right = len(x), correct.astype(np.float64)
        accuracies, sizes, influence = [], [], np.zeros(rows)
        for block in _blocks(shifts, max(1, _BLOCK // rows)):
            weights = shift_weights(x, block)
            total = weights.sum(axis=0)
            accuracy = right @ weights / total
            accuracies.append(accuracy)
            sizes.append(effective_sample_size(weights))
            # An example moves a weighted mean by w_i (correct_i - mean) / (mean weight) / rows.
            influence += right * (weights @ (rows / total)) - weights @ (rows * accuracy / total)
        return _Shifted(np.concatenate(accuracies), np.concatenate(sizes), influence / len(shifts))


def _blocks(shifts: NDArray[np.float64], size: int) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(shifts), size):
        yield shifts[start : start + size]
