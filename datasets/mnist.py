"""MNIST's 10,000 test images: unseen handwriting for networks trained on USPS, not a data set to train on.

Source: LeCun et al. 1998, IDX files ``<root>/mnist/MNIST/raw/t10k-*-ubyte.gz``, or the same without ``.gz``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from spectral_run.datasets.base import DataError, DataHome
from spectral_run.datasets.files import RemoteFile, fetch, provenance, read_bytes

FOLDER = "mnist/MNIST/raw"
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
IMAGES = RemoteFile(
    name="t10k-images-idx3-ubyte.gz",
    url=MIRROR + "t10k-images-idx3-ubyte.gz",
    md5="9fb629c4189551a2d022fa330f9573f3",
    unpacked_md5="2646ac647ad5339dbf082846283269ea",
)
LABELS = RemoteFile(
    name="t10k-labels-idx1-ubyte.gz",
    url=MIRROR + "t10k-labels-idx1-ubyte.gz",
    md5="ec29112dd5afa0611ce80d1b7f02629c",
    unpacked_md5="27ae3e4e09519cfbb04c329615203637",
)
UNSIGNED_BYTE = 0x08  # IDX type code


@final
@dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Images ``(n, 28, 28)`` in [0, 1] with labels 0..9 ``(n,)``, and what they were read from."""

    images: Float32[Tensor, "n 28 28"]
    labels: Int64[Tensor, " n"]
    files: dict[str, str]  # file name -> SHA-256 of its bytes
    official: bool
    notices: tuple[str, ...]


def prepare(home: DataHome) -> None:
    """Find or fetch both files; raises ``FileNotFoundError`` before any work."""
    for remote in (IMAGES, LABELS):
        _find(remote, home)


def load_test_images(home: DataHome) -> LabeledImages:
    """Read and check. Raises ``FileNotFoundError`` or ``DataError``, each naming the file."""
    paths = [_find(remote, home) for remote in (IMAGES, LABELS)]
    images = parse_idx(read_bytes(paths[0]), paths[0], 3)
    labels = parse_idx(read_bytes(paths[1]), paths[1], 1)
    if images.shape[1:] != (28, 28):
        raise DataError(f"{paths[0]}: images must be 28x28, got {images.shape[1]}x{images.shape[2]}.")
    if len(images) != len(labels):
        raise DataError(f"{paths[1]}: {len(labels)} labels for the {len(images)} images of {paths[0].name}.")
    if labels.size and labels.max() > 9:
        row = int(np.argmax(labels > 9))
        raise DataError(f"{paths[1]}: row {row + 1}, column label must be in [0, 9], got {labels[row]}.")
    source = provenance(zip((IMAGES, LABELS), paths, strict=True))
    return LabeledImages(
        images=torch.tensor(images, dtype=torch.float32) / 255,
        labels=torch.tensor(labels, dtype=torch.int64),
        files=source.files,
        official=source.official,
        notices=source.notices,
    )


def _find(remote: RemoteFile, home: DataHome) -> Path:
    unpacked = home.root / FOLDER / remote.name.removesuffix(".gz")
    return unpacked if unpacked.is_file() else fetch(remote, home, FOLDER)


def parse_idx(content: bytes, path: Path, dimensions: int) -> UInt8[np.ndarray, ...]:
    """An array of bytes in IDX form: 0, 0, type, number of dimensions; each size as a big-endian uint32; the values."""
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
    if content[:4] != magic:
        raise DataError(
            f"{path}: undecodable, an IDX file of bytes begins with {magic.hex()}, got {content[:4].hex()}."
        )
    if len(content) < header:
        raise DataError(f"{path}: truncated in its header, {len(content)} of {header} bytes.")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header + math.prod(shape)
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "too long"
        raise DataError(f"{path}: {state}, {len(content)} bytes where its header says {expected}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
