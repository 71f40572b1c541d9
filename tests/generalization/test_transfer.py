import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_run.datasets.base import DataHome
from spectral_run.datasets.mnist import load_test_images
from spectral_run.generalization.transfer import Transfer, resize


def ink(x):
    """A rule on the total brightness: its answers differ from image to image."""
    return (x.flatten(1).sum(1) * 7).long() % 10


def test_resize_is_pillows():
    images = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    ours = resize(images, (16, 16), 0.0, 1.0)
    assert ours.shape == (3, 1, 16, 16)
    for image, small in zip(images, ours, strict=True):
        theirs = np.asarray(Image.fromarray(image.numpy()).resize((16, 16), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(small[0].numpy(), theirs, atol=1e-5)


def test_resize_keeps_constants_and_maps_the_range():
    images = torch.stack([torch.zeros(28, 28), torch.ones(28, 28)])
    small = resize(images, (16, 12), -1.0, 3.0)
    torch.testing.assert_close(small[0], torch.full((1, 16, 12), -1.0))
    torch.testing.assert_close(small[1], torch.full((1, 16, 12), 3.0))


def test_metrics_against_a_direct_computation(images, home):
    data = images.load(home)
    result = Transfer().evaluate(ink, data, home)
    source = load_test_images(home)
    low, high = float(data.test.inputs.min()), float(data.test.inputs.max())
    accuracy = (ink(resize(source.images, (16, 16), low, high)) == source.labels).double().mean().item()
    plain = (ink(data.test.inputs) == data.test.targets).double().mean().item()
    assert result.metrics["accuracy"].value == pytest.approx(accuracy)
    assert result.metrics["accuracy"].n == 60
    assert result.metrics["test"].value == pytest.approx(plain)
    assert result.metrics["gap"].value == pytest.approx(accuracy / plain - 1)
    assert result.details["official"] is False
    assert len(result.details["files"]) == 2
    assert result.details["range"] == [low, high]


def test_network_sees_its_own_size_range_and_dtype(images, home):
    data = images.load(home)
    met = []

    def predict(x):
        met.append(x)
        return ink(x)

    Transfer().evaluate(predict, data.to(torch.device("cpu"), torch.float64), home)
    assert [tuple(x.shape[1:]) for x in met] == [(1, 16, 16)] * 2
    assert all(x.dtype == torch.float64 for x in met)
    assert met[1].min() >= met[0].min() - 1e-6
    assert met[1].max() <= met[0].max() + 1e-6


def test_missing_files_are_named_before_any_training(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        Transfer().prepare(images, DataHome(tmp_path, download=False))


def test_data_sets_it_is_not_for(toy, features):
    with pytest.raises(
        ValueError, match=r"Transfer: data set must have images of 1 channel and 10 classes, got features"
    ):
        Transfer().check(features)
    with pytest.raises(ValueError, match=r"got toy with \(3, 32, 32\) and 10 classes"):
        Transfer().check(toy(shape=(3, 32, 32), toy_classes=10))
    with pytest.raises(ValueError, match="Transfer: data set must not be mnist, the source itself"):
        Transfer().check(toy(toy_name="mnist", shape=(1, 28, 28), toy_classes=10))


def test_wrong_source():
    with pytest.raises(ValueError, match="Transfer: source must be one of mnist, got 'svhn'"):
        Transfer(source="svhn")


@pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="mnist: SPECTRAL_DATA is not set")
def test_the_real_test_images(images):
    home = DataHome(Path(os.environ["SPECTRAL_DATA"]), download=False)
    try:
        Transfer().prepare(images, home)
    except FileNotFoundError as error:
        pytest.skip(f"mnist: {error}")
    result = Transfer().evaluate(ink, images.load(home), home)
    assert result.metrics["accuracy"].n == 10_000
    assert result.details["official"] is True
