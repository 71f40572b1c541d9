from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10 as Torchvision  # noqa: N811

from spectral_run.datasets.base import DataError, DataHome
from spectral_run.datasets.cifar10 import CIFAR10, channel_statistics
from spectral_run.datasets.cifar10_files import read_pickle

REAL = pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="SPECTRAL_DATA is not set")
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
PER_BATCH = 20


def batch(seed: int) -> dict[str, Any]:
    data = np.random.default_rng(seed).integers(0, 256, (PER_BATCH, 3072), np.uint8)
    return {"batch_label": "made", "labels": [row % 10 for row in range(PER_BATCH)], "data": data, "filenames": []}


def write_pickles(folder: Path, protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*TRAIN, "test_batch"]):
        (folder / name).write_bytes(pickle.dumps(batch(seed), protocol))
    return folder


def encode(row: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(row.reshape(3, 32, 32).transpose(1, 2, 0)).save(file, "PNG")  # lossless, so pixels compare equal
    return file.getvalue()


def write_shard(path: Path, images: list[bytes | None], labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    column = [{"bytes": content, "path": f"{row}.png"} for row, content in enumerate(images)]
    pq.write_table(pa.table({"img": column, "label": labels}), path)


def write_shards(folder: Path) -> Path:
    for seed in range(5):
        made = batch(seed)
        write_shard(
            folder / f"train-{seed:05d}-of-00005.parquet", [encode(row) for row in made["data"]], made["labels"]
        )
    made = batch(5)
    write_shard(folder / "test-00000-of-00001.parquet", [encode(row) for row in made["data"]], made["labels"])
    return folder


@pytest.mark.parametrize("place", ["cifar10/cifar-10-batches-py", "cifar-10-batches-py"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles(home: DataHome, place: str, protocol: int) -> None:
    write_pickles(home.root / place, protocol)
    CIFAR10().prepare(home)
    data = CIFAR10().load(home)
    assert data.rows == {"train": 90, "validation": 10, "test": 20}
    assert data.train.inputs.shape == (90, 3, 32, 32)
    assert data.test.targets.tolist() == [row % 10 for row in range(20)]
    assert data.validation.targets.bincount().tolist() == [1] * 10
    assert not data.official
    assert len(data.notices) == len(data.files) == 6


def test_normalized_with_training_statistics(home: DataHome) -> None:
    write_pickles(home.root / "cifar10" / "cifar-10-batches-py")
    data = CIFAR10().load(home)
    assert data.train.inputs.double().mean(dim=(0, 2, 3)).abs().max() < 1e-6
    assert (data.train.inputs.double().std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    assert not CIFAR10().standardized
    # one affine map per channel, the same for every split
    raw = torch.from_numpy(batch(5)["data"].reshape(-1, 3, 32, 32)).double() / 255
    sources = np.concatenate([batch(seed)["data"] for seed in range(5)]).reshape(-1, 3, 32, 32)
    for channel in range(3):
        slope = (data.test.inputs[0, channel, 0, 0] - data.test.inputs[0, channel, 0, 1]).double()
        slope = slope / (raw[0, channel, 0, 0] - raw[0, channel, 0, 1])
        offset = data.test.inputs[0, channel, 0, 0] - slope * raw[0, channel, 0, 0]
        expected = slope * raw[:, channel] + offset
        torch.testing.assert_close(data.test.inputs[:, channel].double(), expected, rtol=0, atol=1e-4)
        assert abs(1 / slope - sources[:, channel].std() / 255) < 1e-2


def test_channel_statistics_against_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 200, (7, 3, 32, 32), np.uint8)
    images[:, 2] = 5
    mean, deviation = channel_statistics(images)
    scaled = images / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(deviation[:2], scaled.std(axis=(0, 2, 3))[:2], rtol=1e-12)
    assert deviation[2] == 1  # constant


def test_same_pixels_as_torchvision(home: DataHome) -> None:
    folder = write_pickles(home.root / "cifar10" / "cifar-10-batches-py")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, 2))
    hashes = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    class Unofficial(Torchvision):  # type: ignore[misc]
        train_list = [[name, hashes[name]] for name in TRAIN]  # noqa: RUF012
        meta = {"filename": "batches.meta", "key": "label_names", "md5": hashes["batches.meta"]}  # noqa: RUF012
        test_list = [["test_batch", hashes["test_batch"]]]  # noqa: RUF012

    reference = Unofficial(str(home.root / "cifar10"))
    parts = [read_pickle(folder / name) for name in TRAIN]
    assert np.array_equal(np.concatenate([images for images, _ in parts]).transpose(0, 2, 3, 1), reference.data)
    assert np.concatenate([labels for _, labels in parts]).tolist() == reference.targets


def test_parquet_gives_the_numbers_of_the_pickles(home: DataHome, tmp_path: Path) -> None:
    write_shards(home.root / "cifar10")
    CIFAR10().prepare(home)
    shards = CIFAR10().load(home)
    write_pickles(tmp_path / "other" / "cifar10" / "cifar-10-batches-py")
    pickles = CIFAR10().load(DataHome(tmp_path / "other", download=False))
    for ours, theirs in (
        (shards.train, pickles.train),
        (shards.validation, pickles.validation),
        (shards.test, pickles.test),
    ):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.targets, theirs.targets)
    assert shards.notices[0].startswith("the 6 Parquet shards in cifar10/ are not the official release")


def test_rows_setting(home: DataHome) -> None:
    write_pickles(home.root / "cifar10" / "cifar-10-batches-py")
    data = CIFAR10(rows=50, validation_fraction=0.2).load(home)
    assert data.rows == {"train": 40, "validation": 10, "test": 20}
    assert data.train.targets.bincount().tolist() == [4] * 10


def test_missing_files_are_named(home: DataHome) -> None:
    with pytest.raises(FileNotFoundError, match=r"cifar10/cifar-10-python\.tar\.gz .*download=true.*cs\.toronto\.edu"):
        CIFAR10().prepare(home)
    folder = write_pickles(home.root / "cifar10" / "cifar-10-batches-py")
    (folder / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py/data_batch_3"):
        CIFAR10().prepare(home)


def test_missing_shards_are_named(home: DataHome) -> None:
    folder = write_shards(home.root / "cifar10")
    (folder / "train-00003-of-00005.parquet").rename(folder / "spare")
    with pytest.raises(FileNotFoundError, match=r"train-00003-of-00005\.parquet, one of a series of 5"):
        CIFAR10().prepare(home)
    (folder / "spare").rename(folder / "train-00003-of-00005.parquet")
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no test-\*-of-\*\.parquet"):
        CIFAR10().prepare(home)


class Attack:
    """Pickled, it makes a folder when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_run_no_code(home: DataHome, tmp_path: Path) -> None:
    folder = write_pickles(home.root / "cifar10" / "cifar-10-batches-py")
    target = tmp_path / "attacked"
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": Attack(target)}, 2))
    with pytest.raises(DataError, match=r"data_batch_2: undecodable \(.*mkdir is not allowed"):
        CIFAR10().load(home)
    assert not target.exists()


def changed(**values: object) -> bytes:
    return pickle.dumps({**batch(1), **values}, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed()[:-5000], "truncated"),
        (b"", "truncated"),
        (b"<html>not here</html>", "undecodable"),
        (pickle.dumps([1, 2]), "its 'data' must be a two-dimensional array of bytes"),
        (changed(data=np.zeros((20, 3072))), "its 'data' must be a two-dimensional array of bytes"),
        (changed(data=np.zeros((20, 3071), np.uint8)), "must have 3072 columns, got 3071"),
        (changed(labels=[0] * 19), "19 labels for 20 images"),
        (changed(labels=[0] * 19 + [10]), r"row 20, column label must be in \[0, 9\], got 10"),
        (changed(labels=[0] * 19 + [-1]), r"row 20, column label must be in \[0, 9\], got -1"),
        (changed(labels=["cat"] * 20), "labels must be a list of integers"),
    ],
)
def test_bad_pickles_are_named(home: DataHome, content: bytes, message: str) -> None:
    folder = write_pickles(home.root / "cifar10" / "cifar-10-batches-py")
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_2: .*{message}"):
        CIFAR10().load(home)


def test_any_damage_to_a_pickle_is_a_data_error(tmp_path: Path) -> None:
    content = bytearray(pickle.dumps(batch(0), 2))
    random = np.random.default_rng(0)
    path = tmp_path / "batch"
    structure = [*range(60), *range(len(content) - 300, len(content))]  # between them lie the pixels
    for position in structure:
        broken = content.copy()
        broken[position] = random.integers(256)
        path.write_bytes(broken)
        try:
            images, labels = read_pickle(path)
        except DataError:
            continue
        assert images.shape[1:] == (3, 32, 32)
        assert set(labels) <= set(range(10))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([encode(np.zeros(3072, np.uint8)), b"no image"], [0, 1], "row 2, column img is undecodable"),
        ([encode(np.zeros(3072, np.uint8))[:60]], [0], "row 1, column img is undecodable"),
        ([None], [0], "row 1, column img is undecodable"),
        ([encode(np.zeros(3072, np.uint8))] * 2, [0, 10], r"row 2, column label must be in \[0, 9\], got 10"),
        ([encode(np.zeros(3072, np.uint8))] * 2, [0, None], "labels must be a list of integers"),
    ],
)
def test_bad_shards_are_named(home: DataHome, images: list[bytes | None], labels: list[int], message: str) -> None:
    folder = write_shards(home.root / "cifar10")
    write_shard(folder / "train-00001-of-00005.parquet", images, labels)
    with pytest.raises(DataError, match=rf"train-00001-of-00005\.parquet: .*{message}"):
        CIFAR10().load(home)


def test_shards_of_another_layout(home: DataHome) -> None:
    folder = write_shards(home.root / "cifar10")
    path = folder / "train-00001-of-00005.parquet"
    whole = path.read_bytes()
    small = io.BytesIO()
    Image.new("RGB", (16, 32)).save(small, "PNG")
    write_shard(path, [small.getvalue()], [0])
    with pytest.raises(DataError, match="row 1, column img must be 32x32, got 16x32"):
        CIFAR10().load(home)
    pq.write_table(pa.table({"image": [1], "label": [1]}), path)
    with pytest.raises(DataError, match=r"00001-of-00005\.parquet: must have the columns img"):
        CIFAR10().load(home)
    pq.write_table(pa.table({"img": [1], "label": [1]}), path)
    with pytest.raises(DataError, match=r"00001-of-00005\.parquet: "):
        CIFAR10().load(home)
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"00001-of-00005\.parquet: truncated"):
        CIFAR10().load(home)
    path.write_bytes(whole)
    (folder / "train-00000-of-00007.parquet").write_bytes(whole)
    with pytest.raises(DataError, match="train shards of several series: 00005, 00007"):
        CIFAR10().prepare(home)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"CIFAR10: validation_fraction must be in \(0, 1\), got 0\.0\."):
        CIFAR10(validation_fraction=0.0)
    with pytest.raises(ValueError, match=r"CIFAR10: rows must be"):
        CIFAR10(rows=-3)


@REAL
def test_real_rows() -> None:
    data = CIFAR10().load(DataHome(Path(os.environ["SPECTRAL_DATA"]), download=False))
    assert data.rows == {"train": 45_000, "validation": 5_000, "test": 10_000}
    assert data.train.targets.bincount().tolist() == [4_500] * 10
    assert data.validation.targets.bincount().tolist() == [500] * 10
    assert data.test.targets.bincount().tolist() == [1_000] * 10
    assert data.train.inputs.mean(dim=(0, 2, 3)).abs().max() < 1e-4
