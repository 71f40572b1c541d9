from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from spectral_run.datasets.base import DataHome
from spectral_run.datasets.digits import Digits


def test_rows_shape_and_range(home: DataHome) -> None:
    data = Digits().load(home)
    assert data.rows == {"train": 1151, "validation": 287, "test": 359}
    assert data.train.inputs.shape == (1151, 1, 8, 8)
    assert data.train.inputs.min() == 0
    assert data.train.inputs.max() == 1
    assert data.official
    assert data.sha256 == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def test_every_bundled_row_is_in_one_split_with_its_label(home: DataHome) -> None:
    data = Digits().load(home)
    bunch = load_digits()
    labels = {image.tobytes(): target for image, target in zip(bunch.images, bunch.target, strict=True)}
    seen = set()
    for split in (data.train, data.validation, data.test):
        for image, target in zip(split.inputs, split.targets, strict=True):
            key = (image[0].double() * 16).numpy().tobytes()
            assert labels[key] == target
            seen.add(key)
    assert len(seen) == 1797


def test_global_random_state_stays(home: DataHome) -> None:
    state = torch.get_rng_state()
    Digits(split_seed=7).load(home)
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Digits: test_fraction must be in \(0, 1\), got 2\.0\."):
        Digits(test_fraction=2.0)
    with pytest.raises(
        ValueError, match=r"Digits: validation_fraction \+ test_fraction must be in \(0, 1\), got 1\.2\."
    ):
        Digits(validation_fraction=0.6, test_fraction=0.6)
    with pytest.raises(ValueError, match=r"Digits: split_seed must be an integer"):
        Digits(split_seed=-1)
