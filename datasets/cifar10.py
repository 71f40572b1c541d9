"""CIFAR-10: 50,000 + 10,000 color photographs of 32x32 pixels.

Source: Krizhevsky 2009, as pickles in ``<root>/cifar10/cifar-10-batches-py`` or ``<root>/cifar-10-batches-py``, else as
Parquet shards ``<root>/cifar10/{train,test}-*-of-*.parquet``. A download brings the pickles.
Inputs (3, 32, 32), each channel minus its mean over the training split's pixels, over their deviation; 10 classes.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from torchvision import datasets as torchvision_datasets

from spectral_run.datasets.base import Data, DataError, DataHome, Dataset, Split
from spectral_run.datasets.cache import write_whole
from spectral_run.datasets.cifar10_files import CLASSES, SHAPE, Rows, find_shards, read_parquet, read_pickle
from spectral_run.datasets.files import Provenance, RemoteFile, fetch, file_digest, missing, provenance
from spectral_run.datasets.splits import check_fraction, check_rows, check_seed, hold_out, subsample

FOLDER = "cifar10"
RELEASE = torchvision_datasets.CIFAR10
PICKLES: str = RELEASE.base_folder
ARCHIVE = RemoteFile(name=RELEASE.filename, url=RELEASE.url, md5=RELEASE.tgz_md5)


def _batches(listed: Iterable[list[str]]) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name=name, url=ARCHIVE.url, md5=md5) for name, md5 in listed)


TRAIN, TEST = _batches(RELEASE.train_list), _batches(RELEASE.test_list)


@final
@dataclass(frozen=True, kw_only=True)
class CIFAR10(Dataset):
    """CIFAR-10; part of the official training set becomes the validation set.

    ``rows`` takes a stratified sample of the official training set first, for quick runs; the test split stays whole.
    """

    validation_fraction: float = 0.1
    rows: int | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_fraction("CIFAR10", "validation_fraction", self.validation_fraction)
        check_rows("CIFAR10", "rows", self.rows)
        check_seed("CIFAR10", "split_seed", self.split_seed)

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "cifar10"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Three channels of 32x32."""
        return SHAPE

    @property
    def classes(self) -> int:
        """Ten kinds of objects."""
        return CLASSES

    def prepare(self, home: DataHome) -> None:
        """Find the pickles or the shards, or fetch and unpack the archive."""
        _find(home)

    def load(self, home: DataHome) -> Data:
        """Read, check, split and normalize."""
        train, test, source = _read(_find(home))
        images, labels = train
        if self.rows is not None:
            chosen = subsample("CIFAR10", labels, self.rows, self.split_seed)
            images, labels = images[chosen], labels[chosen]
        kept, held = hold_out("CIFAR10", labels, self.validation_fraction, self.split_seed)
        mean, deviation = channel_statistics(images[kept])
        splits = [
            Split(normalize(pixels, mean, deviation), torch.from_numpy(targets))
            for pixels, targets in ((images[kept], labels[kept]), (images[held], labels[held]), test)
        ]
        return Data(
            name=self.name,
            train=splits[0],
            validation=splits[1],
            test=splits[2],
            files=source.files,
            official=source.official,
            notices=source.notices,
        )


Found = tuple[list[Path], list[Path]]  # files of the training and of the test set


def _find(home: DataHome) -> Found:
    for folder in (home.root / FOLDER / PICKLES, home.root / PICKLES):
        found = [folder / remote.name for remote in TRAIN], [folder / remote.name for remote in TEST]
        if all(path.is_file() for path in found[0] + found[1]):
            return found
    shards = find_shards(home.root / FOLDER, "train"), find_shards(home.root / FOLDER, "test")
    if shards[0] and shards[1]:
        return shards
    if shards[0] or shards[1]:
        lacking = "test" if shards[0] else "train"
        raise FileNotFoundError(
            f"no {lacking}-*-of-*.parquet in {(home.root / FOLDER).absolute()}, the others are there."
        )
    for folder in (home.root / FOLDER / PICKLES, home.root / PICKLES):
        if folder.is_dir() and not home.download:
            first = next(path for path in (folder / remote.name for remote in TRAIN + TEST) if not path.is_file())
            raise missing(ARCHIVE, first, FOLDER, "others of its folder are there; download=true fetches it")
    folder = home.root / FOLDER / PICKLES
    archive = fetch(ARCHIVE, home, FOLDER)
    try:
        unpack(archive, folder)
    except OSError as error:  # a data root that can only be read
        raise missing(ARCHIVE, folder, FOLDER, f"unpacking {archive.name} failed: {error}") from error
    return [folder / remote.name for remote in TRAIN], [folder / remote.name for remote in TEST]


def unpack(archive: Path, folder: Path) -> None:
    """Write the batches that ``folder`` lacks. By their known names only, so no member decides where it lands."""
    folder.mkdir(exist_ok=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for remote in TRAIN + TEST:
                member = tar.extractfile(f"{PICKLES}/{remote.name}")
                if member is None:
                    raise DataError(f"{archive}: {PICKLES}/{remote.name} is no regular file.")
                if not (folder / remote.name).is_file():
                    write_whole(folder / remote.name, partial(shutil.copyfileobj, member))
    except KeyError as error:
        raise DataError(f"{archive}: {error}.") from error
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{archive}: truncated or undecodable ({error}).") from error


def _read(found: Found) -> tuple[Rows, Rows, Provenance]:
    if found[0][0].suffix == ".parquet":
        files = {path.name: file_digest(path) for path in found[0] + found[1]}
        notice = (
            f"the {len(files)} Parquet shards in {FOLDER}/ are not the official release ({ARCHIVE.name}, "
            f"{ARCHIVE.checksum}): loaded as they are"
        )
        source = Provenance(files=files, official=False, notices=(notice,))
        train, test = (_concatenate([read_parquet(path, files[path.name]) for path in part]) for part in found)
    else:
        source = provenance(zip(TRAIN + TEST, found[0] + found[1], strict=True))
        train, test = (_concatenate([read_pickle(path) for path in part]) for part in found)
    return train, test, source


def _concatenate(parts: list[Rows]) -> Rows:
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def channel_statistics(
    images: UInt8[np.ndarray, "rows 3 32 32"],
) -> tuple[Float64[np.ndarray, " 3"], Float64[np.ndarray, " 3"]]:
    """Mean and population deviation of each channel in units of [0, 1], exact: from counts of the 256 levels.

    The deviation of a constant channel is given as 1, to divide by.
    """
    levels = np.arange(256) / 255
    means, deviations = np.empty(3), np.empty(3)
    for channel in range(3):
        counts = torch.bincount(torch.from_numpy(images[:, channel].reshape(-1)), minlength=256).numpy()
        means[channel] = np.average(levels, weights=counts)
        constant = np.count_nonzero(counts) == 1
        deviations[channel] = 1 if constant else np.sqrt(np.average((levels - means[channel]) ** 2, weights=counts))
    return means, deviations


def normalize(
    images: UInt8[np.ndarray, "rows 3 32 32"], mean: Float64[np.ndarray, " 3"], deviation: Float64[np.ndarray, " 3"]
) -> Float32[Tensor, "rows 3 32 32"]:
    """``(images / 255 - mean) / deviation``, in place after the cast: 50,000 images are 0.6 GB."""
    inputs = torch.from_numpy(images).to(torch.float32).div_(255)
    shape = (1, 3, 1, 1)
    center, scale = (torch.tensor(value, dtype=torch.float32).view(shape) for value in (mean, deviation))
    return inputs.sub_(center).div_(scale)
