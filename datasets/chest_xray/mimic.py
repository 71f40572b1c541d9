"""MIMIC-CXR-JPG 2: 377,110 chest X-rays of 65,379 patients (Beth Israel Deaconess, 2011 to 2016).

Source: Johnson et al. 2019 (PhysioNet, versions 2.0.0 and 2.1.0), in the official layout: ``files/p10/p10000032/
s50414267/<dicom_id>.jpg`` and the CSV files ``mimic-cxr-2.0.0-split`` (a row per image), ``-chexpert`` (labels, a row
per study, from its report) and, for ``views=frontal``, ``-metadata`` (``ViewPosition``), each gzipped or not. The
folder is ``<root>/mimic-cxr-jpg``, one with a version in its name or inside it, or where PhysioNet's wget puts it.
Images of studies without a row of labels are left out, counted and named. The paper's 369,188 + 2,732 images are those
of version 1.0, split otherwise; version 2 has 368,960 (train), 2,991 (validate) and 5,159 (test).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from spectral_run.datasets.base import DataError, DataHome
from spectral_run.datasets.chest_xray.findings import COMMON
from spectral_run.datasets.chest_xray.images import Decoding, Geometry
from spectral_run.datasets.chest_xray.images import listed as listed_names
from spectral_run.datasets.chest_xray.label_files import parsed, read_columns, refuse_repeats
from spectral_run.datasets.chest_xray.transfer_sets import (
    Listed,
    Selection,
    TransferSet,
    check_part,
    labels_of,
    transfer_set,
)
from spectral_run.datasets.files import ByHandError, file_digest

PARTS: Final = ("train", "validate", "test")
TABLES: Final = ("split", "chexpert", "metadata")
FRONTAL: Final = ("PA", "AP")
HOME_PAGE: Final = "https://physionet.org/content/mimic-cxr-jpg/"
PLACES: Final = ("mimic-cxr-jpg", "mimic-cxr-jpg/*", "mimic-cxr-jpg*", "physionet.org/files/mimic-cxr-jpg/*")
UNLABELLED: Final = "images of studies without labels"
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+")


def load_mimic(
    home: DataHome,
    part: str,
    geometry: Geometry,
    *,
    selection: Selection | None = None,
    decoding: Decoding | None = None,
) -> TransferSet:
    """The ``train``, ``validate`` or ``test`` part. Raises ``ByHandError`` where it is not there, and ``DataError``."""
    check_part("load_mimic", part, PARTS)
    selection = selection or Selection()
    tables = find_tables(home, TABLES if selection.views == "frontal" else TABLES[:2])
    images, studies, patients = _images(tables["split"], part)
    numbers, labels = _labels(tables["chexpert"])
    rows = {study: row for row, study in enumerate(numbers)}
    known = np.array([study in rows for study in studies])
    without = sorted({f"s{study}" for study, has in zip(studies, known, strict=True) if not has})
    kept = np.flatnonzero(known)
    if not len(kept):
        raise DataError(f"{tables['chexpert']}: has no study of the {part} part of {tables['split']}.")
    told = f"{len(without)} studies of the {part} part have no labels, left out: {listed_names(without)}"
    paths = [
        f"files/p{str(patients[row])[:2]}/p{patients[row]}/s{studies[row]}/{images[row]}.jpg" for row in kept.tolist()
    ]
    frontal = None
    if "metadata" in tables:
        frontal = _frontal(tables["metadata"], [images[row] for row in kept.tolist()])
    listed = Listed(
        name="mimic",
        part=part,
        folder=tables["split"].parent,
        paths=paths,
        labels=labels[[rows[studies[row]] for row in kept.tolist()]],
        patients=np.array(patients, np.int64)[kept],
        frontal=frontal,
        files={path.name: file_digest(path) for path in tables.values()},
        notices=(told,) if without else (),
        skipped={UNLABELLED: len(images) - len(kept)} if without else {},
    )
    return transfer_set(listed, geometry, selection, decoding or Decoding())


def prepare_mimic(home: DataHome, part: str) -> None:
    """Raise ``ByHandError`` where its tables are not there; all parts share them."""
    check_part("prepare_mimic", part, PARTS)
    find_tables(home, TABLES[:2])


def find_tables(home: DataHome, names: Sequence[str]) -> dict[str, Path]:
    """The CSV files, by what they are of, in the folder of the newest version. Raises ``ByHandError``."""
    folders = {folder for place in PLACES for folder in home.root.glob(place) if _table(folder, "split")}
    folder = max(folders, key=lambda folder: (_VERSION.findall(str(folder))[-1:], str(folder)), default=None)
    folder = folder or home.root / PLACES[0]
    tables = {}
    for name in names:
        path = _table(folder, name)
        if path is None:
            raise ByHandError(
                f"no file {(folder / f'mimic-cxr-2.0.0-{name}.csv.gz').absolute()}, nor that one unpacked. No program "
                f"can fetch MIMIC-CXR-JPG: PhysioNet gives it to credentialed users at {HOME_PAGE}. Put the files "
                f"mimic-cxr-2.0.0-*.csv.gz and the folder files/ into {(home.root / PLACES[0]).absolute()}, or point "
                f"SPECTRAL_DATA or data_root=... to a folder that has {PLACES[0]}."
            )
        tables[name] = path
    return tables


def _table(folder: Path, name: str) -> Path | None:
    found = sorted((*folder.glob(f"mimic-cxr-2.*-{name}.csv"), *folder.glob(f"mimic-cxr-2.*-{name}.csv.gz")))
    return found[-1] if found else None


def _images(path: Path, part: str) -> tuple[list[str], list[int], list[int]]:
    """DICOM names, study and patient numbers of the part's images."""
    columns = ("dicom_id", "study_id", "subject_id", "split")
    images, studies, patients, splits = read_columns(path, columns)
    refuse_repeats(path, columns[0], images)
    parsed(path, columns[3], splits, PARTS.index, f"one of {', '.join(PARTS)}")
    parsed(path, columns[0], images, _dicom, "the name of an image")
    numbers = [
        parsed(path, column, cells, int, "an integer")
        for column, cells in ((columns[1], studies), (columns[2], patients))
    ]
    rows = [row for row, split in enumerate(splits) if split == part]
    if not rows:
        raise DataError(f"{path}: has no image of the {part} part.")
    return [images[row] for row in rows], [numbers[0][row] for row in rows], [numbers[1][row] for row in rows]


def _dicom(cell: str) -> str:
    if not cell or Path(cell).name != cell:
        raise ValueError
    return cell


def _labels(path: Path) -> tuple[list[int], np.ndarray]:
    """Study numbers, and the labels of each."""
    studies, *labels = read_columns(path, ("study_id", *COMMON))
    refuse_repeats(path, "study_id", studies)
    return parsed(path, "study_id", studies, int, "an integer"), labels_of(path, dict(zip(COMMON, labels, strict=True)))


def _frontal(path: Path, images: Sequence[str]) -> np.ndarray:
    names, views = read_columns(path, ("dicom_id", "ViewPosition"))
    view = dict(zip(names, views, strict=True))
    lacking = [image for image in images if image not in view]
    if lacking:
        raise DataError(f"{path}: has no row for {len(lacking)} images of the split table: {listed_names(lacking)}.")
    return np.array([view[image] in FRONTAL for image in images])
