from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from spectral_run.datasets.base import DataHome
from spectral_run.generalization import augmentation
from spectral_run.generalization.augmentation import Augmentation, black_level, crop, rotate

NO_HOME = DataHome(Path("unused"), download=False)
SHAPES = [(1, 16, 16), (3, 32, 32), (2, 9, 14)]


def pictures(rows, shape, seed=0):
    return torch.rand(rows, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zero(images):
    return torch.zeros(1, images.shape[1], 1, 1, dtype=images.dtype)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_is_torchvisions(shape, interpolation):
    angles = torch.tensor([-180.0, -30, -7.3, 0, 0.01, 12.5, 45, 89, 133])
    images = pictures(len(angles), shape)
    ours = rotate(images, angles, interpolation, zero(images))
    for image, angle, rotated in zip(images, angles, ours, strict=True):
        theirs = reference.rotate(image, float(angle), InterpolationMode(interpolation))
        # At a tie of two neighbours rounding decides: allow for one pixel in a hundred.
        near = (rotated - theirs).abs() < 1e-9
        assert near.double().mean() >= (0.99 if interpolation == "nearest" else 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_is_torchvisions(shape):
    padding = 2
    offsets = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    images = pictures(len(offsets), shape)
    ours = crop(images, offsets, padding, zero(images))
    for image, (top, left), cropped in zip(images, offsets.tolist(), ours, strict=True):
        assert torch.equal(cropped, reference.crop(reference.pad(image, [padding]), top, left, *shape[1:]))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_crop_then_rotation(interpolation):
    images = pictures(20, (1, 16, 16))
    images[0, 0, 0, 0] = 0  # black is 0
    test = Augmentation(interpolation=interpolation)
    (ours,) = test.perturbed(images, "usps", "at2", 3)
    offsets, angles = test.perturbation("usps", "at2", 3, 20)
    for image, (top, left), angle, perturbed in zip(images, offsets.tolist(), angles.tolist(), ours, strict=True):
        cropped = reference.crop(reference.pad(image, [2]), top, left, 16, 16)
        theirs = reference.rotate(cropped, angle, InterpolationMode(interpolation))
        torch.testing.assert_close(perturbed, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_changed_without_padding_and_degrees(shape, make_data):
    test = Augmentation(levels={"same": {"padding": 0, "degrees": 0}}, draws=3)
    images = pictures(30, shape) - 0.3
    assert all(torch.equal(block, images) for block in test.perturbed(images, "toy", "same", 0))
    fill = black_level(images)
    assert torch.equal(crop(images, torch.zeros(30, 2).long(), 0, fill), images)
    still = rotate(images, torch.zeros(30), "bilinear", fill)
    torch.testing.assert_close(still, images, rtol=1e-12, atol=1e-12)

    data = make_data(images, torch.arange(30) % 2)
    result = test.evaluate(lambda x: (x.mean(dim=(1, 2, 3)) > 0.2).long(), data, NO_HOME)
    assert result.metrics["same"].value == result.metrics["test"].value
    assert result.metrics["gap_same"].value == result.metrics["gap_same"].ci_high == 0
    assert result.details["same"]["sd_over_draws"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_outside_is_each_channels_black(interpolation):
    """Normalizing the images first is the same as normalizing the perturbed ones."""
    images = pictures(10, (3, 12, 12))
    images[0, :, 0, 0] = 0
    mean, std = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1), torch.tensor([1.0, 0.3, 2.0]).view(1, 3, 1, 1)
    test = Augmentation(interpolation=interpolation)
    (first,) = test.perturbed((images - mean) / std, "toy", "at2", 0)
    (last,) = test.perturbed(images, "toy", "at2", 0)
    torch.testing.assert_close(first, (last - mean) / std, rtol=1e-6, atol=1e-6)


def test_offsets_and_angles_are_uniform_and_independent():
    offsets, angles = Augmentation().perturbation("usps", "at2", 0, 20_000)
    assert offsets.min() == 0
    assert offsets.max() == 4
    counts = np.bincount((5 * offsets[:, 0] + offsets[:, 1]).numpy(), minlength=25)
    assert stats.chisquare(counts).pvalue > 0.01
    assert stats.kstest(angles.numpy(), stats.uniform(-30, 60).cdf).pvalue > 0.01
    assert abs(np.corrcoef(angles.numpy(), offsets[:, 0].numpy())[0, 1]) < 3 / np.sqrt(20_000)
    other, _ = Augmentation().perturbation("usps", "at1", 0, 1000)
    assert other.unique().tolist() == [0, 1, 2]


def test_every_draw_level_data_set_and_seed_has_its_own():
    drawn = [
        Augmentation(seed=seed).perturbation(dataset, level, draw, 5)[1][0].item() / (15 if level == "at1" else 30)
        for seed in (0, 1)
        for dataset in ("usps", "digits")
        for level in ("at1", "at2")
        for draw in range(3)
    ]
    assert len(set(drawn)) == len(drawn)


def test_all_models_meet_the_same_images(make_data, monkeypatch):
    data = make_data(pictures(40, (1, 8, 8)).float(), torch.arange(40) % 2)

    def seen(answer):
        met = []

        def predict(x):
            met.append(x.clone())
            return torch.full((len(x),), answer)

        Augmentation(draws=2).evaluate(predict, data, NO_HOME)
        return torch.cat(met)

    first = seen(0)
    assert len(first) == 40 * (1 + 2 * 2)
    assert torch.equal(first, seen(1))
    monkeypatch.setattr(augmentation, "_BLOCK", 64 * 7)  # blocks of 7 images
    assert torch.equal(first, seen(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_gpu_perturbs_alike(interpolation):
    images, test = pictures(200, (3, 32, 32)).float(), Augmentation(interpolation=interpolation)
    (here,), (there,) = (test.perturbed(part, "toy", "at2", 0) for part in (images, images.cuda()))
    near = (here - there.cpu()).abs() < 1e-4
    assert near.double().mean() > 0.999


def test_metrics_against_a_direct_computation(make_data):
    images, targets = pictures(50, (1, 8, 8)), torch.arange(50) % 2

    def predict(x):
        return (x[:, 0, 3, 3] > 0.5).long()

    test = Augmentation(levels={"a": {"padding": 1, "degrees": 20}}, draws=4)
    result = test.evaluate(predict, make_data(images, targets), NO_HOME)
    right = torch.stack([predict(next(test.perturbed(images, "toy", "a", d))) == targets for d in range(4)]).double()
    plain = (predict(images) == targets).double().mean().item()
    assert result.metrics["a"].value == pytest.approx(right.mean().item())
    assert result.metrics["a"].n == 50
    assert result.metrics["gap_a"].value == pytest.approx(right.mean().item() / plain - 1)
    assert result.details["a"]["accuracy_of_each_draw"] == pytest.approx(right.mean(1).tolist())
    assert result.details["a"]["sd_over_draws"] == pytest.approx(right.mean(1).std().item())
    assert result.details["a"]["seeds"] == [test.draw_seed("toy", "a", draw) for draw in range(4)]
    # Four draws of one image are no four images: the interval is that of 50 means.
    half = 1.96 * right.mean(0).std().item() / np.sqrt(50)
    assert (result.metrics["a"].ci_high - result.metrics["a"].ci_low) / 2 == pytest.approx(half, rel=0.1)


def test_one_draw_has_no_spread(make_data):
    data = make_data(pictures(20, (1, 8, 8)), torch.arange(20) % 2)
    result = Augmentation(draws=1).evaluate(lambda x: torch.zeros(len(x)).long(), data, NO_HOME)
    assert result.details["at1"]["sd_over_draws"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": {}}, "Augmentation: levels must name at least one level"),
        ({"levels": {"a": {"padding": 1}}}, r"Augmentation: level a must set padding and degrees, got \['padding'\]"),
        (
            {"levels": {"a": {"padding": 1.5, "degrees": 1}}},
            r"Augmentation: padding of a must be an integer >= 0, got 1\.5",
        ),
        (
            {"levels": {"a": {"padding": -1, "degrees": 1}}},
            "Augmentation: padding of a must be an integer >= 0, got -1",
        ),
        (
            {"levels": {"a": {"padding": 1, "degrees": 181}}},
            r"Augmentation: degrees of a must be in \[0, 180\], got 181",
        ),
        ({"draws": 0}, "Augmentation: draws must be >= 1, got 0"),
        ({"interpolation": "cubic"}, "Augmentation: interpolation must be one of nearest, bilinear, got 'cubic'"),
        ({"levels": {"test": {"padding": 1, "degrees": 1}}}, "Augmentation: no level may be called test"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)


def test_features_are_refused(features):
    with pytest.raises(ValueError, match=r"Augmentation: inputs must be images .*features with \(6,\)"):
        Augmentation().check(features)
