import math

import numpy as np
import pytest
from scipy import stats

from spectral_run.reports.paired import BOOTSTRAP_FROM, paired


def by_seed(values, first=0):
    return {str(first + i): float(value) for i, value in enumerate(values)}


@pytest.mark.parametrize("n", [2, 3, 7])
def test_below_eight_pairs_it_is_students_t(n):
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


def test_from_eight_pairs_it_is_the_bootstrap_t():
    a, b = np.random.default_rng(5).exponential(1.0, (2, BOOTSTRAP_FROM))
    found = paired(by_seed(a), by_seed(b))
    rng, d = np.random.default_rng(1), a - b  # other resamples of the same differences, one by one
    drawn = [rng.choice(d, len(d)) for _ in range(20_000)]
    t = sorted((one.mean() - d.mean()) / (one.std(ddof=1) / math.sqrt(len(d))) for one in drawn)
    error = d.std(ddof=1) / math.sqrt(len(d))
    low, high = d.mean() - t[19_500] * error, d.mean() - t[500] * error
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=0.1 * (high - low))
    student = stats.ttest_rel(a, b).confidence_interval()
    assert found.ci_low > student.low  # it leans to the long tail, which Student's t knows nothing of
    assert found.ci_high > student.high
    assert found.method == "bootstrap-t"
    assert paired(by_seed(a), by_seed(b)) == found


def test_students_t_stands_in_where_many_resamples_are_of_one_value():
    found = paired(by_seed([0.0] * 7 + [1.0]), by_seed([0.0] * 8))  # a third
    expected = stats.ttest_1samp([0.0] * 7 + [1.0], 0).confidence_interval()
    assert (found.ci_low, found.ci_high) == pytest.approx((expected.low, expected.high))
    assert found.method == "Student's t"


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


@pytest.mark.parametrize("n", [3, 10])
def test_normal_differences_are_covered_as_they_should_be(n):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = paired(by_seed(rng.normal(1, 1, n)), by_seed([0] * n))
        held += found.ci_low <= 1 <= found.ci_high
    assert abs(held / 400 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)  # BCa has .74 and .90
