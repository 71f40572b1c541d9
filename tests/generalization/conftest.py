"""Small data sets and files for the generalization tests; no real data, no network."""

import gzip
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from spectral_run.datasets.base import Data, DataHome, Dataset, Split


@dataclass(frozen=True, kw_only=True)
class Toy(Dataset):
    toy_name: str = "toy"
    shape: tuple[int, ...] = (6,)
    toy_classes: int = 3
    toy_standardized: bool = False
    toy_loss: str = "cross_entropy"

    @property
    def loss(self):
        return self.toy_loss

    @property
    def name(self):
        return self.toy_name

    @property
    def input_shape(self):
        return self.shape

    @property
    def classes(self):
        return self.toy_classes

    @property
    def standardized(self):
        return self.toy_standardized

    def load(self, home, rows=120):
        generator = torch.Generator().manual_seed(7)
        inputs = torch.randn(rows, *self.shape, generator=generator)
        if len(self.shape) == 3:
            inputs = (inputs - inputs.min()) / (inputs.max() - inputs.min())
        split = Split(inputs, torch.randint(self.toy_classes, (rows,), generator=generator))
        return Data(self.toy_name, split, split, split, {}, official=False)


@pytest.fixture(scope="session")
def toy():
    return Toy


@pytest.fixture(scope="session")
def features():
    return Toy(toy_name="features", toy_standardized=True)


@pytest.fixture(scope="session")
def images():
    return Toy(toy_name="images", shape=(1, 16, 16), toy_classes=10)


@pytest.fixture(scope="session")
def make_data():
    """A Data whose three splits are the same rows."""

    def make(inputs, targets, name="toy"):
        split = Split(inputs, targets)
        return Data(name, split, split, split, {}, official=False)

    return make


def write_idx(path, array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0))


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A data root with 60 images in MNIST's layout."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    write_idx(folder / "t10k-images-idx3-ubyte.gz", rng.integers(0, 256, (60, 28, 28)))
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", rng.integers(0, 10, 60))
    return DataHome(root, download=False)


@pytest.fixture(scope="session")
def linear():
    """A classifier with fixed random weights, as the runner's predict."""

    def make(shape, classes, seed=0, batch=1_000_000):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(int(np.prod(shape)), classes, generator=generator)
        return lambda x: torch.cat([(part.flatten(1) @ weight.to(part)).argmax(1) for part in x.split(batch)])

    return make
