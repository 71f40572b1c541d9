from __future__ import annotations

import bz2
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import USPS as Torchvision  # noqa: N811

from spectral_run.datasets.base import DataError, DataHome
from spectral_run.datasets.usps import USPS, read_libsvm

REAL = pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="SPECTRAL_DATA is not set")
Rows = list[list[str]]  # each ["label", "1:value", ..., "256:value"]


def rows_of(count: int, seed: int) -> Rows:
    values = np.random.default_rng(seed).uniform(-1, 1, (count, 256)).round(4)
    labels = [row % 10 + 1 for row in range(count)]
    return [
        [str(label), *(f"{index}:{value:g}" for index, value in enumerate(row, 1))]
        for label, row in zip(labels, values, strict=True)
    ]


def write(home: DataHome, name: str, rows: Rows) -> Path:
    path = home.root / "usps" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bz2.compress("".join(" ".join(row) + " \n" for row in rows).encode()))
    return path


@pytest.fixture
def files(home: DataHome) -> DataHome:
    write(home, "usps.bz2", rows_of(70, 0))
    write(home, "usps.t.bz2", rows_of(20, 1))
    return home


def test_small_files(files: DataHome) -> None:
    data = USPS().load(files)
    assert data.rows == {"train": 60, "validation": 10, "test": 20}
    assert data.train.inputs.shape == (60, 1, 16, 16)
    assert torch.equal(data.test.targets, torch.arange(20) % 10)
    assert not data.official
    assert [notice.split(" (")[0] for notice in data.notices] == [
        "usps.bz2 is not the official release",
        "usps.t.bz2 is not the official release",
    ]


@pytest.mark.parametrize("train", [True, False])
def test_same_numbers_as_torchvision(files: DataHome, train: bool) -> None:
    folder = files.root / "usps"
    reference = Torchvision(str(folder), train=train)
    images, labels = read_libsvm(folder / ("usps.bz2" if train else "usps.t.bz2"))
    assert np.array_equal(images[:, 0], reference.data / np.float32(255))
    assert labels.tolist() == reference.targets


def test_missing_files_are_named(home: DataHome) -> None:
    with pytest.raises(FileNotFoundError, match=r"usps/usps\.bz2 .*csie\.ntu\.edu\.tw"):
        USPS().prepare(home)
    write(home, "usps.bz2", rows_of(70, 0))
    with pytest.raises(FileNotFoundError, match=r"usps/usps\.t\.bz2 "):
        USPS().prepare(home)


def test_truncated_and_undecodable(files: DataHome) -> None:
    path = files.root / "usps" / "usps.t.bz2"
    packed = path.read_bytes()
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"usps\.t\.bz2: truncated"):
        USPS().load(files)
    path.write_bytes(b"<html>not here</html>")
    with pytest.raises(DataError, match=r"usps\.t\.bz2: undecodable"):
        USPS().load(files)


def set_cell(column: int, text: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[2][column] = text

    return change


def cut(rows: Rows) -> None:
    del rows[2][200:]


def halve_all(rows: Rows) -> None:  # torchvision reads this as half as many images
    for row in rows:
        del row[129:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_cell(0, "11"), r"row 3, column 1 must be in \[1, 10\], got 11\."),
        (set_cell(0, "0"), r"row 3, column 1 must be in \[1, 10\], got 0\."),
        (set_cell(0, "2.5"), r"row 3, column 1 must be an integer"),
        (set_cell(7, "7:1.5"), r"row 3, column 8 must be in \[-1, 1\], got 1\.5\."),
        (set_cell(7, "7:nan"), r"row 3, .* must be a finite number, got nan"),
        (set_cell(7, "7:inf"), r"row 3, .* must be a finite number, got inf"),
        (set_cell(7, "7:zero"), r"row 3, .* must be a finite number, got zero"),
        (set_cell(7, "9:0.5"), r"row 3 must have the indices 1 to 256"),
        (cut, r"row 3, .* must be a finite number, got nan \(513 columns are needed\)"),
        (lambda rows: rows[2].append("257:0"), r"no table of 513 columns .*line 3"),
        (halve_all, r"row 1 has 257 columns, the layout has 513"),
        (lambda rows: rows.clear(), "usps.bz2: "),
    ],
)
def test_bad_rows_are_named(files: DataHome, change: Callable[[Rows], None], message: str) -> None:
    rows = rows_of(70, 0)
    change(rows)
    write(files, "usps.bz2", rows)
    with pytest.raises(DataError, match=rf"usps\.bz2: .*{message}" if rows else message):
        USPS().load(files)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"USPS: validation_fraction must be in \(0, 1\), got 2\.0\."):
        USPS(validation_fraction=2.0)
    with pytest.raises(ValueError, match="USPS: split_seed must be"):
        USPS(split_seed=-1)


@REAL
def test_real_rows() -> None:
    data = USPS().load(DataHome(Path(os.environ["SPECTRAL_DATA"]), download=False))
    assert data.rows == {"train": 6250, "validation": 1041, "test": 2007}
    whole = torch.cat([data.train.targets, data.validation.targets]).bincount()
    assert whole.tolist() == [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644]  # published class counts
    assert data.test.targets.bincount().tolist() == [359, 264, 198, 166, 200, 160, 170, 147, 166, 177]
    difference = data.validation.targets.bincount() - whole * 1041 / 7291
    assert difference.abs().max() <= 1


@REAL
def test_real_files_read_as_torchvision_does() -> None:
    folder = Path(os.environ["SPECTRAL_DATA"]) / "usps"
    reference = Torchvision(str(folder), train=False)
    images, labels = read_libsvm(folder / "usps.t.bz2")
    assert np.array_equal(images[:, 0], reference.data / np.float32(255))
    assert labels.tolist() == reference.targets
