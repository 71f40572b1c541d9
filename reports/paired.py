"""Difference of two models over the seeds that both have: its mean with a 95% confidence interval.

Runs of one seed share split, initialization and order of the data, so they are compared pair by pair.
Below ``BOOTSTRAP_FROM`` pairs the interval is Student's t, which takes the differences as normal; from there on the
bootstrap-t (Efron 1982, Hall 1988), which does not: the distribution of (mean* - mean) / (standard error*) over
resamples stands where Student's t stood.  Coverage of nominal 95% intervals of n differences (1,500 samples each, 2,000
resamples; standard error .006):

    n                                3     5     8     10    20
    normal       Student's t        .955  .951  .955  .955  .955
                 bootstrap-t         -    .947  .950  .953  .960
                 BCa                .737  .830  .894  .897  .923
    exponential  Student's t         -    .892  .899  .919  .917
                 bootstrap-t         -    .934  .934  .950  .943

The bootstrap-t is wider than Student's t by a third for n = 5, by a tenth from 8 on.  Fails: two pairs give a t
interval of 12.7 standard errors to each side; equal differences one of no width; where more than one resample in forty
has a single value the bootstrap-t has no end, and Student's t stands in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BOOTSTRAP_FROM: Final = 8
RESAMPLES: Final = 9999
_SEED: Final = int.from_bytes(hashlib.sha256(b"paired").digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Paired:
    """Mean of the differences with the ends of its 95% interval; ``method``: Student's t or bootstrap-t."""

    mean: float
    ci_low: float
    ci_high: float
    n: int
    method: str

    @property
    def sign(self) -> int:
        """Of the difference where the interval leaves out 0, which is a tie; else 0."""
        return int(self.ci_low > 0) - int(self.ci_high < 0)


def paired(a: Mapping[Any, float], b: Mapping[Any, float]) -> Paired | None:
    """``a`` less ``b`` over the seeds at which both have a finite number; None below two of those."""
    seeds = sorted((seed for seed in a.keys() & b.keys() if math.isfinite(a[seed]) and math.isfinite(b[seed])), key=str)
    n = len(seeds)
    if n < 2:
        return None
    first, second = (np.array([values[seed] for seed in seeds], dtype=np.float64) for values in (a, b))
    differences = first - second
    mean = float(differences.mean())
    rounding = 4 * np.finfo(np.float64).eps * float(np.abs([first, second]).max())
    if float(np.ptp(differences)) <= rounding:  # equal but for the last bits of what was subtracted
        mean = 0.0 if abs(mean) <= rounding else mean
        return Paired(mean, mean, mean, n, "equal differences")
    error = float(stats.sem(differences))
    low, high = _studentized(differences) if n >= BOOTSTRAP_FROM else (-math.inf, math.inf)
    if math.isfinite(low) and math.isfinite(high):
        return Paired(mean, mean - high * error, mean - low * error, n, "bootstrap-t")
    student = stats.ttest_rel(first, second).confidence_interval(0.95)
    return Paired(mean, float(student.low), float(student.high), n, "Student's t")


def _studentized(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Quantiles of (mean* - mean) / (standard error*); infinite where too many resamples are of one value."""
    drawn = np.random.default_rng(_SEED).choice(differences, (RESAMPLES, len(differences)))
    above, error = drawn.mean(axis=1) - differences.mean(), stats.sem(drawn, axis=1)
    t = np.divide(above, error, out=np.copysign(np.inf, above), where=np.ptp(drawn, axis=1) > 0)
    low, high = np.quantile(t, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)
