import math

import numpy as np
import pytest
from scipy import stats

from spectral_run.generalization.base import derived_seed
from spectral_run.generalization.statistics import (
    Z95,
    bootstrap_mean,
    bootstrap_pooled,
    bootstrap_pooled_ratio,
    bootstrap_ratio,
    mean_with_ci,
    normal_interval,
    proportion,
    standard_deviation,
)


def flags(right, n):
    return np.arange(n) < right


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (37, 50), (9_000, 10_000)])
def test_proportion_is_wilsons_formula(right, n):
    metric = proportion(flags(right, n))
    p, z = right / n, Z95
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert metric.value == p
    assert metric.n == n
    np.testing.assert_allclose([metric.ci_low, metric.ci_high], [centre - half, centre + half], atol=1e-12)
    assert 0 <= metric.ci_low <= p <= metric.ci_high <= 1


def test_mean_with_ci():
    metric = mean_with_ci(np.array([1.0, 2.0, 3.0, 6.0]))
    half = 1.96 * np.std([1, 2, 3, 6], ddof=1) / 2
    np.testing.assert_allclose([metric.value, metric.ci_low, metric.ci_high], [3, 3 - half, 3 + half], rtol=1e-4)
    assert mean_with_ci(np.array([2.0])).ci_high == 2


def test_standard_deviation_covers_in_95_of_100():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        metric = standard_deviation(rng.normal(0, 2, size=10))
        inside += metric.ci_low <= 2 <= metric.ci_high
    assert abs(inside / 1000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 1000)
    assert standard_deviation(np.array([1.0])).value == 0
    assert standard_deviation(np.array([1.0, 1.0])).ci_high == 0


def test_normal_interval():
    metric = normal_interval(1.0, 0.5, 3)
    assert (metric.ci_high - metric.ci_low) / 2 == pytest.approx(stats.norm.ppf(0.975) * 0.5)


def test_bootstrap_of_a_mean_agrees_with_the_normal_theory():
    values = np.random.default_rng(1).normal(0, 1, size=1000)
    metric, theory = bootstrap_mean(values, seed=0), mean_with_ci(values)
    assert metric.value == theory.value
    np.testing.assert_allclose([metric.ci_low, metric.ci_high], [theory.ci_low, theory.ci_high], atol=0.01)


@pytest.mark.parametrize("paired", [True, False])
def test_bootstrap_of_a_ratio_agrees_with_the_delta_method(paired):
    rng = np.random.default_rng(2)
    both = rng.random(2000)
    test, shifted = both < 0.9, both < 0.7  # an example right under the shift is right without
    metric = bootstrap_ratio(shifted, test, paired=paired, seed=0)
    p, q = shifted.mean(), test.mean()
    variance = np.var(shifted / q - test * p / q**2) if paired else np.var(shifted) / q**2 + np.var(test) * p**2 / q**4
    half = Z95 * math.sqrt(variance / 2000)
    assert metric.value == pytest.approx(p / q - 1)
    np.testing.assert_allclose([metric.ci_low, metric.ci_high], [p / q - 1 - half, p / q - 1 + half], atol=0.1 * half)


def test_bootstrap_degenerate_samples():
    ones = np.ones(5)
    assert bootstrap_mean(ones, seed=0) == bootstrap_mean(ones, seed=1)
    assert bootstrap_mean(ones, seed=0).ci_low == 1
    assert bootstrap_mean(np.array([3.0]), seed=0).ci_high == 3
    assert bootstrap_ratio(ones, np.zeros(5), paired=True, seed=0) is None
    one_right = flags(1, 5)
    metric = bootstrap_ratio(one_right, one_right, paired=True, seed=0)  # a third of the resamples have no ratio
    assert (metric.value, metric.ci_low, metric.ci_high) == (0, 0, 0)
    metric = bootstrap_ratio(ones, one_right, paired=False, seed=0)
    assert metric.value == 4
    assert metric.ci_low <= 4 <= metric.ci_high < math.inf


def test_pooled_means_are_of_things_and_their_spread_of_examples():
    rng = np.random.default_rng(4)
    skill = rng.random(1500)
    counts = rng.integers(0, 3, 1500)
    sums = rng.binomial(counts, skill)  # the things of an example are alike
    metric = bootstrap_pooled(sums, counts, seed=0)
    value = sums.sum() / counts.sum()
    half = Z95 * math.sqrt(np.var((sums - value * counts) / counts.mean()) / 1500)
    assert (metric.value, metric.n) == (pytest.approx(value), counts.sum())
    np.testing.assert_allclose([metric.ci_low, metric.ci_high], [value - half, value + half], atol=0.1 * half)
    plain = rng.random(1500) < 0.5 + 0.5 * skill
    metric = bootstrap_pooled_ratio(sums, counts, plain, seed=0)
    q = plain.mean()
    half = Z95 * math.sqrt(np.var((sums - value * counts) / counts.mean() / q - plain * value / q**2) / 1500)
    assert (metric.value, metric.n) == (pytest.approx(value / q - 1), counts.sum())
    ends = [value / q - 1 - half, value / q - 1 + half]
    np.testing.assert_allclose([metric.ci_low, metric.ci_high], ends, atol=0.1 * half)


def test_pooled_means_with_one_of_each_are_plain_ones():
    values, plain, ones = flags(30, 100), flags(60, 100), np.ones(100)
    assert bootstrap_pooled(values, ones, seed=0) == bootstrap_mean(values, seed=0)
    assert bootstrap_pooled_ratio(values, ones, plain, seed=0) == bootstrap_ratio(values, plain, paired=True, seed=0)


def test_nothing_to_pool_has_no_mean():
    zeros, ones = np.zeros(5), np.ones(5)
    assert bootstrap_pooled(zeros, zeros, seed=0) is None
    assert bootstrap_pooled_ratio(zeros, zeros, ones, seed=0) is None
    assert bootstrap_pooled_ratio(ones, ones, zeros, seed=0) is None
    metric = bootstrap_pooled(np.array([1, 0, 0, 0, 0]), np.array([1, 0, 0, 0, 0]), seed=0)  # a third have none
    assert (metric.value, metric.ci_low, metric.ci_high, metric.n) == (1, 1, 1, 1)


def test_bootstrap_depends_on_its_seed_only():
    values = np.random.default_rng(1).random(200)
    first = bootstrap_mean(values, seed=3)
    np.random.seed(5)  # noqa: NPY002
    assert first == bootstrap_mean(values, seed=3)
    assert first != bootstrap_mean(values, seed=4)


def test_large_samples_skip_the_jackknife():
    values = np.random.default_rng(1).random(30_000)
    metric, theory = bootstrap_mean(values, seed=0), mean_with_ci(values)
    np.testing.assert_allclose([metric.ci_low, metric.ci_high], [theory.ci_low, theory.ci_high], atol=5e-4)


def test_derived_seed():
    assert derived_seed(0, "a", 1) == derived_seed(0, "a", 1)
    assert len({derived_seed(s, p, d) for s in range(3) for p in "ab" for d in range(12)}) == 72
    assert 0 <= derived_seed(0, "a") < 2**63
