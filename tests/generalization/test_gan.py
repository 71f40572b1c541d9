import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_run.datasets.base import DataHome, Split
from spectral_run.datasets.usps import USPS
from spectral_run.generalization import gan_training
from spectral_run.generalization.gan import GAN
from spectral_run.generalization.gan_training import drawn_images, training_images

NOWHERE = DataHome(Path("nowhere"), download=False)


def quick(kind="mlp", **settings):
    return GAN(**{"kind": kind, "epochs": 1, "count": 40, "classifier_epochs": 1, **settings})


@pytest.fixture
def data(images):
    """Three different splits, the test set with values outside those of training."""
    rows = images.load(NOWHERE).train
    parts = [Split(rows.inputs[part], rows.targets[part]) for part in (slice(0, 80), slice(80, 100), slice(100, 120))]
    return replace(images.load(NOWHERE), train=parts[0], validation=parts[1], test=parts[2])


@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
def test_images(kind, data):
    found = quick(kind).images(data, NOWHERE)
    assert found.images.shape == (40, 1, 16, 16)
    assert found.images.dtype == torch.float32
    assert torch.bincount(found.targets).tolist() == [4] * 10
    low, high = training_images(data).range
    levels = (found.images - low) / (high - low) * 255
    assert float((levels - levels.round()).abs().max()) < 1e-3
    assert low <= float(found.images.min()) < float(found.images.max()) <= high
    assert found.details["training_rows"] == 100
    assert found.details["images"] == 40


def test_images_do_not_depend_on_the_networks_dtype(data):
    single, double = (
        quick().images(data.to(torch.device("cpu"), dtype), NOWHERE) for dtype in (torch.float32, torch.float64)
    )
    assert double.images.dtype == torch.float64
    torch.testing.assert_close(single.images.double(), double.images, rtol=0, atol=1e-7)
    assert single.details == double.details


def test_bytes_of_images_come_back_exactly(data):
    """Of data in [0, 1] the images are levels / 255 to the bit, as those of USPS are."""
    inputs = data.train.inputs.clone()
    inputs[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    data = replace(data, train=Split(inputs, data.train.targets))
    found = quick().images(data, NOWHERE).images
    levels = drawn_images(training_images(data), quick().recipe, 0, 40)["images"]
    assert np.array_equal(found.numpy(), levels.astype(np.float32) / np.float32(255))


def test_accuracy_of_one_who_knows(data):
    test = quick()
    source = test.images(data, NOWHERE)
    known = {row.numpy().tobytes(): int(y) for row, y in zip(source.images, source.targets, strict=True)}
    known |= {
        row.numpy().tobytes(): int(y) for row, y in zip(data.test.tensor[:15], data.test.targets[:15], strict=True)
    }

    def predict(x):
        return torch.tensor([known.get(row.numpy().tobytes(), -1) for row in x])

    metrics = test.evaluate(predict, data, NOWHERE).metrics
    assert metrics["test"].value == 0.75
    assert metrics["test"].n == 20
    assert metrics["accuracy"].value == 1
    assert metrics["accuracy"].n == 40
    assert metrics["gap"].value == pytest.approx(1 / 0.75 - 1)
    assert metrics["gap"].ci_low < metrics["gap"].value < metrics["gap"].ci_high


def test_accuracy_by_class_table_and_picture(data):
    result = quick().evaluate(lambda x: torch.full((len(x),), 3), data, NOWHERE)
    assert result.metrics["accuracy"].value == 0.1
    assert result.details["accuracy_by_class"] == {str(k): float(k == 3) for k in range(10)}
    table = result.tables["classes"]
    assert table["class"].tolist() == list(range(10))
    assert table["accuracy"].tolist() == [float(k == 3) for k in range(10)]
    assert {"label_agreement", "nearest_median", "diversity"} <= set(table)
    quality = result.details["quality"]
    assert "notice" in quality  # noise can't be classified
    json.dumps(result.details, allow_nan=False)
    figure = result.figures["samples"]
    assert [axis.get_title(loc="left").split()[0] for axis in figure.axes] == ["generated", "training"]
    assert figure.axes[0].images[0].get_array().shape == (10 * 18 - 2, 10 * 18 - 2)


@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
def test_global_random_state_is_left_alone(kind, data, tmp_path, monkeypatch):
    """With nothing cached, with weights cached only, and with everything cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    state = torch.random.get_rng_state()
    for settings in ({}, {"count": 20}, {}):
        quick(kind, **settings).evaluate(lambda x: torch.zeros(len(x), dtype=torch.long), data, NOWHERE)
        assert torch.equal(torch.random.get_rng_state(), state)


def test_trained_once_for_all_networks(data, monkeypatch):
    first = quick().evaluate(lambda x: torch.zeros(len(x), dtype=torch.long), data, NOWHERE)

    def must_not_train(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(gan_training, "train", must_not_train)
    second = quick().evaluate(lambda x: torch.ones(len(x), dtype=torch.long), data, NOWHERE)
    assert second.details["images_sha256"] == first.details["images_sha256"]
    assert second.details["quality"] == first.details["quality"]
    with pytest.raises(AssertionError, match="trained again"):
        quick(seed=1).images(data, NOWHERE)


def test_check(images, toy):
    GAN().check(images)
    GAN().check(toy(shape=(1, 8, 8), toy_classes=10))
    for shape in [(6,), (3, 16, 16), (1, 4, 4), (1, 10, 16)]:
        with pytest.raises(
            ValueError, match=r"GAN: data set must have images of 1 channel .*USPS: 16x16.*got toy with"
        ):
            GAN().check(toy(shape=shape, toy_classes=10))
    with pytest.raises(ValueError, match=r"GAN: count must be a multiple of the 3 classes of toy, .*got 10000"):
        GAN().check(toy(shape=(1, 16, 16)))
    with pytest.raises(ValueError, match=r"GAN: count must be a multiple of the 10 classes of images, .*got 10"):
        quick(count=10).check(images)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="GAN: kind must be one of mlp, convolutional, got 'dcgan'"):
        GAN(kind="dcgan")
    with pytest.raises(ValueError, match="GAN: count must be at least 1, got 0"):
        GAN(count=0)
    with pytest.raises(ValueError, match="GAN: classifier_epochs must be at least 1, got 0"):
        GAN(classifier_epochs=0)


@pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="usps: SPECTRAL_DATA is not set")
def test_the_real_digits():
    """One epoch of the quick GAN and of the classifier; the real thing takes minutes."""
    home = DataHome(Path(os.environ["SPECTRAL_DATA"]), download=False)
    try:
        data = USPS().load(home)
    except FileNotFoundError as error:
        pytest.skip(f"usps: {error}")
    assert len(training_images(data).images) == len(data.train) + len(data.validation)
    assert training_images(data).sha256 == training_images(USPS(split_seed=1).load(home)).sha256
    result = quick(count=1000).evaluate(lambda x: torch.zeros(len(x), dtype=torch.long), data, home)
    assert result.metrics["accuracy"].value == 0.1
    quality = result.details["quality"]
    assert quality["classifier_accuracy"] > 0.9
    assert quality["label_agreement"] < 0.5
    assert quality["fid"] > 5 * quality["fid_of_training_images"]
