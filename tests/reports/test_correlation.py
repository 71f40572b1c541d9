"""Correlations: scipy's own numbers, the bootstrap repeatable, and where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from spectral_run.reports.correlation import pearson, spearman


def pairs(n: int, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    x = rng.lognormal(size=n)
    return x.tolist(), (-0.5 * x + rng.normal(size=n)).tolist()


def test_values_and_fisher_interval_are_scipys() -> None:
    x, y = pairs(70)
    r, ranks = pearson(x, y), spearman(x, y, "test")
    assert r is not None
    assert ranks is not None
    assert r.value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert ranks.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    half = stats.norm.ppf(0.975) / math.sqrt(70 - 3)
    assert r.ci_low == pytest.approx(math.tanh(math.atanh(r.value) - half), abs=1e-12)
    assert r.ci_high == pytest.approx(math.tanh(math.atanh(r.value) + half), abs=1e-12)
    assert r.n == ranks.n == 70


def test_the_bootstrap_is_scipys_over_scipys_spearman_and_repeats() -> None:
    x, y = pairs(25)
    ours = spearman(x, y, "test")
    assert ours is not None
    assert ours == spearman(x, y, "test")
    theirs = stats.bootstrap(
        (np.array(x), np.array(y)), lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False,
        n_resamples=2000, method="BCa", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert ours.ci_low == pytest.approx(theirs.low, abs=0.05)  # the resampling of 2,000: some .01
    assert ours.ci_high == pytest.approx(theirs.high, abs=0.05)
    assert ours.ci_low < ours.value < ours.ci_high
    other = spearman(x, y, "another")
    assert other is not None
    assert other.ci_low != ours.ci_low


def test_ties_are_ranked_as_scipy_does() -> None:
    x = [0.0, 0.0, 1.0, 1.0, 2.0, 5.0] * 4
    y = [3.0, 3.0, 2.0, 1.0, 1.0, -4.0] * 3 + [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    found = spearman(x, y, "ties")
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.ci_low < found.value < found.ci_high


def test_rank_correlation_does_not_see_a_logarithm() -> None:
    x, y = pairs(40)
    assert spearman(x, y, "test") == spearman(np.log(x).tolist(), y, "test")


@pytest.mark.parametrize(("x", "y"), [([1.0, 2.0], [3.0, 4.0]), ([1.0] * 30, list(range(30))), ([], [])])
def test_two_pairs_or_a_constant_have_no_correlation(x: list[float], y: list[float]) -> None:
    assert pearson(x, [float(v) for v in y]) is None
    assert spearman(x, [float(v) for v in y], "test") is None


def test_few_pairs_have_no_bootstrap_and_three_no_fisher_interval() -> None:
    few = spearman([1.0, 2.0, 4.0, 3.0], [1.0, 3.0, 2.0, 4.0], "test")
    assert few is not None
    assert math.isnan(few.ci_low)
    three = pearson([1.0, 2.0, 3.0], [1.0, 2.0, 2.5])
    assert three is not None
    assert (three.ci_low, three.ci_high) == (-1.0, 1.0)


def test_a_line_is_its_own_interval() -> None:
    found = pearson([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0])
    assert found is not None
    assert found.value == pytest.approx(1.0)
    assert found.ci_low == pytest.approx(1.0)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="equal length"):
        pearson([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="must be finite"):
        spearman([1.0, math.nan, 2.0], [1.0, 2.0, 3.0], "test")
