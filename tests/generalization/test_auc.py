"""Areas against scikit-learn's, and intervals against what they promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from spectral_run.generalization.auc import aucs, point_aucs, without_area

NAMES = ("a", "b", "c")


def draw(seed: int, rows: int = 60, *, ties: bool = False, missing: float = 0.0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(rows, 3))
    labels = (random.random((rows, 3)) < (0.5, 0.2, 0.1)).astype(float)
    labels[:2] = [[0] * 3, [1] * 3]
    if ties:
        scores = np.round(scores)
    unknown = random.random((rows, 3)) < missing
    unknown[:2] = False
    return scores, np.where(unknown, np.nan, labels)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_points_equal_scikit_learns(ties: bool, missing: float) -> None:
    scores, labels = draw(1, ties=ties, missing=missing)
    for j, area in enumerate(point_aucs(scores, labels)):
        there = ~np.isnan(labels[:, j])
        assert area == pytest.approx(roc_auc_score(labels[there, j], scores[there, j]), abs=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_resamples_equal_scikit_learns_with_counts_for_weights(grouped: bool, ties: bool) -> None:
    """Of resample r, the rows count as often as numpy's generator, asked the same, draws their patients."""
    scores, labels = draw(2, ties=ties, missing=0.2)
    groups = np.random.default_rng(5).permutation(60) // 4 * 7 + 100 if grouped else None
    found = aucs(scores, labels, NAMES, groups=groups, seed=11, resamples=20)
    numbers = np.arange(60) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = numbers.max() + 1
    picked = np.random.default_rng(11).integers(count, size=(20, count))
    for resample, mean in zip(picked, found.resampled, strict=True):
        weights = np.bincount(resample, minlength=count)[numbers].astype(float)
        areas = []
        for j in range(3):
            used = (weights > 0) & ~np.isnan(labels[:, j])
            if len(set(labels[used, j])) == 2:
                areas.append(roc_auc_score(labels[used, j], scores[used, j], sample_weight=weights[used]))
        assert mean == pytest.approx(np.mean(areas), abs=1e-12)


def test_identities() -> None:
    scores, labels = draw(3)
    area = point_aucs(scores, labels)
    assert point_aucs(np.exp(scores), labels) == pytest.approx(area, abs=0)  # of ranks alone
    assert point_aucs(-scores, labels) == pytest.approx(1 - area, abs=1e-12)
    assert point_aucs(scores, 1 - labels) == pytest.approx(1 - area, abs=1e-12)
    assert point_aucs(labels, labels) == pytest.approx(np.ones(3), abs=0)
    assert point_aucs(np.zeros_like(scores), labels) == pytest.approx(np.full(3, 0.5), abs=0)
    twice = aucs(np.tile(scores, (2, 1)), np.tile(labels, (2, 1)), NAMES, groups=np.tile(np.arange(60), 2), seed=4)
    once = aucs(scores, labels, NAMES, seed=4)
    assert twice.resampled == pytest.approx(once.resampled, abs=1e-12)  # a patient's second copy says nothing new
    assert (once.mean.n, twice.mean.n) == (60, 120)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = draw(6)
    whole = aucs(scores, labels, NAMES, seed=1, resamples=50)
    monkeypatch.setattr("spectral_run.generalization.auc._BLOCK", 60 * 7)
    assert np.array_equal(aucs(scores, labels, NAMES, seed=1, resamples=50).resampled, whole.resampled)


def test_outputs_with_one_label_are_left_out_and_named() -> None:
    scores, labels = draw(7)
    labels = np.column_stack([labels[:, 0], np.zeros(60), np.ones(60), np.full(60, np.nan)])
    scores = np.column_stack([scores, scores[:, 0]])
    names = ("both", "none", "all", "unknown")
    left_out = {"none": "no positive", "all": "no negative", "unknown": "no label"}
    assert without_area(labels, names) == left_out
    found = aucs(scores, labels, names, seed=0, resamples=10)
    assert dict(found.left_out) == left_out
    assert list(found.each) == ["both"]
    assert found.mean == found.each["both"]
    assert np.isnan(point_aucs(scores, labels)).tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="aucs: some output must have both labels; none: no positive, all: no neg"):
        aucs(scores[:, 1:3], labels[:, 1:3], names[1:3], seed=0)


def test_a_resample_without_both_labels_is_left_out_of_its_mean() -> None:
    """A single positive is missing from a third of the resamples; their mean is the other output's."""
    random = np.random.default_rng(8)
    scores = random.normal(size=(40, 2))
    labels = np.column_stack([random.random(40) < 0.5, np.arange(40) == 0]).astype(float)
    both = aucs(scores, labels, ("often", "once"), seed=3)
    often = aucs(scores[:, :1], labels[:, :1], ("often",), seed=3)
    alone = both.resampled == often.resampled
    assert 0.30 < alone.mean() < 0.44  # (1 - 1/40)^40 = 0.363
    assert not np.isnan(both.resampled).any()
    only = aucs(scores[:, 1:], labels[:, 1:], ("once",), seed=3)
    assert np.array_equal(np.isnan(only.resampled), alone)
    metric = only.mean
    assert metric.ci_low <= metric.value <= metric.ci_high


def coverage(positives: int, negatives: int, samples: int) -> float:
    """How often the interval holds the area of normal scores that are 1 apart."""
    truth = float(norm.cdf(1 / 2**0.5))
    labels = np.r_[np.ones(positives), np.zeros(negatives)][:, None]
    held = 0
    for number in range(samples):
        scores = np.random.default_rng([number, positives]).normal(size=labels.shape) + labels
        metric = aucs(scores, labels, ("x",), seed=number, resamples=300).mean
        held += metric.ci_low <= truth <= metric.ci_high
    return held / samples


def test_coverage() -> None:
    """Inside three standard errors of what it is said to be: 94% with 50 positives, too few with 5."""
    assert abs(coverage(50, 450, 250) - 0.944) < 3 * (0.944 * 0.056 / 250) ** 0.5
    assert 0.80 < coverage(5, 45, 250) < 0.93


def test_patients_not_rows_are_what_is_sampled() -> None:
    """Where a patient's rows are copies, resampling rows promises twice the precision."""
    random = np.random.default_rng(9)
    labels = np.repeat((random.random(100) < 0.3).astype(float), 4)[:, None]
    scores = np.repeat(random.normal(size=100), 4)[:, None] + labels
    rows = aucs(scores, labels, ("x",), seed=0).mean
    patients = aucs(scores, labels, ("x",), groups=np.repeat(np.arange(100), 4), seed=0).mean
    assert patients.value == rows.value
    assert (patients.ci_high - patients.ci_low) / (rows.ci_high - rows.ci_low) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("a",)}, "aucs: names must be as many as outputs, 3, got 1"),
        ({"resamples": 0}, "aucs: resamples must be at least 1, got 0"),
        ({"labels": np.full((60, 3), 0.5)}, "aucs: labels must be 0, 1 or NaN"),
        ({"scores": np.full((60, 3), np.nan)}, "aucs: scores must be finite"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    scores, labels = draw(1)
    given = {"scores": scores, "labels": labels, "names": NAMES, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        aucs(**given)
