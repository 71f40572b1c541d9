"""Estimates with 95% confidence intervals, each from the sampling that produced it.

| function | what was sampled | interval |
|---|---|---|
| ``proportion`` | examples, right or wrong | Wilson's score interval |
| ``mean_with_ci`` | independent draws | mean +- 1.96 standard errors (the paper's tables) |
| ``standard_deviation`` | independent normal draws | chi-square |
| ``bootstrap_mean``, ``_ratio``, ``_pooled`` | examples | bootstrap, bias-corrected and accelerated (Efron 1987) |

An interval is finite and holds its estimate, always; where a sample says nothing about its spread (one value, or all
values equal) it has no width. Random numbers come from the seed given, never from global state.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from scipy import stats

from spectral_run.generalization.base import Metric

Z95: Final = 1.959963984540054  # 97.5% point of the normal distribution
RESAMPLES: Final = 2000
BCA_LIMIT: Final = 20_000  # above this the jackknife behind BCa, quadratic in the sample, takes longer than the test
_BLOCK: Final = 4_000_000  # numbers resampled at a time: 32 MB


def _metric(value: float, low: float, high: float, n: int) -> Metric:
    """Widen to hold the value: BCa can leave it out, and Wilson's ends round to the wrong side of 0 and 1."""
    low, high = (end if math.isfinite(end) else value for end in (low, high))
    return Metric(value, min(low, value), max(high, value), n)


def proportion(correct: Bool[np.ndarray, " n"]) -> Metric:
    """Share of true entries with Wilson's score interval."""
    n, successes = len(correct), int(np.count_nonzero(correct))
    interval = stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return _metric(successes / n, float(interval.low), float(interval.high), n)


def mean_with_ci(values: Float[np.ndarray, " n"]) -> Metric:
    """Mean of independent values, plus and minus 1.96 standard errors."""
    n, mean = len(values), float(np.mean(values))
    half = Z95 * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return _metric(mean, mean - half, mean + half, n)


def standard_deviation(values: Float[np.ndarray, " n"]) -> Metric:
    """Standard deviation (divisor n - 1) with the chi-square interval, exact for normal values only."""
    n = len(values)
    if n < 2:
        return Metric(0.0, 0.0, 0.0, n)
    deviation = float(np.std(values, ddof=1))
    low, high = (deviation * math.sqrt((n - 1) / stats.chi2.ppf(tail, n - 1)) for tail in (0.975, 0.025))
    return _metric(deviation, low, high, n)


def normal_interval(value: float, standard_error: float, n: int) -> Metric:
    """An estimate with a known standard error."""
    return _metric(value, value - Z95 * standard_error, value + Z95 * standard_error, n)


def bootstrap_mean(values: Shaped[np.ndarray, " n"], *, seed: int) -> Metric:
    """Mean over examples; values of one example that repeat (several draws) are averaged by the caller first."""
    return _bootstrap(_mean, (values,), paired=True, seed=seed)


def bootstrap_ratio(
    numerator: Shaped[np.ndarray, " n"], denominator: Shaped[np.ndarray, " m"], *, paired: bool, seed: int
) -> Metric | None:
    """Mean of ``numerator`` over mean of ``denominator``, minus 1: the relative change of an accuracy.

    ``paired`` says that entry i of both belongs to the same example. None where the denominator's mean is 0, for then
    there is no such number.
    """
    if not np.any(denominator):
        return None
    return _bootstrap(_relative_change, (numerator, denominator), paired=paired, seed=seed)


def bootstrap_pooled(sums: Shaped[np.ndarray, " n"], counts: Shaped[np.ndarray, " n"], *, seed: int) -> Metric | None:
    """Mean over things of which an example has none, one or several: their sums over their counts.

    Examples are resampled, each with all of its own. None where there is nothing to average.
    """
    if not np.any(counts):
        return None
    return replace(_bootstrap(_pooled, (sums, counts), paired=True, seed=seed), n=int(np.sum(counts)))


def bootstrap_pooled_ratio(
    sums: Shaped[np.ndarray, " n"],
    counts: Shaped[np.ndarray, " n"],
    denominator: Shaped[np.ndarray, " n"],
    *,
    seed: int,
) -> Metric | None:
    """That mean over the mean of ``denominator``, minus 1; entry i of all three belongs to the same example."""
    if not (np.any(counts) and np.any(denominator)):
        return None
    metric = _bootstrap(_pooled_change, (sums, counts, denominator), paired=True, seed=seed)
    return replace(metric, n=int(np.sum(counts)))


def _mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(np.mean(values, axis=axis))


def _relative_change(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(_pooled(a, b, axis) - 1)


def _pooled(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return _ratio(np.mean(a, axis=axis), np.mean(b, axis=axis))


def _pooled_change(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    return np.asarray(_ratio(_pooled(a, b, axis), np.mean(c, axis=axis)) - 1)


def _ratio(top: Any, bottom: Any) -> NDArray[np.float64]:
    # A resample without one correct answer has no ratio; it becomes NaN here and is left out of the percentiles.
    return np.asarray(np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom != 0))


def _bootstrap(
    statistic: Callable[..., NDArray[np.float64]], samples: tuple[NDArray[Any], ...], *, paired: bool, seed: int
) -> Metric:
    arrays = tuple(np.asarray(sample, dtype=np.float64) for sample in samples)
    value = float(statistic(*arrays, axis=-1))
    n = len(arrays[0])
    if min(len(array) for array in arrays) < 2 or all(np.ptp(array) == 0 for array in arrays):
        return _metric(value, value, value, n)
    longest = max(len(array) for array in arrays)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # scipy warns where BCa has no answer; the percentiles below are the answer
        result = stats.bootstrap(
            arrays,
            statistic,
            n_resamples=RESAMPLES,
            batch=max(1, _BLOCK // longest),
            vectorized=True,
            paired=paired,
            confidence_level=0.95,
            method="BCa" if longest <= BCA_LIMIT else "percentile",
            rng=np.random.default_rng(seed),
        )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        defined = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
        low, high = (float(np.quantile(defined, q)) for q in (0.025, 0.975)) if len(defined) else (value, value)
    return _metric(value, low, high, n)
