from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectral_run.datasets.base import Data, DataError, DataHome, check_data
from spectral_run.datasets.chest_xray.findings import COMMON, COMMON_COLUMNS, FINDINGS
from spectral_run.datasets.chest_xray.nih import ChestXray14, read_labels
from spectral_run.datasets.files import ByHandError

REAL = pytest.mark.skipif("SPECTRAL_DATA" not in os.environ, reason="SPECTRAL_DATA is not set")
SETTINGS = {"resize": 32, "crop": 32}


def patients(data: Data) -> list[set[int]]:
    return [set(split.groups.tolist()) for split in (data.train, data.validation, data.test)]


def images_of(data: Data) -> list[set[bytes]]:
    return [{row.numpy().tobytes() for row in split.tensor} for split in (data.train, data.validation, data.test)]


def lines(folder: Path) -> list[str]:
    return (folder / "Data_Entry_2017_v2020.csv").read_text().splitlines()


def rewrite(folder: Path, changed: list[str]) -> None:
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join(changed) + "\n")


def test_findings() -> None:
    assert len(FINDINGS) == len(set(FINDINGS)) == 14
    assert [FINDINGS[column] for column in COMMON_COLUMNS] == list(COMMON)
    assert list(COMMON) == sorted(COMMON)


@pytest.mark.parametrize("archives", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_layouts(chest_files, archives: bool, old: bool) -> None:
    chest_files.nih(45, archives=archives, old=old)
    dataset = ChestXray14(**SETTINGS)
    dataset.prepare(chest_files.home)
    data = dataset.load(chest_files.home)
    check_data(data, dataset)
    assert sum(data.rows.values()) == 45
    assert data.train.inputs.shape[1:] == dataset.input_shape == (3, 32, 32)
    assert [len(part) for part in patients(data)] == [10, 2, 3]  # of 15: 20% and 10%, rounded up
    assert sorted(data.files) == ["Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv", "images (45 files)"]
    assert not data.official


@pytest.mark.parametrize(
    ("settings", "bad", "rows"),
    [({}, 0, 30), ({}, 4, 26), ({"rows": 17}, 0, 17), ({"views": "PA"}, 3, None), ({"views": "AP", "rows": 7}, 0, 7)],
)
def test_each_row_has_its_own_labels_and_pixels(
    chest_files, settings: dict[str, object], bad: int, rows: int | None
) -> None:
    folder = chest_files.nih(30, archives=True)
    known = {}
    for line in lines(folder)[1:]:
        name, findings, _, patient, *_ = line.split(",")
        (path,) = folder.glob(f"images_*/images/{name}")
        with Image.open(path) as image:
            grey = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        known[grey.tobytes()] = (int(patient), set() if findings == "No Finding" else set(findings.split("|")))
        if len(known) % 3 == 1 and len(known) < 3 * bad:
            path.write_bytes(b"not an image")
    data = ChestXray14(**SETTINGS, **settings, bad_images_limit=0.5).load(chest_files.home)
    total = 0
    for split in (data.train, data.validation, data.test):
        assert len(split.inputs) == len(split.targets) == len(split.groups)
        levels = (split.tensor[:, 0] * 0.229 + 0.485).mul(255).round().to(torch.uint8)
        for grey, targets, patient in zip(levels, split.targets, split.groups.tolist(), strict=True):
            number, findings = known.pop(grey.numpy().tobytes())  # no image twice
            assert number == patient
            assert {name for name, value in zip(FINDINGS, targets, strict=True) if value} == findings
            total += 1
    assert rows is None or total == rows
    assert data.train.targets.dtype == torch.float32


def test_official_lists(chest_files) -> None:
    folder = chest_files.nih(60, lists=True)
    data = ChestXray14(**SETTINGS).load(chest_files.home)
    test = set((folder / "test_list.txt").read_text().split())
    assert {f"{patient:08d}" for patient in patients(data)[2]} == {name[:8] for name in test}
    assert data.rows["test"] == len(test) == 15
    assert [len(part) for part in patients(data)] == [13, 2, 5]  # 1/8 of 15, rounded up
    assert {"train_val_list.txt", "test_list.txt"} < data.files.keys()
    other = ChestXray14(**SETTINGS, split_seed=1).load(chest_files.home)
    assert patients(other)[2] == patients(data)[2]
    assert patients(other)[1] != patients(data)[1]
    assert patients(ChestXray14(**SETTINGS, split="official").load(chest_files.home)) == patients(data)
    by_patient = ChestXray14(**SETTINGS, split="patients").load(chest_files.home)
    assert patients(by_patient)[2] != patients(data)[2]
    assert "test_list.txt" not in by_patient.files


class TestListsThatDoNotFit:
    def load(self, chest_files) -> Data:
        return ChestXray14(**SETTINGS).load(chest_files.home)

    def test_lists_may_name_more_than_the_labels(self, chest_files) -> None:
        folder = chest_files.nih(60, lists=True)
        with (folder / "test_list.txt").open("a") as file:
            file.write("00030805_000.png\n")
        assert self.load(chest_files).rows["test"] == 15

    def test_in_neither(self, chest_files) -> None:
        folder = chest_files.nih(60, lists=True)
        names = (folder / "test_list.txt").read_text().split()
        (folder / "test_list.txt").write_text("\n".join(names[3:]))
        message = rf"3 images are in neither official list: {names[0]}, .*; split=patients ignores them"
        with pytest.raises(DataError, match=message):
            self.load(chest_files)

    def test_in_both(self, chest_files) -> None:
        folder = chest_files.nih(60, lists=True)
        with (folder / "test_list.txt").open("a") as file:
            file.write("00000001_000.png\n")
        with pytest.raises(DataError, match=r"1 images are in both official lists: 00000001_000\.png"):
            self.load(chest_files)

    def test_a_patient_in_both(self, chest_files) -> None:
        folder = chest_files.nih(60, lists=True)
        names = (folder / "train_val_list.txt").read_text().split()
        (folder / "train_val_list.txt").write_text("\n".join(names[:-1]))
        with (folder / "test_list.txt").open("a") as file:
            file.write(names[-1])
        with pytest.raises(DataError, match=r"1 patients are in both official lists: 15\."):
            self.load(chest_files)

    def test_only_one_of_them(self, chest_files) -> None:
        folder = chest_files.nih(60, lists=True)
        (folder / "train_val_list.txt").unlink()
        data = self.load(chest_files)
        assert any("has test_list.txt but not the other official list: split by patient" in n for n in data.notices)
        with pytest.raises(ByHandError, match=r"train_val_list\.txt, which split=official needs \(split=patients"):
            ChestXray14(**SETTINGS, split="official").prepare(chest_files.home)


@REAL
@pytest.mark.parametrize("seed", range(5))
def test_no_patient_of_the_real_sample_is_in_two_splits(seed: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "sample-cache"))  # decoded once for all seeds
    home = DataHome(Path(os.environ["SPECTRAL_DATA"]), download=False)
    data = ChestXray14(**SETTINGS, split_seed=seed).load(home)
    train, validation, test = patients(data)
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert [len(train), len(validation), len(test)] == [184, 27, 53]
    assert sum(data.rows.values()) == 1000
    images = images_of(data)
    assert sum(map(len, images)) == len(set.union(*images))


@REAL
def test_labels_of_the_real_sample() -> None:
    path = Path(os.environ["SPECTRAL_DATA"]) / "chestxray14" / "Data_Entry_2017_v2020.csv"
    images, targets, numbers, views = read_labels(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts = Counter(name for row in rows for name in row["Finding Labels"].split("|"))
    assert targets.sum(0).tolist() == [counts[name] for name in FINDINGS]
    assert (targets.sum(1) == 0).sum() == counts["No Finding"] == 499
    assert images == [row["Image Index"] for row in rows]
    assert len(set(numbers.tolist())) == 264
    assert Counter(views) == {"PA": 637, "AP": 363}


class TestSelection:
    def test_rows(self, chest_files) -> None:
        chest_files.nih(60)
        whole, some = (ChestXray14(**SETTINGS, rows=rows).load(chest_files.home) for rows in (None, 31))
        assert sum(some.rows.values()) == 31
        assert list(some.rows.values()) == [22, 3, 6]  # each split's share
        for few, all_ in zip(patients(some), patients(whole), strict=True):
            assert few < all_
        assert "images (31 files)" in some.files
        other = ChestXray14(**SETTINGS, rows=31, split_seed=1).load(chest_files.home)
        assert patients(other)[0] != patients(some)[0]

    @pytest.mark.parametrize("rows", [3, 59, 60])
    def test_any_number_of_rows(self, chest_files, rows: int) -> None:
        chest_files.nih(60)
        data = ChestXray14(**SETTINGS, rows=rows).load(chest_files.home)
        assert sum(data.rows.values()) == rows
        assert min(data.rows.values()) >= 1

    @pytest.mark.parametrize("rows", [2, 61])
    def test_too_many_or_too_few(self, chest_files, rows: int) -> None:
        chest_files.nih(60)
        with pytest.raises(DataError, match=rf"rows must be in \[3, 60\], the images that there are, got {rows}\."):
            ChestXray14(**SETTINGS, rows=rows).load(chest_files.home)

    def test_views(self, chest_files) -> None:
        chest_files.nih(60)
        whole, ap = (ChestXray14(**SETTINGS, views=views).load(chest_files.home) for views in ("all", "AP"))
        assert sum(ap.rows.values()) == 20  # every third
        for few, all_ in zip(patients(ap), patients(whole), strict=True):
            assert few == all_

    def test_only_what_is_chosen_is_decoded(self, chest_files) -> None:
        folder = chest_files.nih(60)
        ChestXray14(**SETTINGS, rows=6).load(chest_files.home)
        (index,) = (folder.parent.parent / "cache").rglob("index.jsonl")
        assert len(index.read_text().splitlines()) == 7


class TestBadImages:
    def test_left_out_with_a_notice(self, chest_files) -> None:
        folder = chest_files.nih(60)
        whole = ChestXray14(**SETTINGS).load(chest_files.home)
        (folder / "images/00000002_001.png").unlink()
        (folder / "images/00000009_000.png").write_bytes(b"\x89PNG")
        data = ChestXray14(**SETTINGS, bad_images_limit=0.05).load(chest_files.home)
        assert sum(data.rows.values()) == 58
        assert patients(data) == patients(whole)  # nobody has moved
        notice = next(notice for notice in data.notices if "left out" in notice)
        assert "1 missing (images/00000002_001.png), 1 undecodable (images/00000009_000.png: no PNG" in notice
        for split in (data.train, data.validation, data.test):
            assert len(split.inputs) == len(split.targets) == len(split.groups)

    def test_more_than_the_limit(self, chest_files) -> None:
        folder = chest_files.nih(60)
        (folder / "images/00000002_001.png").unlink()
        with pytest.raises(DataError, match=r"1 missing \(images/00000002_001\.png\); bad_images_limit=0.01 allows 0"):
            ChestXray14(**SETTINGS).load(chest_files.home)

    def test_a_part_of_the_archives(self, chest_files) -> None:
        folder = chest_files.nih(60, archives=True)
        for path in (folder / "images_002/images").iterdir():
            path.unlink()
        with pytest.raises(DataError, match=r"30 missing \(images_001/images/"):
            ChestXray14(**SETTINGS).load(chest_files.home)
        data = ChestXray14(**SETTINGS, bad_images_limit=0.5).load(chest_files.home)
        assert sum(data.rows.values()) == 30


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ",No Finding,",
            ",Pneumonitis,",
            r"row \d+, column 'Finding Labels' must be names of findings .* 'Pneumonitis'",
        ),
        (",No Finding,", ",Mass|No Finding,", r"row \d+, column 'Finding Labels' .* got 'Mass\|No Finding'"),
        (",No Finding,", ",,", r"row \d+, column 'Finding Labels' .* got ''"),
        ("00000002_000.png", "../x.png", r"row 4, column 'Image Index' must be the name of a file, got '\.\./x\.png'"),
        ("00000002_000.png", "00000001_000.png", r"rows 1 and 4 both have '00000001_000\.png'"),
        ("PA", "LL", r"row 1, column 'View Position' must be one of PA, AP, got 'LL'"),
        ("Patient ID", "Patient", r"must have a column 'Patient ID'"),
        (",1,57,", ",one,57,", r"row 1, column 'Patient ID' must be an integer, got 'one'"),
    ],
)
def test_labels_that_cannot_be(chest_files, old: str, new: str, message: str) -> None:
    folder = chest_files.nih(30)
    path = folder / "Data_Entry_2017_v2020.csv"
    text = path.read_text()
    if "No Finding" not in text:
        text = text.replace(lines(folder)[1].split(",")[1], "No Finding")
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        ChestXray14(**SETTINGS).load(chest_files.home)


def test_one_patient_cannot_be_split(chest_files) -> None:
    chest_files.nih(6, per_patient=6)
    with pytest.raises(DataError, match=r"ChestXray14: 1 patient\(s\) can't be split"):
        ChestXray14(**SETTINGS).load(chest_files.home)


def test_absent_files_say_what_to_put_where(chest_files) -> None:
    home = chest_files.home
    with pytest.raises(ByHandError, match=r"no file .*Data_Entry_2017_v2020\.csv\. No program can fetch ChestX-ray14"):
        ChestXray14().prepare(home)
    folder = chest_files.nih(3)
    (folder / "images").rename(folder / "pictures")
    with pytest.raises(ByHandError, match=r"no folder .*/chestxray14/images\. .*https://nihcc\.app\.box\.com"):
        ChestXray14().prepare(home)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 300}, r"Geometry: crop must be at most resize \(256\), got 300\."),
        ({"split": "random"}, r"ChestXray14: split must be one of auto, official, patients, got 'random'\."),
        ({"views": "frontal"}, r"ChestXray14: views must be one of all, PA, AP, got 'frontal'\."),
        ({"validation_fraction": 0.0}, r"ChestXray14: validation_fraction must be in \(0, 1\), got 0\.0\."),
        ({"test_fraction": 0.9}, r"ChestXray14: validation_fraction \+ test_fraction must be < 1, got 1\."),
        ({"rows": 0}, r"ChestXray14: rows must be null or an integer >= 1, got 0\."),
        ({"split_seed": -1}, r"ChestXray14: split_seed must be an integer in"),
        ({"workers": 0}, r"Decoding: workers must be null or an integer >= 1, got 0\."),
        ({"bad_images_limit": -0.1}, r"Decoding: bad_images_limit must be in \[0, 1\], got -0\.1\."),
    ],
)
def test_refusals(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChestXray14(**settings)  # type: ignore[arg-type]
