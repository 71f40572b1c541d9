import math

import numpy as np
import pytest
from scipy import stats

from spectral_run.reports.paired import BOOTSTRAP_FROM, paired


def by_seed(values, first=0):
    return {str(first + i): float(value) for i, value in enumerate(values)}


@pytest.mark.parametrize("n", [2, 3, 9])
def test_below_ten_pairs_it_is_students_t(n):
    a, b = np.random.default_rng(n).normal([[1.0], [0.5]], 1.0, (2, n))
    found = paired(by_seed(a), by_seed(b))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx(np.mean(a - b), rel=1e-12)
    assert (found.n, found.method) == (n, "Student's t")


def test_t_interval_by_hand():
    found = paired(by_seed([1, 2, 3]), by_seed([0, 0, 0]))  # mean 2, sd 1, t(2) = 4.3027
    assert found.mean == 2
    assert found.ci_high - found.mean == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)


def test_from_ten_pairs_it_is_the_bca_bootstrap():
    a, b = np.random.default_rng(5).exponential(1.0, (2, BOOTSTRAP_FROM))
    found = paired(by_seed(a), by_seed(b))
    expected = []
    for seed in range(4):  # other resamples of the same differences
        interval = stats.bootstrap((a - b,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(seed))
        expected.append(interval.confidence_interval)
    low, high = np.mean([one.low for one in expected]), np.mean([one.high for one in expected])
    spread = max(np.std([one.low for one in expected]), np.std([one.high for one in expected]), 1e-3)
    assert abs(found.ci_low - low) < 6 * spread
    assert abs(found.ci_high - high) < 6 * spread
    student = stats.ttest_rel(a, b).confidence_interval()
    assert found.ci_high - found.ci_low < student.high - student.low
    assert found.method == "BCa bootstrap"
    assert paired(by_seed(a), by_seed(b)) == found


def test_only_seeds_that_both_have_and_finite_numbers_count():
    a = by_seed([1.0, 2.0, 4.0, math.nan]) | {"9": 100.0}
    b = by_seed([0.0, 0.0, 1.0, 0.0]) | {"8": -100.0}
    found = paired(a, b)
    assert (found.n, found.mean) == (3, 2.0)
    assert paired(dict(reversed(a.items())), b) == found


def test_below_two_pairs_there_is_none():
    assert paired({}, {}) is None
    assert paired(by_seed([1.0]), by_seed([2.0])) is None
    assert paired(by_seed([1.0, 2.0]), by_seed([1.0, 2.0], first=1)) is None


@pytest.mark.parametrize("n", [3, 12])
def test_equal_values_are_a_tie(n):
    found = paired(by_seed([0.1 + 0.2] * n), by_seed([0.3] * n))  # apart by rounding
    assert (found.mean, found.ci_low, found.ci_high, found.sign) == (0.0, 0.0, 0.0, 0)


def test_equal_differences_have_no_width():
    found = paired(by_seed([1.1, 2.1, 3.1]), by_seed([1.0, 2.0, 3.0]))
    assert found.ci_low == found.ci_high == pytest.approx(0.1)
    assert (found.sign, found.method) == (1, "equal differences")


def test_the_sign_is_0_unless_the_interval_leaves_out_a_tie():
    assert paired(by_seed([1, 2, 3]), by_seed([0, 0, 0])).sign == 0
    assert paired(by_seed([10, 11, 12]), by_seed([0, 0, 0])).sign == 1
    assert paired(by_seed([0, 0, 0]), by_seed([10, 11, 12])).sign == -1


def test_three_normal_differences_are_covered_as_they_should_be():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = paired(by_seed(rng.normal(1, 1, 3)), by_seed([0, 0, 0]))
        held += found.ci_low <= 1 <= found.ci_high
    assert abs(held / 400 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)  # a bootstrap has .74
