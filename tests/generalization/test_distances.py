"""Distances to the nearest of a set, and the bins they fall into."""

import numpy as np
import pytest
import torch

from spectral_run.generalization.distances import Bins, nearest


def random_rows(rows, values=9, seed=0):
    return torch.randn(rows, values, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_against_every_pair():
    images, reference = random_rows(40), random_rows(23, seed=1)
    found = nearest(images, reference)
    a, b = images[:, None], reference[None]
    np.testing.assert_allclose(found.distance, (a - b).norm(dim=2).amin(1).numpy(), atol=2e-9)
    cosine = (a * b).sum(2) / a.norm(dim=2) / b.norm(dim=2)
    np.testing.assert_allclose(found.cosine, cosine.amax(1).numpy(), atol=2e-9)
    assert found.distance.shape == found.cosine.shape == (40,)


def test_equal_images_are_at_0_and_1_exactly_and_opposite_ones_at_minus_1():
    images = 1e3 * random_rows(50, 256)
    found = nearest(images, images.flip(0))
    assert np.all(found.distance == 0)
    assert np.all(found.cosine == 1)
    assert np.all(nearest(images[:1], -images[:1]).cosine == -1)


def test_small_differences_keep_their_digits():
    images = random_rows(20, 256)
    moved = images.clone()
    moved[:, 3] += 1e-6  # the matrix product alone would make 1e-6 +- 1e-7 of this
    np.testing.assert_allclose(nearest(moved, images).distance, 1e-6, atol=1e-9)


def test_scaling_and_rotation():
    images, reference = random_rows(15), random_rows(12, seed=1)
    turn, _ = torch.linalg.qr(random_rows(9, seed=2))
    found, other = nearest(images, reference), nearest(3 * images @ turn, 3 * reference @ turn)
    np.testing.assert_allclose(other.distance, 3 * found.distance, atol=5e-9)
    np.testing.assert_allclose(other.cosine, found.cosine, atol=5e-9)


def test_an_image_of_zeros_is_like_nothing():
    zeros = torch.zeros(2, 9)
    found = nearest(zeros, random_rows(5).float())
    assert np.all(found.cosine == 0)
    assert np.all(nearest(random_rows(5), zeros.double()).cosine == 0)
    assert np.all(nearest(zeros, zeros).distance == 0)


@pytest.mark.parametrize("block", [1, 100, 10**9])
def test_the_block_size_changes_nothing(block, monkeypatch):
    images, reference = random_rows(60, 256), random_rows(31, 256, seed=1)
    before = nearest(images, reference)
    monkeypatch.setattr("spectral_run.generalization.distances._BLOCK", block)
    after = nearest(images, reference)
    assert np.array_equal(before.distance, after.distance)
    assert np.array_equal(before.cosine, after.cosine)


def test_bins_have_their_lower_edge_and_not_their_upper_one():
    bins = Bins(start=0.5, width=0.025, count=20)
    assert bins.edges[0] == 0.5
    assert bins.edges[-1] == 1.0
    assert len(bins.edges) == 21
    values = np.array([0.4, 0.5, 0.525, 0.549999, 0.55, 0.999999, 1.0, 2.0])
    assert bins.of(values).tolist() == [-1, 0, 1, 1, 2, 19, 20, 20]
    for k in range(20):  # where 0.5 + 0.025 k is rounded down, too
        assert bins.of(np.array([round(0.5 + 0.025 * k, 3)])).tolist() == [k]
    counts = bins.counts(values)
    assert counts.tolist() == [1, 1, 2, 1, *[0] * 16, 1, 2]
    assert counts.sum() == len(values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.0, "width": 0.0, "count": 3}, "width > 0, got 0.0 and 0.0"),
        ({"start": float("nan"), "width": 1.0, "count": 3}, "start must be finite"),
        ({"start": 0.0, "width": 1.0, "count": 0}, "count must be >= 1, got 0"),
    ],
)
def test_bins_that_can_not_be(settings, message):
    with pytest.raises(ValueError, match=f"Bins: .*{message}"):
        Bins(**settings)
