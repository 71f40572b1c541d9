"""The tests behind the verdicts: against scipy, against their definition, and how often they find what is not there."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from spectral_run.reports import evidence
from spectral_run.reports.evidence import (
    ALPHA,
    CONTRADICTED,
    SUPPORTED,
    UNDECIDED,
    UNTESTED,
    Evidence,
    correlation,
    difference,
    holm,
    judge,
    over_pairs,
    over_seeds,
    trend,
)


def by_seed(values) -> dict[str, float]:
    return {str(seed): float(value) for seed, value in enumerate(values)}


def grid(x, y, given=None, strata=None, kind="Pearson", sign=1) -> Evidence | None:
    """Models of ten values of mu, as many of each."""
    each = len(x) // 10
    return correlation("", x, y, [i // each for i in range(len(x))], given=given, strata=strata, kind=kind, sign=sign)


def test_over_seeds_is_the_t_test() -> None:
    values = [0.2, 0.5, 0.9, 0.1]
    found = over_seeds("", by_seed(values), null=0.1, sign=-1)
    want = stats.ttest_1samp(values, 0.1, alternative="less")
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.p, found.p_against) == pytest.approx((want.pvalue, 1 - want.pvalue))


def test_a_difference_is_paired_by_seed() -> None:
    found = difference("", {"0": 3.0, "1": 5.0, "2": 7.0, "9": 0.0}, {"2": 6.0, "1": 3.5, "0": 1.0})
    want = stats.ttest_rel([3.0, 5.0, 7.0], [1.0, 3.5, 6.0]).confidence_interval(0.95)
    assert found is not None
    assert (found.n, found.low, found.high) == (3, pytest.approx(want.low), pytest.approx(want.high))


def test_one_seed_is_no_test() -> None:
    assert over_seeds("", {"0": 1.0, "1": math.nan}) is None
    assert difference("", {"0": 1.0}, {"0": 0.0, "1": 0.0}) is None


@pytest.mark.parametrize("offset", [0.1, 0.0])
def test_equal_differences_support_nothing(offset: float) -> None:
    """Three runs that lie apart by the very same: there is no spread to judge by."""
    found = difference("", {str(i): i + offset for i in range(3)}, {str(i): float(i) for i in range(3)})
    assert found is not None
    assert math.isnan(found.low)
    assert judge([found]).outcome == UNDECIDED


def test_trend_has_spearmans_value_and_the_share_of_permutations() -> None:
    pairs = [(0.001, 3.0), (0.001, 4.0), (0.005, 2.0), (0.01, 2.5), (0.02, 1.0)]
    found = trend("", {"0": pairs, "1": pairs}, sign=-1)
    assert found is not None
    assert found.value == pytest.approx(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
    # The same in full: each of the 120 orders of one seed with each of the other's.
    ranks = [stats.rankdata(side) for side in zip(*pairs, strict=True)]
    each = [np.corrcoef(ranks[0], order)[0, 1] for order in itertools.permutations(ranks[1])]
    exact = np.mean(np.add.outer(each, each).ravel() / 2 <= found.value + 1e-12)
    assert found.p == pytest.approx(exact, abs=3 * math.sqrt(exact / evidence.PERMUTATIONS) + 1e-4)


def test_a_trend_needs_two_seeds_or_many_levels() -> None:
    falling = [(float(level), -float(level)) for level in range(10)]
    assert trend("", {"0": falling[:5]}, sign=-1) is None
    found = trend("", {"0": falling}, sign=-1)
    assert found is not None
    assert found.n == 10
    assert judge([found]).outcome == SUPPORTED
    assert trend("", {"0": falling[:2], "1": falling[:2]}, sign=-1) is None
    assert trend("", {"0": [(1.0, 2.0)] * 5, "1": [(1.0, 3.0)] * 5}, sign=-1) is None


def test_correlation_is_scipys_and_no_narrower_than_fishers() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=70)
    y = 0.5 * x + random.normal(size=70)
    for kind, scipys in (("Pearson", stats.pearsonr), ("Spearman", stats.spearmanr)):
        found = grid(x, y, kind=kind)
        assert found.value == pytest.approx(scipys(x, y).statistic)
        assert judge([found]).outcome == SUPPORTED
    fisher = stats.pearsonr(x, y).confidence_interval(0.95)
    found = grid(x, y)
    assert found.low <= fisher.low + 1e-12
    assert fisher.high <= found.high + 1e-12
    assert judge([grid(x, -y)]).outcome == CONTRADICTED


def test_the_partial_correlation_is_the_formulas() -> None:
    random = np.random.default_rng(1)
    loss = random.normal(size=70)
    x, y = loss + random.normal(size=70), loss + random.normal(size=70)
    xy, xz, yz = (stats.pearsonr(*pair).statistic for pair in ((x, y), (x, loss), (y, loss)))
    found = grid(x, y, given=loss)
    assert found.value == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))
    assert judge([grid(x, y)]).outcome == SUPPORTED
    assert judge([found]).outcome == UNDECIDED  # the loss was behind both


def test_what_a_seed_shares_is_no_evidence() -> None:
    random = np.random.default_rng(2)
    seeds = np.repeat([0.0, 5.0, 9.0], 20)
    x, y = seeds + random.normal(size=60), seeds + random.normal(size=60)
    clusters = [(seed, i // 2) for i, seed in enumerate(seeds)]
    for kind in ("Pearson", "Spearman"):
        assert correlation("", x, y, clusters, kind=kind).value > 0.8
        assert abs(correlation("", x, y, clusters, strata=list(seeds), kind=kind).value) < 0.3


def test_copies_of_a_model_count_once() -> None:
    random = np.random.default_rng(3)
    x, y = random.normal(size=20), random.normal(size=20)
    mus = [i // 2 for i in range(20)]
    once = correlation("", x, y, mus, kind="Pearson")
    again = correlation("", [*x, *x], [*y, *y], [*mus, *mus], kind="Pearson")
    assert (once.n, once.low) == (again.n, again.low)


def test_few_models_or_few_values_of_mu_are_no_test() -> None:
    x = [float(i) for i in range(12)]
    assert correlation("", x[:9], x[:9], list(range(9)), kind="Pearson") is None
    assert correlation("", x, x, [i // 3 for i in range(12)], kind="Pearson") is None
    assert correlation("", [1.0] * 12, x, list(range(12)), kind="Pearson") is None


def test_pairs_of_models() -> None:
    rho = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    pairs = {frozenset(two): 1 - sum(rho[name] for name in two) / 11 for two in itertools.combinations(rho, 2)}
    found = over_pairs("", rho, pairs, sign=-1)
    assert found.value == pytest.approx(-1)
    assert judge([found]).outcome == SUPPORTED
    assert judge([over_pairs("", rho, pairs, sign=1)]).outcome == CONTRADICTED
    del rho["e"]
    assert over_pairs("", rho, pairs, sign=-1) is None


def evidence_of(low: float, high: float, p: float, against: float) -> Evidence:
    return Evidence(
        what="", value=(low + high) / 2, low=low, high=high, p=p, p_against=against, n=3, of="seeds", method=""
    )


FOR, NOTHING = evidence_of(0.1, 0.3, 0.01, 0.99), evidence_of(-0.1, 0.3, 0.2, 0.8)


@pytest.mark.parametrize(
    ("tests", "missing", "outcome"),
    [
        ([], [], UNTESTED),
        ([FOR], [], SUPPORTED),
        ([FOR], ["a model diverged"], UNDECIDED),
        ([FOR, NOTHING], [], UNDECIDED),
        ([FOR, evidence_of(-0.3, -0.1, 0.99, 0.012)], [], CONTRADICTED),
        ([FOR, evidence_of(-0.3, -0.1, 0.99, 0.013)], [], UNDECIDED),  # two tests: twice the p
        ([evidence_of(0.1, 0.3, 0.03, 0.97)], [], UNDECIDED),  # the interval alone does not do
        ([evidence_of(-0.1, 0.3, 0.01, 0.99)], [], UNDECIDED),  # nor p alone
    ],
)
def test_the_rule(tests: list[Evidence], missing: list[str], outcome: str) -> None:
    found = judge(tests, missing)
    assert found.outcome == outcome
    assert math.isnan(found.p) == (not tests)
    if tests:
        assert found.p == max(test.p for test in tests)


def test_holm() -> None:
    assert holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def supported(tests, samples: int) -> float:
    """Share of samples without an effect that come out as supported."""
    random = np.random.default_rng(0)
    return sum(judge(tests(random)).outcome == SUPPORTED for _ in range(samples)) / samples


def correlations(random: np.random.Generator, own: float) -> list[Evidence]:
    """70 models in which all that is shared by those of one mu has nothing to do with the gap."""
    shared = np.repeat(random.normal(size=(2, 10)), 7, axis=1)
    x, y = shared + own * random.normal(size=(2, 70))
    return [grid(np.exp(x), y)]


@pytest.mark.parametrize(
    ("tests", "samples"),
    [
        (lambda r: [difference("", by_seed(r.normal(size=3)), by_seed(r.normal(size=3)))], 2000),
        (lambda r: [difference("", *(by_seed(r.binomial(2007, 0.95, 3) / 2007) for _ in "ab"))], 2000),
        (lambda r: [trend("", {str(s): list(enumerate(r.normal(size=4))) for s in range(3)}, sign=-1)], 300),
        (lambda r: [trend("", {"0": list(enumerate(r.normal(size=10)))}, sign=-1)], 300),
        (lambda r: [grid(np.exp(2 * r.normal(size=70)), r.normal(size=70), kind="Spearman")], 150),
        (lambda r: correlations(r, 1.0), 300),
        (lambda r: correlations(r, 0.1), 300),
        (lambda r: [over_seeds("", by_seed(0.65 + 0.02 * r.normal(size=3)), null=0.65)], 2000),
    ],
    ids=["seeds", "accuracies", "trend", "one seed", "independent", "clusters", "near copies", "edge"],
)
def test_no_effect_is_seldom_supported(tests, samples: int) -> None:
    """At most ``ALPHA``, to three standard errors of so many samples."""
    assert supported(tests, samples) <= ALPHA + 3 * math.sqrt(ALPHA / samples)


def test_fishers_interval_alone_would_find_what_is_not_there() -> None:
    """Models that are near copies by mu: 70 of them tell no more than ten; why the jackknife is there."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        shared = np.repeat(random.normal(size=(2, 10)), 7, axis=1)
        x, y = shared + 0.1 * random.normal(size=(2, 70))
        wrong += stats.pearsonr(x, y).confidence_interval(0.95).low > 0
    assert wrong / 200 > 0.1
