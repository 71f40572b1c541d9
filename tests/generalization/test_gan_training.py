from __future__ import annotations

import multiprocessing
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock

from spectral_run.datasets.base import Data, DataError, Split
from spectral_run.datasets.cache import cached
from spectral_run.generalization import gan_training
from spectral_run.generalization.gan_training import (
    Recipe,
    TrainingImages,
    draw,
    drawn_images,
    repeatable,
    train,
    trained_generator,
    training_images,
    weights_key,
)

KINDS = ("mlp", "convolutional")


def tiny(seed: int = 0, rows: int = 40) -> TrainingImages:
    """Noise around a dark (class 0) and a bright (class 1) square of 8x8."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(rows) % 2
    images = (0.2 + 0.6 * targets[:, None, None, None] + 0.2 * torch.rand(rows, 1, 8, 8, generator=generator)).float()
    return TrainingImages(images=images, targets=targets)


def recipe(kind: str = "convolutional", **settings: object) -> Recipe:
    return Recipe(**{"kind": kind, "epochs": 2, "batch_size": 16, "latent": 3, **settings})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "spectral-run"


def must_not_train(*arguments):
    raise AssertionError("trained again")


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def without_time(entry):
    return {name: value for name, value in entry.items() if name != "seconds"}


# The rows


def data_of(images, targets, held):
    kept = [row for row in range(len(images)) if row not in held]
    train_split, validation = (Split(images[part], targets[part]) for part in (kept, list(held)))
    return Data("toy", train_split, validation, Split(images[:1], targets[:1]), {}, official=False)


def test_rows_do_not_depend_on_the_split_or_on_their_order():
    rows = tiny()
    first = training_images(data_of(rows.images, rows.targets, [3, 7, 20]))
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    second = training_images(data_of(rows.images[shuffled].double(), rows.targets[shuffled], [0, 1, 2, 5, 30]))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.targets, second.targets)
    assert first.sha256 == second.sha256
    # The same rows in another order, each with its class.
    assert sorted(first.images.flatten(1).sum(1).tolist()) == sorted(rows.images.flatten(1).sum(1).tolist())
    assert torch.equal(first.targets, (first.images.mean((1, 2, 3)) > 0.6).long())


def test_a_class_without_images_is_refused():
    rows = tiny()
    with pytest.raises(DataError, match=r"toy: a GAN needs training images of every class.*none of \[1, 2\]"):
        training_images(data_of(rows.images, 3 * rows.targets, [0, 1]))


def test_blank_images_are_refused():
    rows = tiny()
    with pytest.raises(DataError, match=r"toy: a GAN needs images that show something, and every pixel is 0\.5"):
        training_images(data_of(torch.full_like(rows.images, 0.5), rows.targets, [0, 1]))


def test_key_changes_with_all_that_decides():
    rows, base = tiny(), recipe()
    others = [
        (tiny(seed=1), base, 0),
        (TrainingImages(images=rows.images, targets=1 - rows.targets), base, 0),
        (rows, base, 1),
        *(
            (rows, replace(base, **change), 0)
            for change in (
                {"kind": "mlp"},
                {"epochs": 3},
                {"batch_size": 8},
                {"lr": 2e-4},
                {"betas": (0.9, 0.999)},
                {"fake": (0.0, 0.2)},
                {"real": (0.8, 1.0)},
                {"swap": 0.02},
                {"latent": 4},
            )
        ),
    ]
    keys = {weights_key(*case) for case in [(rows, base, 0), *others]}
    assert len(keys) == 1 + len(others)
    assert weights_key(tiny(), recipe(betas=[0.5, 0.999]), 0) == weights_key(rows, base, 0)


# Targets


def test_targets_are_uniform_over_their_intervals():
    generator = torch.Generator().manual_seed(0)
    real, fake = recipe(swap=0.0).targets(20_000, generator)
    for values, (low, high) in ((real, (0.7, 1.0)), (fake, (0.0, 0.3))):
        assert low <= float(values.min()) < float(values.max()) <= high
        assert abs(float(values.mean()) - (low + high) / 2) < 3 * (high - low) / 12**0.5 / 20_000**0.5
        edges = torch.linspace(low, high + 1e-6, 11)
        counts = torch.histogram(values, edges).hist
        assert float(((counts - 2000) ** 2 / 2000).sum()) < 27.9  # chi-square, 9 degrees of freedom, 0.1%
    assert abs(float(torch.corrcoef(torch.stack([real, fake]))[0, 1])) < 3 / 20_000**0.5


def test_share_of_batches_that_are_swapped():
    generator, setting = torch.Generator().manual_seed(1), recipe(swap=0.01)
    batches = [setting.targets(4, generator) for _ in range(10_000)]
    swapped = [bool((real < 0.5).all()) for real, _ in batches]
    # A batch is swapped whole: both sides, every image.
    assert all(bool(((real < 0.5) == flip).all() and ((fake < 0.5) != flip).all())
               for (real, fake), flip in zip(batches, swapped, strict=True))  # fmt: skip
    assert abs(sum(swapped) - 100) < 3 * (10_000 * 0.01 * 0.99) ** 0.5
    assert all(bool((recipe(swap=1.0).targets(4, generator)[0] <= 0.3).all()) for _ in range(20))


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_whatever_random_state_and_threads(kind):
    rows, setting = tiny(), recipe(kind)
    first = train(rows, setting, 0)
    torch.manual_seed(99)
    torch.set_num_threads(2)
    state = torch.random.get_rng_state()
    second = train(rows, setting, 0)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(without_time(first), without_time(second))
    assert first["losses"].shape == (2, 2)
    assert not same(without_time(first), without_time(train(rows, setting, 1)))


def test_gradients_may_be_off_outside():
    with torch.no_grad():
        assert "losses" in train(tiny(), recipe(epochs=1), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_asked_for_is_what_comes(kind):
    """Dark and bright squares: after some steps the images of class 1 are the brighter ones, in the data's range."""
    rows = tiny(rows=128)
    entry = drawn_images(rows, recipe(kind, epochs=40, lr=2e-3, batch_size=32), 0, 40)
    assert entry["images"].dtype == np.uint8
    assert entry["images"].shape == (40, 1, 8, 8)
    assert entry["targets"].tolist() == [0] * 20 + [1] * 20
    brightness = entry["images"].mean((1, 2, 3)) / 255 * 0.8 + 0.2  # rows reach from 0.2 to 1
    assert abs(brightness[:20].mean() - 0.3) < 0.15
    assert abs(brightness[20:].mean() - 0.9) < 0.15


def test_images_are_drawn_with_the_statistics_of_training():
    generator, _ = recipe().networks((1, 8, 8), 2)
    with repeatable(0):
        for _ in range(5):
            generator(torch.randn(16, 3), torch.arange(16) % 2)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    generator.train()
    images, targets = draw(generator, 3, 2, 4, seed=0)
    assert generator.training
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert targets.tolist() == [0] * 4 + [1] * 4
    # In evaluation mode an image does not depend on those drawn with it, but for rounding.
    more, _ = draw(generator, 3, 2, 4 + 3, seed=0)
    assert int((more[:4].int() - images[:4].int()).abs().max()) <= 1
    assert not torch.equal(draw(generator, 3, 2, 4, seed=1)[0], images)
    assert len({image.numpy().tobytes() for image in images}) == 8


def test_settings_are_checked():
    for change, message in [
        ({"kind": "gan"}, "kind must be one of mlp, convolutional, got 'gan'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"betas": [0.5]}, r"betas must be two numbers in \[0, 1\), got \[0.5\]"),
        ({"fake": [0.3, 0.0]}, r"fake must be an interval in \[0, 1\], got \[0.3, 0.0\]"),
        ({"real": [0.7, 1.1]}, r"real must be an interval in \[0, 1\], got \[0.7, 1.1\]"),
        ({"swap": 2.0}, r"swap must be in \[0, 1\], got 2.0"),
        ({"latent": 0}, "latent must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=f"GAN: {message}"):
            recipe(**change)


# The cache


def test_trained_once(folder, monkeypatch):
    rows, setting = tiny(), recipe()
    first = drawn_images(rows, setting, 0, 8)
    monkeypatch.setattr(gan_training, "train", must_not_train)
    assert same(drawn_images(rows, setting, 0, 8), first)
    more = drawn_images(rows, setting, 0, 12)  # other images of the same generator
    assert np.abs(more["images"][:4].astype(int) - first["images"][:4]).max() <= 1
    with pytest.raises(AssertionError, match="trained again"):
        drawn_images(rows, setting, 1, 8)


@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_damaged_entry_is_made_again(folder, damage):
    rows, setting = tiny(), recipe()
    first = trained_generator(rows, setting, 0)
    path = folder / f"{weights_key(rows, setting, 0)}.npz"
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    second = trained_generator(rows, setting, 0)
    assert same(without_time(first), without_time(second))
    assert second["seconds"] != first["seconds"]


def _train_in_a_process(number: int) -> float:
    return float(trained_generator(tiny(), recipe(epochs=20), 0)["seconds"])


def test_two_processes_at_once_train_once(folder):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_train_in_a_process, range(2), chunksize=1)
    assert first == second  # seconds of one and the same training
    assert [path.name for path in folder.glob("*.npz")] == [f"{weights_key(tiny(), recipe(epochs=20), 0)}.npz"]


def _train_for_ever() -> None:
    trained_generator(tiny(), recipe(epochs=10**9), 0)


def test_killed_in_the_middle_leaves_no_entry_and_no_lock(folder):
    key = weights_key(tiny(), recipe(epochs=10**9), 0)
    process = multiprocessing.get_context("spawn").Process(target=_train_for_ever, daemon=True)
    process.start()
    lock = folder / f".{key}.lock"
    deadline = time.monotonic() + 120
    while not lock.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [path.name for path in folder.iterdir()] == [lock.name]
    with FileLock(lock, timeout=0):
        pass
    assert same(cached(key, lambda: {"a": np.arange(3)}, once=True), {"a": np.arange(3)})
