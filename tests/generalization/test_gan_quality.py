from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy import stats

from spectral_run.datasets.base import Split
from spectral_run.generalization import gan_quality
from spectral_run.generalization.gan_quality import (
    class_table,
    frechet_distance,
    measured_quality,
    quality,
    spread,
    summary,
)
from spectral_run.generalization.gan_training import TrainingImages

CLASSES = 3


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def glyphs(seed, rows=60):
    """An upright bar, a lying bar or a square, of random brightness, and noise: 8x8, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % CLASSES
    images = 0.2 * torch.rand(rows, 1, 8, 8, generator=generator)
    places = [(slice(None), slice(3, 5)), (slice(3, 5), slice(None)), (slice(2, 6), slice(2, 6))]
    for row, label in enumerate(targets.tolist()):
        images[row, 0, *places[label]] = 0.6 + 0.4 * torch.rand((), generator=generator)
    return images, targets


@pytest.fixture
def rows():
    images, targets = glyphs(0)
    return TrainingImages(images=images, targets=targets)


def judged(images, targets, rows, epochs=4):
    return quality(images, targets, rows, *glyphs(1), epochs)


# Fréchet distance


def exact_sample(mean, covariance, rows, seed):
    """Rows whose sample mean and covariance are these exactly."""
    x = np.random.default_rng(seed).standard_normal((rows, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return torch.tensor(mean + x @ np.linalg.cholesky(covariance).T)


def test_frechet_distance_of_normal_distributions_in_closed_form():
    # Covariances that commute: |m - n|^2 + sum (sqrt c - sqrt d)^2.
    first = exact_sample(np.array([1.0, 0.0, -2.0]), np.diag([4.0, 1.0, 9.0]), 50, 0)
    second = exact_sample(np.array([0.0, 3.0, -2.0]), np.diag([1.0, 25.0, 4.0]), 70, 1)
    assert math.isclose(frechet_distance(first, second), 1 + 9 + 1 + 16 + 1, rel_tol=1e-9)
    assert math.isclose(frechet_distance(first + 5, first), 75, rel_tol=1e-9)
    assert abs(frechet_distance(first, first)) < 1e-9


def test_frechet_distance_against_the_matrix_square_root():
    rng = np.random.default_rng(2)
    factors = rng.standard_normal((2, 6, 6))
    (c, d), (m, n) = (f @ f.T for f in factors), rng.standard_normal((2, 6))
    assert np.abs(c @ d - d @ c).max() > 0.1
    expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)
    found = frechet_distance(exact_sample(m, c, 40, 3), exact_sample(n, d, 41, 4))
    assert math.isclose(found, expected, rel_tol=1e-7)
    assert math.isclose(found, frechet_distance(exact_sample(n, d, 41, 4), exact_sample(m, c, 40, 3)), rel_tol=1e-9)


def test_frechet_distance_of_singular_covariances():
    """A feature that never fires, and images that are all the same."""
    sample = torch.cat([exact_sample(np.zeros(2), np.diag([4.0, 9.0]), 30, 0), torch.zeros(30, 1)], 1)
    assert abs(frechet_distance(sample, sample)) < 1e-9
    assert math.isclose(frechet_distance(sample, torch.zeros(5, 3)), 13, rel_tol=1e-9)


# Diversity


def test_spread_is_the_mean_over_pairs():
    images, targets = glyphs(3, rows=9)
    found = spread(images, targets, CLASSES)
    for label in range(CLASSES):
        own = images[targets == label].double()
        pairs = [float((own[i] - own[j]).norm()) for i in range(3) for j in range(i)]
        assert math.isclose(found[label], np.mean(pairs), rel_tol=1e-6)
    assert np.isnan(spread(images[:4], targets[:4], CLASSES)[1:]).all()


def test_a_collapsed_class_shows(rows):
    images, targets = glyphs(2)
    numbers = summary(judged(images, targets, rows))
    assert all(0.8 < value < 1.2 for value in numbers["diversity"])
    images[targets == 1] = images[1].clone()
    numbers = summary(judged(images, targets, rows))
    assert numbers["least_diverse_class"] == 1
    assert numbers["least_diversity"] == numbers["diversity"][1] == 0
    assert min(numbers["diversity"][0], numbers["diversity"][2]) > 0.8
    # The same for the whole set: nothing is divided by 0, and FID is far off.
    constant = summary(judged(images[1:2].expand(60, -1, -1, -1).contiguous(), targets, rows))
    assert constant["diversity"] == [0, 0, 0]
    assert constant["fid"] > 3 * numbers["fid"] > 0


def test_copies_of_training_images_show(rows):
    fresh, targets = glyphs(2)
    numbers = summary(judged(fresh, targets, rows))
    assert numbers["nearest_median"] > 0.4
    assert numbers["copies"] < 0.2
    numbers = summary(judged(rows.images, rows.targets, rows))
    assert numbers["nearest_median"] == 0
    assert numbers["copies"] == 1
    assert numbers["copies_below"] > 0.4
    assert numbers["nearest_median_of_test_images"] > 0.4


# The classifier's judgement


def test_label_agreement(rows):
    images, targets = glyphs(2)
    numbers = summary(judged(images, targets, rows, epochs=40))
    assert numbers["classifier_accuracy"] >= 0.97
    assert numbers["label_agreement"] >= 0.97
    assert "notice" not in numbers
    wrong = targets.clone()
    wrong[:15] = (wrong[:15] + 1) % CLASSES
    found = judged(images, wrong, rows, epochs=40)
    assert abs(summary(found)["label_agreement"] - 0.75) < 0.05
    low, high = stats.binomtest(int(found["agrees"].sum()), 60).proportion_ci(method="wilson")
    assert summary(found)["label_agreement_ci"] == pytest.approx([low, high])


def test_a_poor_classifier_is_said_to_be_one(rows):
    found = dict(judged(*glyphs(2), rows))
    found["classifier_right"] = np.arange(100) < 90
    assert "is right on 90.0% of the test images, below 97%" in summary(found)["notice"]
    json.dumps(summary(found), allow_nan=False)


def test_class_table(rows):
    images, targets = glyphs(2)
    found = judged(images, targets, rows)
    right = targets.numpy() != 2
    table = class_table(found, targets.numpy(), {"accuracy": right})
    assert table["class"].tolist() == [0, 1, 2]
    assert table["images"].tolist() == [20, 20, 20]
    assert table["accuracy"].tolist() == [1, 1, 0]
    assert table["label_agreement"].mean() == pytest.approx(found["agrees"].mean())
    assert table["nearest_median"].tolist() == [
        pytest.approx(np.median(found["nearest"][targets == k])) for k in range(3)
    ]
    assert table["diversity"].tolist() == summary(found)["diversity"]


def test_measured_once_per_images_and_test_set(rows, monkeypatch):
    images, targets = glyphs(2)
    test = Split(*glyphs(1))
    first = measured_quality("key", images, targets, rows, test, 1)

    def must_not_measure(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(gan_quality, "quality", must_not_measure)
    again = measured_quality("key", images, targets, rows, test.to(torch.device("cpu"), torch.float64), 1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    other = Split(*glyphs(5))
    for key, split, epochs in [("other", test, 1), ("key", other, 1), ("key", test, 2)]:
        with pytest.raises(AssertionError, match="measured again"):
            measured_quality(key, images, targets, rows, split, epochs)
