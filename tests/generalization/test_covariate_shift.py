import math
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from spectral_run.datasets.base import DataHome
from spectral_run.generalization import covariate_shift
from spectral_run.generalization.covariate_shift import CovariateShift, effective_sample_size, shift_weights

NO_HOME = DataHome(Path("unused"), download=False)
GRID = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)  # a standard normal sample without sampling error


def features(rows=400, columns=5, seed=0):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x - x.mean(0)) / x.std(0, correction=0)


def first_positive(x):
    return (x[:, 0] > 0).long()


def test_weights_are_the_ratio_of_normal_densities():
    x, shifts = features().numpy(), np.random.default_rng(0).normal(0, 0.3, (4, 5))
    weights = shift_weights(x, shifts)
    for column, d in zip(weights.T, shifts, strict=True):
        ratio = (stats.norm.pdf(x, loc=d) / stats.norm.pdf(x)).prod(axis=1)
        np.testing.assert_allclose(column / column.sum(), ratio / ratio.sum(), rtol=1e-12)


@pytest.mark.parametrize("d", [-0.5, 0.1, 0.3])
def test_a_normal_feature_moves_by_d_and_costs_exp_of_d_squared(d):
    weights = shift_weights(GRID[:, None], np.array([[d]]))
    assert (weights[:, 0] @ GRID) / weights.sum() == pytest.approx(d, rel=1e-3)
    assert effective_sample_size(weights)[0] / len(GRID) == pytest.approx(math.exp(-(d**2)), rel=1e-3)


def test_a_normal_features_classifier_has_its_closed_form_accuracy(make_data):
    """Right where x > t: the accuracy under a shift d of x is the normal probability of x + d > t."""
    t, d = -0.7, 0.25
    weights = shift_weights(GRID[:, None], np.array([[d]]))
    right = t < GRID
    assert right @ weights[:, 0] / weights.sum() == pytest.approx(stats.norm.cdf(d - t), rel=1e-4)

    # The whole test on the same sample: the mean over d ~ N(0, s^2) of that probability has a closed form too.
    x, s = torch.tensor(GRID[::40, None]), 0.4
    data = make_data(x, (x[:, 0] > t).long())
    result = CovariateShift(shifts=2000, scale=s).evaluate(lambda x: torch.ones(len(x)).long(), data, NO_HOME)
    metric = result.metrics["weighted_accuracy"]
    standard_error = (metric.ci_high - metric.value) / 1.96
    assert abs(metric.value - stats.norm.cdf(-t / math.sqrt(1 + s**2))) < 3 * standard_error
    d = CovariateShift(shifts=2000, scale=s).random_shifts("toy", 1)[:, 0]
    assert metric.value == pytest.approx(stats.norm.cdf(d - t).mean(), abs=1e-3)


def test_against_a_direct_loop(make_data):
    x = features(rows=60)
    y = torch.arange(60) % 2
    test = CovariateShift(shifts=20, scale=0.2)
    result = test.evaluate(first_positive, make_data(x, y), NO_HOME)
    assert result.details["excluded"] == []
    correct = (first_positive(x) == y).double()
    changes, sizes = [], []
    for d in torch.tensor(test.random_shifts("toy", 5)):
        w = torch.exp(x @ d - (d @ d) / 2)
        changes.append(float((w @ correct) / w.sum() / correct.mean() - 1))
        sizes.append(float(w.sum() ** 2 / (w @ w)))
    metrics = result.metrics
    assert metrics["relative_change"].value == pytest.approx(np.mean(changes), rel=1e-9)
    assert metrics["relative_change_sd"].value == pytest.approx(np.std(changes, ddof=1), rel=1e-9)
    assert metrics["effective_sample_size"].value == pytest.approx(np.mean(sizes), rel=1e-9)
    half = 1.96 * np.std(changes, ddof=1) / math.sqrt(20)
    assert metrics["relative_change"].ci_high == pytest.approx(np.mean(changes) + half, rel=1e-3)
    for j in range(5):
        w = torch.exp(test.probe * x[:, j])
        expected = float((w @ correct) / w.sum() / correct.mean() - 1)
        assert result.details["probe_relative_change"][j] == pytest.approx(expected, rel=1e-9)


def test_interval_over_examples_agrees_with_the_bootstrap(make_data):
    x = features(rows=300)
    y = (x[:, 0] + 0.8 * features(rows=300, seed=1)[:, 0] > 0).long()
    test = CovariateShift(shifts=30, scale=0.5, seed=1)
    metric = test.evaluate(first_positive, make_data(x, y), NO_HOME).metrics["relative_change_examples"]
    weights = shift_weights(x.numpy(), test.random_shifts("toy", 5))
    correct = (first_positive(x) == y).numpy()
    rng, values = np.random.default_rng(0), []
    for _ in range(1000):
        rows = rng.integers(0, 300, 300)
        w, c = weights[rows], correct[rows]
        values.append((c @ w / w.sum(axis=0)).mean() / c.mean() - 1)
    half = (metric.ci_high - metric.ci_low) / 2
    assert half == pytest.approx(1.96 * np.std(values), rel=0.1)


def test_no_shift_changes_nothing(make_data):
    x = features()
    y = torch.arange(400) % 2
    metrics = CovariateShift(shifts=5, scale=0.0).evaluate(first_positive, make_data(x, y), NO_HOME).metrics
    assert metrics["relative_change"].value == 0
    assert metrics["relative_change_sd"].value == 0
    assert metrics["relative_change_examples"].ci_high == pytest.approx(0, abs=1e-12)
    assert metrics["effective_sample_size"].value == 400
    assert metrics["weighted_accuracy"].value == metrics["test"].value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_always_right_never_changes(make_data, dtype):
    x = features().to(dtype)
    metrics = CovariateShift(shifts=50).evaluate(first_positive, make_data(x, first_positive(x)), NO_HOME).metrics
    for name in ("relative_change", "relative_change_sd", "relative_change_examples"):
        assert metrics[name].value == pytest.approx(0, abs=1e-12)
        assert metrics[name].ci_high == pytest.approx(0, abs=1e-12)


def rare(rows, ones):
    column = torch.zeros(rows, dtype=torch.float64)
    column[:ones] = 1
    return (column - column.mean()) / column.std(correction=0)


def test_rare_binary_and_constant_features_are_excluded_and_listed(make_data):
    rows = 2000
    columns = [features(rows, 1)[:, 0], rare(rows, 1), rare(rows, 1000), torch.ones(rows).double(), rare(rows, 40)]
    data = make_data(torch.stack(columns, dim=1), torch.arange(rows) % 2)
    test = CovariateShift(shifts=10)
    result = test.evaluate(first_positive, data, NO_HOME)
    excluded = {entry["feature"]: entry for entry in result.details["excluded"]}
    assert list(excluded) == [1, 3]
    assert excluded[3]["reason"] == "constant"
    assert excluded[1]["rows_off_the_mode"] == 1
    assert excluded[1]["effective_share"] < math.exp(-test.tolerance * test.probe**2)
    assert "0.9512" in result.details["rule"]
    assert result.details["features_shifted"] == 3

    # The same features are excluded, and the same shifts drawn, whatever the model answers.
    other = test.evaluate(lambda x: torch.zeros(len(x)).long(), data, NO_HOME)
    assert other.details["excluded"] == result.details["excluded"]
    assert other.metrics["effective_sample_size"] == result.metrics["effective_sample_size"]


def test_nothing_left_to_shift(make_data):
    data = make_data(torch.ones(20, 2), torch.zeros(20).long())
    with pytest.raises(ValueError, match=r"CovariateShift: no feature of toy is left after the probe of 0\.1"):
        CovariateShift().evaluate(lambda x: torch.zeros(len(x)).long(), data, NO_HOME)


def test_blocks_change_nothing_and_bound_the_memory(make_data, monkeypatch):
    data = make_data(features(rows=500), torch.arange(500) % 2)
    test = CovariateShift(shifts=400)
    whole = test.evaluate(first_positive, data, NO_HOME).metrics
    monkeypatch.setattr(covariate_shift, "_BLOCK", 5_000)  # 10 shifts at a time
    tracemalloc.start()
    blocks = test.evaluate(first_positive, data, NO_HOME).metrics
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500 * 400 * 8 / 2
    for name, metric in whole.items():
        assert blocks[name].value == pytest.approx(metric.value, rel=1e-9, abs=1e-12)


def test_large_shifts_do_not_overflow(make_data):
    data = make_data(1e3 * features(), torch.arange(400) % 2)
    metrics = CovariateShift(shifts=5, scale=50.0, tolerance=1e9).evaluate(first_positive, data, NO_HOME).metrics
    assert all(math.isfinite(metric.value) for metric in metrics.values())


def test_seed_changes_the_shifts():
    shifts = [CovariateShift(seed=seed).random_shifts("covtype", 54) for seed in (0, 0, 1)]
    assert np.array_equal(shifts[0], shifts[1])
    assert not np.array_equal(shifts[0], shifts[2])
    assert stats.kstest(shifts[0].ravel() / 0.05, "norm").pvalue > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shifts": 1}, "CovariateShift: shifts must be >= 2, got 1"),
        ({"scale": -0.1}, r"CovariateShift: scale must be >= 0, got -0\.1"),
        ({"scale": math.nan}, "CovariateShift: scale must be >= 0, got nan"),
        ({"probe": 0.0}, r"CovariateShift: probe must be > 0, got 0\.0"),
        ({"tolerance": 1.0}, r"CovariateShift: tolerance must be > 1.* got 1\.0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        CovariateShift(**arguments)


def test_data_sets_it_is_not_for(toy, images):
    with pytest.raises(ValueError, match=r"CovariateShift: features must be standardized.*toy is not"):
        CovariateShift().check(toy())
    with pytest.raises(ValueError, match=r"CovariateShift: inputs must be features .*images with \(1, 16, 16\)"):
        CovariateShift().check(images)


@pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="covtype: SPECTRAL_DATA is not set")
def test_forest_cover_excludes_the_rare_binary_columns_only(make_data):
    path = Path(os.environ["SPECTRAL_DATA"]) / "covtype" / "covtype.data.gz"
    if not path.is_file():
        pytest.skip(f"covtype: no file {path}")
    x = torch.tensor(np.loadtxt(path, delimiter=",")[:, :54])
    train, test = x[::2], x[1::2]
    deviation = train.std(0)
    z = (test - train.mean(0)) / torch.where(deviation > 0, deviation, 1.0)
    data = make_data(z, torch.zeros(len(z)).long())
    result = CovariateShift(shifts=100).evaluate(first_positive, data, NO_HOME)
    share = test.mean(0)
    excluded = {entry["feature"] for entry in result.details["excluded"]}
    assert min(excluded) >= 10  # every continuous column stays
    assert all(share[j] < 0.008 for j in excluded)
    assert all(share[j] > 0.003 for j in set(range(10, 54)) - excluded)
    normal = math.exp(-result.details["features_shifted"] * 0.05**2)
    assert result.metrics["effective_sample_size"].value / len(z) == pytest.approx(normal, abs=0.03)
