"""Small data sets and files for the generalization tests; no real data, no network."""

import gzip
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_run.datasets.base import Data, DataHome, Dataset, Split
from spectral_run.datasets.chest_xray.findings import COMMON
from spectral_run.datasets.chest_xray.nih import ChestXray14


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
        targets, groups = torch.randint(self.toy_classes, (rows,), generator=generator), None
        if self.toy_loss == "binary_cross_entropy":
            targets = torch.randint(2, (rows, self.toy_classes), generator=generator).float()
            groups = torch.arange(rows) // 2
        split = Split(inputs, targets, groups)
        return Data(self.toy_name, split, split, split, {}, official=False)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory):
    """Not the user's: a GAN of a conf file is trained once per session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
def findings():
    return Toy(toy_name="findings", toy_loss="binary_cross_entropy")


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


def write_xray(path, present, noise, random):
    """A grey image of 3 by 2 cells, one for each of the six findings, brighter where it is there."""
    levels = 100 + 5 * random.standard_normal((24, 24))
    for cell, there in enumerate(present):
        row, column = divmod(cell, 2)
        brighter = 30 * there + noise * random.standard_normal()
        levels[8 * row : 8 * row + 8, 12 * column : 12 * column + 12] += brighter
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path)


def write_chest_xrays(root):
    """ChestX-ray14, CheXpert and MIMIC-CXR in their official layouts: the others' images are noisier."""
    random = np.random.default_rng(11)

    def labels(patients):
        return (random.random((3 * patients, len(COMMON))) < 0.4).astype(int)

    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    for i, present in enumerate(labels(30)):
        name, found = (
            f"{i // 3 + 1:08d}_{i % 3:03d}.png",
            [c for c, there in zip(COMMON, present, strict=True) if there],
        )
        lines.append(f"{name},{'|'.join(found) or 'No Finding'},{i % 3},{i // 3 + 1},50,M,PA")
        write_xray(root / "chestxray14" / "images" / name, present, 15, random)
    (root / "chestxray14" / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")

    chexpert = root / "CheXpert-v1.0-small"
    for part, patients in (("train", 12), ("valid", 10)):
        lines = [f"Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,{','.join(COMMON)}"]
        for i, present in enumerate(labels(patients)):
            name = f"{part}/patient{i // 3 + 1:05d}/study{i % 3 + 1}/view1_frontal.jpg"
            write_xray(chexpert / name, present, 40, random)
            cells = [f"{there}.0" for there in present]
            if part == "train":  # reports: uncertain, and not mentioned
                cells[i % 6], cells[(i + 1) % 6] = "-1.0", ""
            lines.append(f"{chexpert.name}/{name},Female,60,Frontal,AP,,{','.join(cells)}")
        (chexpert / f"{part}.csv").write_text("\n".join(lines) + "\n")

    mimic = root / "mimic-cxr-jpg"
    splits, studies = ["dicom_id,study_id,subject_id,split"], [f"subject_id,study_id,{','.join(COMMON)}"]
    for i, present in enumerate(labels(30)):
        patient, study, part = 10000000 + i // 3, 50000000 + i, ("train", "validate", "test")[i // 30]
        splits.append(f"image{i},{study},{patient},{part}")
        studies.append(f"{patient},{study},{','.join(f'{there}.0' for there in present)}")
        write_xray(mimic / f"files/p10/p{patient}/s{study}/image{i}.jpg", present, 30, random)
    for name, lines in (("split", splits), ("chexpert", studies)):
        (mimic / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


@pytest.fixture(scope="session")
def xrays():
    """As those of ``home`` are."""
    return ChestXray14(resize=24, crop=24, workers=1)


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A data root with 60 images in MNIST's layout, and the chest X-rays."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    write_idx(folder / "t10k-images-idx3-ubyte.gz", rng.integers(0, 256, (60, 28, 28)))
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", rng.integers(0, 10, 60))
    write_chest_xrays(root)
    return DataHome(root, download=False)


@pytest.fixture(scope="session")
def linear():
    """A classifier with fixed random weights, as the runner's predict."""

    def make(shape, classes, seed=0, batch=1_000_000):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(int(np.prod(shape)), classes, generator=generator)
        return lambda x: torch.cat([(part.flatten(1) @ weight.to(part)).argmax(1) for part in x.split(batch)])

    return make
