"""Correlations with 95% intervals: Pearson's by Fisher's z, Spearman's by the bootstrap over pairs.

Source: Fisher 1915 (scipy.stats.pearsonr); bootstrap: bias-corrected and accelerated (BCa), Efron 1987
(scipy.stats.bootstrap), resampling pairs, from a seed that is a hash of ``purpose``.  Both take the pairs for
independent draws of one distribution; models of a grid are none, so an interval says how far the number hangs on
single models, not more.
Coverage of nominal 95% for 70 independent pairs, correlation -.6 (200 samples, standard error .018): Fisher .955 and
bootstrap .935 for a normal pair, .93 and .935 for a log-normal x, as rho is. Fails: with a few far larger values still
Fisher's z is too narrow.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES: Final = 9999
LEAST: Final = 3  # pairs: two are always on a line
LEAST_BOOTSTRAP: Final = 20  # pairs: of fewer a bootstrap of ranks has too few different values


@dataclass(frozen=True)
class Correlation:
    """A correlation, its 95% interval (NaN where there is none) and the number of pairs."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def pearson(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Pearson's r; None below ``LEAST`` pairs or where one side is constant."""
    a, b = _pairs(x, y)
    if not _varies(a, b):
        return None
    found = stats.pearsonr(a, b)
    # On a line, or of three pairs, Fisher's z has no end: the interval is the point itself, or all there is.
    if len(a) == LEAST:
        low, high = -1.0, 1.0
    elif abs(found.statistic) >= 1.0:
        low = high = float(found.statistic)
    else:
        low, high = map(float, found.confidence_interval(0.95))
    return Correlation(float(found.statistic), low, high, len(a))


def spearman(x: Sequence[float], y: Sequence[float], purpose: str) -> Correlation | None:
    """Spearman's rank correlation; None as ``pearson``; no interval below ``LEAST_BOOTSTRAP`` pairs."""
    a, b = _pairs(x, y)
    if not _varies(a, b):
        return None
    value = float(stats.spearmanr(a, b).statistic)
    low = high = math.nan
    if len(a) >= LEAST_BOOTSTRAP:
        seed = int.from_bytes(hashlib.sha256(f"spearman/{purpose}".encode()).digest()[:8], "big")
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # then there is no interval, and it says so
            found = stats.bootstrap(
                (a, b), _rank_correlation, n_resamples=RESAMPLES, paired=True, vectorized=True, method="BCa",
                rng=np.random.default_rng(seed), batch=1000,
            )  # fmt: skip
        low, high = map(float, found.confidence_interval)
    return Correlation(value, low, high, len(a))


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64], axis: int = -1) -> Any:
    ranks = [stats.rankdata(values, axis=axis) for values in (a, b)]
    first, second = (rank - rank.mean(axis=axis, keepdims=True) for rank in ranks)
    return (first * second).sum(axis=axis) / np.sqrt((first**2).sum(axis=axis) * (second**2).sum(axis=axis))


def _pairs(x: Sequence[float], y: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"correlation: x and y must be two rows of equal length, got {a.shape} and {b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("correlation: x and y must be finite.")
    return a, b


def _varies(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return len(a) >= LEAST and bool(np.ptp(a) > 0) and bool(np.ptp(b) > 0)
