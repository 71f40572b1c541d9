from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import pytest
import torch

from spectral_run.datasets.base import DataError
from spectral_run.datasets.chest_xray.findings import COMMON
from spectral_run.datasets.chest_xray.images import Decoding, Geometry
from spectral_run.datasets.chest_xray.mimic import load_mimic, prepare_mimic
from spectral_run.datasets.chest_xray.transfer_sets import Selection
from spectral_run.datasets.files import ByHandError

SMALL = Geometry(32, 24)
FRONTAL = Selection(views="frontal")


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with gzip.open(folder / f"mimic-cxr-2.0.0-{name}.csv.gz", "rt", newline="") as file:
        return list(csv.DictReader(file))


def edit(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / f"mimic-cxr-2.0.0-{name}.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1).encode()))


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
@pytest.mark.parametrize(
    "folder",
    [
        "mimic-cxr-jpg",
        "mimic-cxr-jpg/2.1.0",
        "mimic-cxr-jpg-2.0.0",
        "mimic-cxr-jpg-chest-radiographs-with-structured-labels-2.1.0",
        "physionet.org/files/mimic-cxr-jpg/2.0.0",
    ],
)
def test_layouts(chest_files, folder: str, suffix: str) -> None:
    chest_files.mimic(train=8, validate=4, test=6, folder=folder, suffix=suffix)
    for part, rows in (("train", 8), ("validate", 4), ("test", 6)):
        prepare_mimic(chest_files.home, part)
        found = load_mimic(chest_files.home, part, SMALL)
        assert (found.name, found.part) == ("mimic", part)
        assert found.inputs.shape == (rows, 3, 24, 24)
        assert found.labels.shape == (rows, 6)
        names = {f"mimic-cxr-2.0.0-{name}{suffix}" for name in ("split", "chexpert")}
        assert set(found.files) == {*names, f"images ({rows} files)"}
        assert not found.skipped


def test_labels_patients_and_paths(chest_files) -> None:
    folder = chest_files.mimic()
    studies = {row["study_id"]: row for row in table(folder, "chexpert")}
    images = [row for row in table(folder, "split") if row["split"] == "validate"]
    found = load_mimic(chest_files.home, "validate", SMALL)
    assert len(images) == len(found.paths) == 20
    for image, path, labels, patient in zip(images, found.paths, found.labels, found.groups.tolist(), strict=True):
        subject, study = image["subject_id"], image["study_id"]
        assert path == f"files/p10/p{subject}/s{study}/{image['dicom_id']}.jpg"
        assert (folder / path).is_file()
        assert patient == int(subject)
        for name, label in zip(COMMON, labels.tolist(), strict=True):
            cell = studies[study][name]
            assert math.isnan(label) if cell in ("-1.0", "") else label == float(cell)
    assert found.labels.isnan().any()
    assert (found.labels == 1).any()


def test_patients_above_p10(chest_files) -> None:
    folder = chest_files.mimic(train=2, validate=2, test=2)
    for name in ("split", "chexpert", "metadata"):
        for _ in range(4):
            path = folder / f"mimic-cxr-2.0.0-{name}.csv.gz"
            text = gzip.decompress(path.read_bytes()).decode().replace("10000032", "19999999")
            path.write_bytes(gzip.compress(text.encode()))
    (folder / "files/p19").mkdir()
    (folder / "files/p10/p10000032").rename(folder / "files/p19/p19999999")
    found = load_mimic(chest_files.home, "train", SMALL)
    assert found.groups.tolist() == [19999999, 19999999]
    assert found.paths[0].startswith("files/p19/p19999999/s50414267/")


def test_studies_without_labels_are_counted_and_named(chest_files) -> None:
    chest_files.mimic(train=12, validate=6, test=6, unlabelled=2)
    found = load_mimic(chest_files.home, "train", SMALL)
    assert len(found.inputs) == len(found.labels) == 8
    assert found.skipped == {"images of studies without labels": 4}
    expected = "2 studies of the train part have no labels, left out: s50414267, s50414268"
    assert found.notices == (expected,)


def test_none_labelled(chest_files) -> None:
    chest_files.mimic(train=4, validate=2, test=8, unlabelled=2)
    with pytest.raises(DataError, match=r"chexpert\.csv\.gz: has no study of the validate part of .*split\.csv\.gz\."):
        load_mimic(chest_files.home, "validate", SMALL)


def test_frontal_views(chest_files) -> None:
    folder = chest_files.mimic(train=8, validate=2, test=2)
    everything = load_mimic(chest_files.home, "train", SMALL)
    found = load_mimic(chest_files.home, "train", SMALL, selection=FRONTAL)
    views = {row["dicom_id"]: row["ViewPosition"] for row in table(folder, "metadata")}
    assert [views[Path(path).stem] for path in found.paths] == ["PA"] * 4
    assert found.skipped == {"views that are not frontal": 4}
    assert "mimic-cxr-2.0.0-metadata.csv.gz" in found.files
    assert torch.equal(found.inputs[:], everything.inputs[0:8:2])
    edit(folder, "metadata", ",PA,", ",,")  # some have no view
    assert len(load_mimic(chest_files.home, "train", SMALL, selection=FRONTAL).inputs) == 3


def test_metadata_that_are_not_there(chest_files) -> None:
    folder = chest_files.mimic(train=4, validate=2, test=2)
    dicom = table(folder, "metadata")[0]["dicom_id"]
    edit(folder, "metadata", dicom, "other")
    with pytest.raises(DataError, match=rf"has no row for 1 images of the split table: {dicom}\."):
        load_mimic(chest_files.home, "train", SMALL, selection=FRONTAL)
    (folder / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    assert len(load_mimic(chest_files.home, "train", SMALL).inputs) == 4
    with pytest.raises(ByHandError, match=r"no file .*metadata\.csv\.gz, nor that one unpacked"):
        load_mimic(chest_files.home, "train", SMALL, selection=FRONTAL)


def test_the_newest_version_is_read(chest_files) -> None:
    for folder, rows in (("mimic-cxr-jpg/2.0.0", 2), ("mimic-cxr-jpg-2.1.0", 6), ("mimic-cxr-jpg", 4)):
        chest_files.mimic(train=rows, validate=2, test=2, folder=folder)
    assert len(load_mimic(chest_files.home, "train", SMALL).inputs) == 6


def test_bad_images(chest_files) -> None:
    folder = chest_files.mimic(train=8, validate=2, test=2)
    path = load_mimic(chest_files.home, "train", SMALL).paths[3]
    (folder / path).write_bytes(b"")
    with pytest.raises(DataError, match=r"1 undecodable \(files/p10/"):
        load_mimic(chest_files.home, "train", SMALL)
    found = load_mimic(chest_files.home, "train", SMALL, decoding=Decoding(bad_images_limit=0.5))
    assert found.skipped == {"undecodable images": 1}
    assert path not in found.paths
    assert len(found.inputs) == len(found.labels) == len(found.groups) == 7


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("split", ",train", ",valid", r"row 1, column 'split' must be one of train, validate, test, got 'valid'\."),
        ("split", "50414267", "s50414267", r"row 1, column 'study_id' must be an integer, got 's50414267'"),
        ("split", "\n", "\n../", r"row 1, column 'dicom_id' must be the name of an image, got '\.\./"),
        ("chexpert", "50414268", "50414267", r"rows 1 and 2 both have '50414267' in column 'study_id'\."),
        ("chexpert", "Edema", "Oedema", r"must have a column 'Edema'"),
    ],
)
def test_tables_that_cannot_be(chest_files, name: str, old: str, new: str, message: str) -> None:
    edit(chest_files.mimic(train=4, validate=2, test=2), name, old, new)
    with pytest.raises(DataError, match=rf"mimic-cxr-2\.0\.0-{name}\.csv\.gz: {message}"):
        load_mimic(chest_files.home, "train", SMALL)


def test_absent(chest_files) -> None:
    with pytest.raises(ByHandError, match=r"no file .*mimic-cxr-jpg/mimic-cxr-2\.0\.0-split\.csv\.gz, .*credentialed"):
        prepare_mimic(chest_files.home, "test")
    with pytest.raises(ValueError, match=r"load_mimic: part must be one of train, validate, test, got 'valid'\."):
        load_mimic(chest_files.home, "valid", SMALL)
    chest_files.mimic(train=2, validate=2, test=0)
    with pytest.raises(DataError, match="has no image of the test part"):
        load_mimic(chest_files.home, "test", SMALL)
