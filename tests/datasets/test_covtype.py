from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_run.datasets.base import Data, DataError, DataHome
from spectral_run.datasets.covtype import OFFICIAL, Covtype, column_name, read_covtype

REAL = pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="SPECTRAL_DATA is not set")
Rows = list[list[str]]


def rows_of(count: int) -> Rows:
    random = np.random.default_rng(0)
    measurements = random.integers(-200, 3000, (count, 10))
    measurements[:, 0] = np.arange(count)
    binary = random.integers(0, 2, (count, 44))
    binary[:, 20] = 0  # soil_type_17 is never seen
    labels = np.arange(count)[:, None] % 7 + 1
    return [[str(cell) for cell in row] for row in np.hstack([measurements, binary, labels])]


def write(home: DataHome, rows: Rows) -> Path:
    path = home.root / "covtype" / "covtype.data.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(",".join(row) + "\n" for row in rows).encode(), mtime=0))
    return path


@pytest.fixture
def files(home: DataHome) -> DataHome:
    write(home, rows_of(210))
    return home


def whole(data: Data) -> torch.Tensor:
    return torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])


def test_rows_shape_and_labels(files: DataHome) -> None:
    data = Covtype().load(files)
    assert data.rows == {"train": 135, "validation": 33, "test": 42}
    assert data.train.inputs.shape == (135, 54)
    assert torch.cat([data.train.targets, data.validation.targets, data.test.targets]).bincount().tolist() == [30] * 7
    assert len(torch.unique(whole(data), dim=0)) == 210  # every row of the file is in exactly one split


def test_standardized_with_training_statistics(files: DataHome) -> None:
    data = Covtype().load(files)
    assert Covtype().standardized
    raw, _ = read_covtype(files.root / "covtype" / "covtype.data.gz")
    row_numbers = whole(data)[:, 0].argsort().argsort().numpy()  # the first column counts the rows
    train = raw[row_numbers[: len(data.train)]]
    spread = train.std(axis=0)
    spread[30] = 1  # the constant column
    np.testing.assert_allclose(whole(data), (raw[row_numbers] - train.mean(axis=0)) / spread, rtol=1e-5, atol=1e-6)


def test_constant_column_is_noticed(files: DataHome) -> None:
    data = Covtype().load(files)
    assert data.notices[-1] == "constant over the training split, so 0 there and not scaled: soil_type_17"
    assert (data.train.inputs[:, 30] == 0).all()


@pytest.mark.parametrize(("column", "name"), [(0, "measurement_1"), (10, "wilderness_area_1"), (53, "soil_type_40")])
def test_column_names(column: int, name: str) -> None:
    assert column_name(column) == name


def test_rows_setting(files: DataHome) -> None:
    data = Covtype(rows=70).load(files)
    assert sum(data.rows.values()) == 70
    assert torch.cat([data.train.targets, data.validation.targets, data.test.targets]).bincount().tolist() == [10] * 7
    with pytest.raises(DataError, match="Covtype: rows must be at most 210"):
        Covtype(rows=211).load(files)
    with pytest.raises(DataError, match=r"Covtype: class . has 1 row\(s\), a stratified split needs 3; take more rows"):
        Covtype(rows=8).load(files)


def set_cell(column: int, text: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[4][column] = text

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_cell(54, "8"), r"row 5, column 55 must be in \[1, 7\], got 8\."),
        (set_cell(54, "0"), r"row 5, column 55 must be in \[1, 7\], got 0\."),
        (set_cell(3, "nan"), r"row 5, column 4 must be a finite number, got nan"),
        (set_cell(3, ""), r"row 5, column 4 must be a finite number, got nan"),
        (set_cell(3, "-inf"), r"row 5, column 4 must be a finite number, got -inf"),
        (set_cell(3, "high"), r"row 5, column 4 must be a finite number, got high"),
        (set_cell(3, "0.5"), r"row 5, column 4 must be an integer, got 0\.5"),
        (set_cell(12, "2"), r"row 5, column 13 must be in \[0, 1\], got 2\."),
        (lambda rows: rows[4].pop(), r"row 5, column 55 must be a finite number, got nan \(55 columns are needed\)"),
        (lambda rows: rows[4].append("1"), r"no table of 55 columns .*line 5"),
        (lambda rows: [row.pop() for row in rows], r"row 1 has 54 columns, the layout has 55"),
        (lambda rows: rows.insert(0, [f"f{column}" for column in range(55)]), r"row 1, column 1 .* got f0"),
        (lambda rows: rows.clear(), "no table of 55 columns"),
    ],
)
def test_bad_cells_are_named(files: DataHome, change: Callable[[Rows], object], message: str) -> None:
    rows = rows_of(210)
    change(rows)
    write(files, rows)
    with pytest.raises(DataError, match=rf"covtype\.data\.gz: {message}"):
        Covtype().load(files)


def test_missing_truncated_undecodable(home: DataHome) -> None:
    with pytest.raises(FileNotFoundError, match=r"covtype/covtype\.data\.gz .*figshare"):
        Covtype().prepare(home)
    path = write(home, rows_of(210))
    packed = path.read_bytes()
    path.write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"covtype\.data\.gz: truncated"):
        Covtype().load(home)
    path.write_bytes(packed[:50] + b"\0" * 50 + packed[100:])
    with pytest.raises(DataError, match=r"covtype\.data\.gz: undecodable"):
        Covtype().load(home)
    path.write_bytes(gzip.compress(bytes(range(256))))
    with pytest.raises(DataError, match=r"covtype\.data\.gz: "):
        Covtype().load(home)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Covtype: rows must be null or an integer >= 1, got 0\."):
        Covtype(rows=0)
    with pytest.raises(ValueError, match=r"Covtype: validation_fraction must be in \(0, 1\), got -1\.0\."):
        Covtype(validation_fraction=-1.0)


def test_official_checksum_is_stated() -> None:
    assert OFFICIAL.checksum.startswith("sha256 614360d0")


@REAL
def test_real_rows() -> None:
    root = Path(os.environ["SPECTRAL_DATA"])
    data = Covtype().load(DataHome(root, download=False))
    rows = len(whole(data))
    assert data.rows["test"] == int(0.2 * rows)
    assert data.rows["validation"] == int(0.16 * rows)
    varying = data.train.inputs.double().std(dim=0) > 0
    mean, spread = data.train.inputs.double().mean(dim=0), data.train.inputs.double().std(dim=0, correction=0)
    assert mean.abs().max() < 1e-5
    assert (spread[varying] - 1).abs().max() < 1e-5
    shares = data.train.targets.bincount() / len(data.train)
    assert (shares - data.test.targets.bincount() / len(data.test)).abs().max() < 1e-3
