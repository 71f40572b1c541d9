from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets.mnist import read_image_file, read_label_file

from spectral_run.datasets.base import DataError, DataHome
from spectral_run.datasets.mnist import load_test_images, prepare

REAL = pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="SPECTRAL_DATA is not set")
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
LABELS = (np.arange(12) % 10).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write(home: DataHome, images: bytes, labels: bytes) -> Path:
    folder = home.root / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


def test_same_numbers_as_torchvision(home: DataHome) -> None:
    folder = write(home, idx(IMAGES), idx(LABELS))
    before = sorted(folder.iterdir())
    prepare(home)
    data = load_test_images(home)
    assert sorted(folder.iterdir()) == before
    assert data.images.shape == (12, 28, 28)
    assert not data.official
    assert len(data.notices) == len(data.files) == 2
    plain = home.root / "plain"
    plain.write_bytes(idx(IMAGES))
    assert torch.equal(data.images, read_image_file(str(plain)) / 255)
    plain.write_bytes(idx(LABELS))
    assert torch.equal(data.labels, read_label_file(str(plain)))


def test_uncompressed_files(home: DataHome) -> None:
    folder = write(home, idx(IMAGES), idx(LABELS))
    packed = load_test_images(home)
    for path in list(folder.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    prepare(home)
    assert torch.equal(load_test_images(home).images, packed.images)
    assert sorted(load_test_images(home).files) == ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def test_missing(home: DataHome) -> None:
    with pytest.raises(FileNotFoundError, match=r"mnist/MNIST/raw/t10k-images-idx3-ubyte\.gz .*download=true"):
        prepare(home)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(IMAGES)[:-1], idx(LABELS), r"images.*: truncated, 9423 bytes where its header says 9424"),
        (idx(IMAGES) + b"0", idx(LABELS), r"images.*: too long"),
        (idx(IMAGES)[:9], idx(LABELS), r"images.*: truncated in its header"),
        (b"GIF89a", idx(LABELS), r"images.*: undecodable"),
        (idx(LABELS), idx(LABELS), r"images.*: undecodable"),
        (idx(IMAGES[:, :27]), idx(LABELS), r"images.*: images must be 28x28, got 27x28"),
        (idx(IMAGES), idx(LABELS[:11]), r"labels.*: 11 labels for the 12 images"),
        (idx(IMAGES), idx(LABELS + 1), r"labels.*: row 10, column label must be in \[0, 9\], got 10"),
    ],
)
def test_bad_files_are_named(home: DataHome, images: bytes, labels: bytes, message: str) -> None:
    write(home, images, labels)
    with pytest.raises(DataError, match=message):
        load_test_images(home)


def test_truncated_gzip(home: DataHome) -> None:
    path = write(home, idx(IMAGES), idx(LABELS)) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: truncated"):
        load_test_images(home)


@REAL
def test_real_images() -> None:
    data = load_test_images(DataHome(Path(os.environ["SPECTRAL_DATA"]), download=False))
    assert data.images.shape == (10_000, 28, 28)
    assert data.images.min() == 0
    assert data.images.max() == 1
    assert data.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # published
    assert data.official  # by their unpacked bytes, in whatever gzip they came
