"""ChestX-ray14: 112,120 frontal chest X-rays of 30,805 patients (NIH Clinical Center), each with up to 14 findings.

Source: Wang et al. 2017, in the official layout below ``<root>/chestxray14``: ``Data_Entry_2017_v2020.csv`` (or the
older ``Data_Entry_2017.csv``), the images in ``images/`` or ``images_001/images/`` to ``images_012/images/``, and
optionally the official ``train_val_list.txt`` and ``test_list.txt``. The labels were read from reports by a program.
Inputs (3, crop, crop), see ``images.py``; targets (rows, 14), 0 or 1 per finding; groups are the patient numbers.
No patient is in two splits: by the official lists where both are there, else by a seeded shuffle of the patients. A
patient's split depends on the label file and ``split_seed`` alone, not on ``rows``, ``views`` or missing images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float32, Int64

from spectral_run.datasets.base import Data, DataError, DataHome, Dataset, Split
from spectral_run.datasets.chest_xray.findings import FINDINGS, NO_FINDING
from spectral_run.datasets.chest_xray.images import Decoding, Geometry, listed, load_images
from spectral_run.datasets.chest_xray.label_files import parsed, read_columns, refuse_repeats
from spectral_run.datasets.chest_xray.patients import hold_out_patients, subsample_patients
from spectral_run.datasets.files import ByHandError, file_digest
from spectral_run.datasets.splits import check_fraction, check_rows, check_seed

FOLDER: Final = "chestxray14"
LABELS: Final = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS: Final = ("train_val_list.txt", "test_list.txt")
HOME_PAGE: Final = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
OFFICIAL_ROWS: Final = 112_120
SPLITS: Final = ("auto", "official", "patients")
VIEWS: Final = ("all", "PA", "AP")

Numbers: TypeAlias = Int64[np.ndarray, " _"]
Parts: TypeAlias = tuple[Numbers, Numbers, Numbers]
"""Rows of the label file that are for training, validation and test."""


@final
@dataclass(frozen=True, kw_only=True)
class ChestXray14(Dataset):
    """The NIH chest X-rays. Fractions are of all patients; the official test list takes the place of ``test_fraction``.

    ``rows`` takes so many images of patients drawn at random, of each split its share, for quick runs.
    """

    resize: int = 256
    crop: int = 224
    split: str = "auto"
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    views: str = "all"
    rows: int | None = None
    split_seed: int = 0
    workers: int | None = None
    bad_images_limit: float = 0.01

    loss = "binary_cross_entropy"

    def __post_init__(self) -> None:
        _ = self.geometry, self.decoding  # check themselves
        check_fraction("ChestXray14", "validation_fraction", self.validation_fraction)
        check_fraction("ChestXray14", "test_fraction", self.test_fraction)
        if not self.validation_fraction + self.test_fraction < 1:
            total = self.validation_fraction + self.test_fraction
            raise ValueError(f"ChestXray14: validation_fraction + test_fraction must be < 1, got {total:g}.")
        for name, value, choices in (("split", self.split, SPLITS), ("views", self.views, VIEWS)):
            if value not in choices:
                raise ValueError(f"ChestXray14: {name} must be one of {', '.join(choices)}, got {value!r}.")
        check_rows("ChestXray14", "rows", self.rows)
        check_seed("ChestXray14", "split_seed", self.split_seed)

    @property
    def geometry(self) -> Geometry:
        """How an image becomes an input."""
        return Geometry(self.resize, self.crop)

    @property
    def decoding(self) -> Decoding:
        """How files become images."""
        return Decoding(workers=self.workers, bad_images_limit=self.bad_images_limit)

    @property
    def name(self) -> str:
        """The name on the command line."""
        return "chest_xray"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Three equal channels."""
        return self.geometry.shape

    @property
    def classes(self) -> int:
        """One output per finding."""
        return len(FINDINGS)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The findings."""
        return FINDINGS

    def prepare(self, home: DataHome) -> None:
        """Find the label file and an image folder; nothing can be fetched."""
        _label_file(home)
        _image_folders(home)
        if self.split == "official":
            _require_lists(home)

    def load(self, home: DataHome) -> Data:
        """Read the labels, decode what has not been, and split."""
        folder, path = home.root / FOLDER, _label_file(home)
        images, targets, patients, views = read_labels(path)
        files, told = {path.name: file_digest(path)}, []
        if self._official(home):
            parts = self._by_lists(home, images, patients)
            files |= {name: file_digest(folder / name) for name in LISTS}
        else:
            parts = self._by_patients(patients)
            there = [name for name in LISTS if (folder / name).is_file()]
            told = [f"{folder} has {there[0]} but not the other official list: split by patient"] if there else []
        parts = self._chosen(parts, patients, np.array(views))
        chosen = np.sort(np.concatenate(parts))
        names = _paths(home, [images[row] for row in chosen])
        read = load_images(folder, names, self.geometry, self.decoding)
        rows = chosen[read.kept]  # of the label file, whose images are good
        splits = []
        for part in parts:
            places = np.flatnonzero(np.isin(rows, part))
            took = rows[places]
            inputs = read.inputs.select(places)
            splits.append(Split(inputs, torch.from_numpy(targets[took]), torch.from_numpy(patients[took])))
        origin = (
            f"{path.name} is recorded as not the official release: NIH states no checksum to know it by "
            f"({len(images)} images, officially {OFFICIAL_ROWS})"
        )
        return Data(
            name=self.name,
            train=splits[0],
            validation=splits[1],
            test=splits[2],
            files={**files, **read.files},
            official=False,
            notices=(origin, *told, *read.notices),
        )

    def _official(self, home: DataHome) -> bool:
        if self.split == "official":
            _require_lists(home)
        return self.split != "patients" and all((home.root / FOLDER / name).is_file() for name in LISTS)

    def _by_patients(self, patients: Int64[np.ndarray, " rows"]) -> Parts:
        rest, test = hold_out_patients("ChestXray14", patients, self.test_fraction, self.split_seed)
        return (*self._validation(patients, rest), test)

    def _by_lists(self, home: DataHome, images: list[str], patients: Int64[np.ndarray, " rows"]) -> Parts:
        folder = home.root / FOLDER
        rest, test = (np.isin(images, read_list(folder / name)) for name in LISTS)
        for wrong, where in ((rest & test, "in both official lists"), (~rest & ~test, "in neither official list")):
            if wrong.any():
                those = [images[row] for row in np.flatnonzero(wrong)]
                raise DataError(
                    f"{folder}: {len(those)} images are {where}: {listed(those)}; split=patients ignores them."
                )
        both = np.intersect1d(patients[rest], patients[test])
        if len(both):
            those = [str(patient) for patient in both]
            raise DataError(f"{folder}: {len(those)} patients are in both official lists: {listed(those)}.")
        return (*self._validation(patients, np.flatnonzero(rest)), np.flatnonzero(test))

    def _validation(
        self, patients: Int64[np.ndarray, " rows"], rest: Int64[np.ndarray, " rest"]
    ) -> tuple[Numbers, Numbers]:
        fraction = self.validation_fraction / (1 - self.test_fraction)
        train, validation = hold_out_patients("ChestXray14", patients[rest], fraction, self.split_seed)
        return rest[train], rest[validation]

    def _chosen(self, parts: Parts, patients: Int64[np.ndarray, " rows"], views: np.ndarray) -> Parts:
        """Of each part the rows that ``views`` and ``rows`` want."""
        if self.views != "all":
            train, validation, test = (part[views[part] == self.views] for part in parts)
            parts = (train, validation, test)
        if self.rows is None:
            return parts
        total = sum(map(len, parts))
        if not 3 <= self.rows <= total:
            raise DataError(f"ChestXray14: rows must be in [3, {total}], the images that there are, got {self.rows}.")
        wanted = [max(1, round(self.rows * len(part) / total)) for part in parts[1:]]
        wanted = [self.rows - sum(wanted), *wanted]
        train, validation, test = (
            part[subsample_patients("ChestXray14", patients[part], rows, self.split_seed)]
            for part, rows in zip(parts, wanted, strict=True)
        )
        return train, validation, test


def read_labels(
    path: Path,
) -> tuple[list[str], Float32[np.ndarray, "rows 14"], Int64[np.ndarray, " rows"], list[str]]:
    """Image names, findings (0 or 1), patient numbers and views (PA or AP) of a label file."""
    columns = ("Image Index", "Finding Labels", "Patient ID", "View Position")
    images, findings, patients, views = read_columns(path, columns)
    refuse_repeats(path, columns[0], images)
    parsed(path, columns[0], images, _file_name, "the name of a file")
    parsed(path, columns[3], views, VIEWS[1:].index, f"one of {', '.join(VIEWS[1:])}")
    names = f"names of findings joined by |, or {NO_FINDING!r}"
    targets = np.array(parsed(path, columns[1], findings, _targets, names), np.float32)
    numbers = np.array(parsed(path, columns[2], patients, int, "an integer"), np.int64)
    return images, targets, numbers, views


def _file_name(cell: str) -> str:
    if not cell or Path(cell).name != cell:
        raise ValueError
    return cell


def _targets(cell: str) -> list[float]:
    names = [] if cell == NO_FINDING else cell.split("|")
    columns = {FINDINGS.index(name) for name in names}  # ValueError for any other name
    return [float(column in columns) for column in range(len(FINDINGS))]


def read_list(path: Path) -> list[str]:
    """The image names of an official list, one to a line."""
    return path.read_text(encoding="utf-8-sig").split()


def _label_file(home: DataHome) -> Path:
    for name in LABELS:
        path = home.root / FOLDER / name
        if path.is_file():
            return path
    raise _by_hand(home, f"no file {(home.root / FOLDER / LABELS[0]).absolute()}")


def _image_folders(home: DataHome) -> list[Path]:
    folder = home.root / FOLDER
    found = [path for path in (folder / "images", *sorted(folder.glob("images_*/images"))) if path.is_dir()]
    if not found:
        raise _by_hand(home, f"no folder {(folder / 'images').absolute()}")
    return found


def _require_lists(home: DataHome) -> None:
    for name in LISTS:
        if not (home.root / FOLDER / name).is_file():
            reason = f"no file {(home.root / FOLDER / name).absolute()}, which split=official needs"
            raise _by_hand(home, f"{reason} (split=patients needs none)")


def _by_hand(home: DataHome, what: str) -> ByHandError:
    return ByHandError(
        f"{what}. No program can fetch ChestX-ray14: get {LABELS[0]}, images/images_001.tar.gz to images_012.tar.gz, "
        f"unpacked (folder images/ or images_001/images/ to images_012/images/), and {' and '.join(LISTS)} "
        f"from {HOME_PAGE}, and put them into {(home.root / FOLDER).absolute()}, or point SPECTRAL_DATA or "
        f"data_root=... to a folder that has {FOLDER}/{LABELS[0]}."
    )


def _paths(home: DataHome, images: list[str]) -> list[str]:
    """Where each image is, below the data set's folder; one that is nowhere is looked for in the first image folder."""
    folder, places = home.root / FOLDER, dict[str, str]()
    folders = [path.relative_to(folder).as_posix() for path in _image_folders(home)]
    for place in reversed(folders):
        places |= {path.name: f"{place}/{path.name}" for path in (folder / place).iterdir()}
    return [places.get(image, f"{folders[0]}/{image}") for image in images]
