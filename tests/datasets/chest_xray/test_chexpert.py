from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

from spectral_run.datasets.base import DataError
from spectral_run.datasets.chest_xray.chexpert import load_chexpert, prepare_chexpert
from spectral_run.datasets.chest_xray.findings import COMMON
from spectral_run.datasets.chest_xray.images import Decoding, Geometry
from spectral_run.datasets.chest_xray.transfer_sets import Selection
from spectral_run.datasets.files import ByHandError

SMALL = Geometry(32, 24)


def table(folder: Path, part: str) -> list[dict[str, str]]:
    with (folder / f"{part}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def edit(folder: Path, part: str, old: str, new: str) -> None:
    path = folder / f"{part}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("release", ["CheXpert-v1.0", "CheXpert-v1.0-small"])
@pytest.mark.parametrize("below", [".", "chexpert"])
def test_layouts(chest_files, release: str, below: str) -> None:
    chest_files.chexpert(train=12, valid=6, release=release, below=below)
    for part, rows in (("train", 12), ("valid", 6)):
        prepare_chexpert(chest_files.home, part)
        found = load_chexpert(chest_files.home, part, SMALL)
        assert (found.name, found.part) == ("chexpert", part)
        assert found.inputs.shape == (rows, 3, 24, 24)
        assert found.labels.shape == (rows, 6)
        assert found.labels.dtype == torch.float32
        assert set(found.files) == {f"{release}/{part}.csv", f"images ({rows} files)"}
        assert not found.skipped
        assert not found.notices


def test_labels_of_the_six(chest_files) -> None:
    folder = chest_files.chexpert(train=40, valid=20)
    for part in ("train", "valid"):
        found = load_chexpert(chest_files.home, part, SMALL)
        for row, path, labels in zip(table(folder, part), found.paths, found.labels, strict=True):
            assert row["Path"] == f"CheXpert-v1.0-small/{path}"
            for name, label in zip(COMMON, labels.tolist(), strict=True):
                cell = row[name]
                assert math.isnan(label) if cell in ("-1.0", "") else label == float(cell)
    assert not load_chexpert(chest_files.home, "valid", SMALL).labels.isnan().any()
    train = load_chexpert(chest_files.home, "train", SMALL).labels
    assert train.isnan().any()
    assert (train == 0).any()
    assert (train == 1).any()


def test_no_finding_does_not_make_blanks_negative(chest_files) -> None:
    folder = chest_files.chexpert(train=4, valid=2)
    edit(
        folder,
        "train",
        table(folder, "train")[0]["Path"],
        "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg",
    )
    rows = table(folder, "train")
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, **dict.fromkeys(COMMON, ""), "No Finding": "1.0"} for row in rows)
    assert load_chexpert(chest_files.home, "train", SMALL).labels.isnan().all()


def test_patients_are_the_paths(chest_files) -> None:
    chest_files.chexpert(train=6, valid=4)
    assert load_chexpert(chest_files.home, "train", SMALL).groups.tolist() == [1, 1, 2, 2, 3, 3]
    assert load_chexpert(chest_files.home, "valid", SMALL).groups.tolist() == [64541, 64541, 64542, 64542]


def test_pixels_are_the_paths(chest_files) -> None:
    chest_files.chexpert(train=6, valid=2)
    found = load_chexpert(chest_files.home, "train", SMALL)
    frontal = load_chexpert(chest_files.home, "train", SMALL, selection=Selection(views="frontal"))
    assert [path for path in found.paths if "frontal" in path] == list(frontal.paths)
    assert torch.equal(found.inputs[0:6:2], frontal.inputs[:])
    assert frontal.skipped == {"views that are not frontal": 3}
    assert torch.equal(frontal.groups, found.groups[::2])


def test_another_site_looks_otherwise(chest_files) -> None:
    chest_files.nih(12)
    folder = chest_files.chexpert(train=12, valid=2)
    border = load_chexpert(chest_files.home, "train", Geometry(64, 64)).inputs[:][:, 0, 0]
    assert (border - border.min()).abs().max() < 0.1  # black, to JPEG's rounding
    assert (folder / "train/patient00001/study1/view1_frontal.jpg").is_file()


def test_rows_are_drawn_by_patient(chest_files) -> None:
    chest_files.chexpert(train=40, valid=2)
    few = load_chexpert(chest_files.home, "train", SMALL, selection=Selection(rows=8))
    assert len(few.inputs) == len(few.labels) == len(few.paths) == 8
    assert len(few.groups.unique()) == 4
    other = load_chexpert(chest_files.home, "train", SMALL, selection=Selection(rows=8, seed=1))
    assert other.paths != few.paths
    with pytest.raises(DataError, match=r"train part: rows must be at most 40, the images there are, got 41\."):
        load_chexpert(chest_files.home, "train", SMALL, selection=Selection(rows=41))


def test_bad_images(chest_files) -> None:
    folder = chest_files.chexpert(train=12, valid=2)
    (folder / "train/patient00002/study1/view1_frontal.jpg").unlink()
    (folder / "train/patient00003/study1/view2_lateral.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"1 missing \(train/patient00002/.*1 undecodable \(train/patient00003"):
        load_chexpert(chest_files.home, "train", SMALL)
    found = load_chexpert(chest_files.home, "train", SMALL, decoding=Decoding(bad_images_limit=0.2))
    assert found.skipped == {"missing images": 1, "undecodable images": 1}
    assert found.groups.tolist() == [1, 1, 2, 3, 4, 4, 5, 5, 6, 6]
    assert len(found.inputs) == len(found.labels) == len(found.paths) == 10


def test_the_large_release_is_preferred(chest_files) -> None:
    chest_files.chexpert(train=4, valid=4, release="CheXpert-v1.0-small")
    chest_files.chexpert(train=6, valid=4, release="CheXpert-v1.0")
    assert len(load_chexpert(chest_files.home, "train", SMALL).inputs) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("study1/view1_frontal", "view1_frontal", r"row 1, column 'Path' must be <release>/train/patient<number>/"),
        ("/train/patient00001", "/train/../x", r"row 1, column 'Path' must be"),
        (",Frontal,", ",Oblique,", r"row 1, column 'Frontal/Lateral' must be Frontal or Lateral, got 'Oblique'"),
        ("Atelectasis", "Ateloctasis", r"must have a column 'Atelectasis'"),
        ("view2_lateral", "view1_frontal", r"rows 1 and 2 both have 'CheXpert-v1\.0-small/train/patient00001"),
    ],
)
def test_tables_that_cannot_be(chest_files, old: str, new: str, message: str) -> None:
    edit(chest_files.chexpert(train=4, valid=2), "train", old, new)
    with pytest.raises(DataError, match=message):
        load_chexpert(chest_files.home, "train", SMALL)


def test_a_label_that_cannot_be(chest_files) -> None:
    folder = chest_files.chexpert(train=4, valid=2)
    with (folder / "valid.csv").open("a") as file:
        file.write("CheXpert-v1.0-small/valid/patient1/study1/view1_frontal.jpg,Male,1,Frontal,AP" + ",2.0" * 14 + "\n")
    with pytest.raises(DataError, match=r"row 3, column 'Atelectasis' must be 1, 0, -1 or blank, got '2\.0'\."):
        load_chexpert(chest_files.home, "valid", SMALL)


def test_absent(chest_files) -> None:
    with pytest.raises(ByHandError, match=r"no file .*CheXpert-v1\.0/valid\.csv\. No program can fetch CheXpert: reg"):
        prepare_chexpert(chest_files.home, "valid")
    with pytest.raises(ByHandError, match="data_root="):
        load_chexpert(chest_files.home, "train", SMALL)
    with pytest.raises(ValueError, match=r"load_chexpert: part must be one of train, valid, got 'test'\."):
        load_chexpert(chest_files.home, "test", SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": "PA"}, r"Selection: views must be one of all, frontal, got 'PA'\."),
        ({"rows": 0}, r"Selection: rows must be null or an integer >= 1, got 0\."),
        ({"seed": -1}, r"Selection: seed must be an integer"),
    ],
)
def test_selections_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Selection(**settings)  # type: ignore[arg-type]
