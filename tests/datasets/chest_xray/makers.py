"""Files in the official layouts of ChestX-ray14, CheXpert and MIMIC-CXR-JPG, as a test wants them.

Images are those of the NIH sample where SPECTRAL_DATA has it, drawn otherwise; other hospitals' have another contrast,
brightness and border. Tests get this as the fixture ``chest_files``.
"""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from spectral_run.datasets.base import DataHome
from spectral_run.datasets.chest_xray.findings import COMMON, FINDINGS, NO_FINDING

SAMPLE = Path(os.environ.get("SPECTRAL_DATA", "no folder")) / "chestxray14"

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
CHEXPERT_LABELS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
MIMIC_LABELS = tuple(sorted(CHEXPERT_LABELS))
METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """How another hospital's images differ: grey levels times ``contrast`` plus ``brightness``, a black border."""

    contrast: float = 1.0
    brightness: float = 0.0
    border: float = 0.0  # share of the side

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        shifted = np.clip(self.contrast * pixels.astype(float) + self.brightness, 0, 255).astype(np.uint8)
        width = round(self.border * len(shifted))
        if width:
            inside = shifted[width:-width, width:-width].copy()
            shifted[:] = 0
            shifted[width:-width, width:-width] = inside
        return shifted


NIH, STANFORD, BOSTON = Site(), Site(0.7, 40, 0.05), Site(1.3, -20, 0.1)


@cache
def sample() -> list[tuple[Path, frozenset[str]]]:
    """The NIH sample's images and their findings; empty where there is none."""
    table = SAMPLE / "Data_Entry_2017_v2020.csv"
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [(SAMPLE / "images" / row[0], frozenset(row[1].split("|")) - {NO_FINDING}) for row in rows]


def xray(number: int, side: int = 64) -> tuple[np.ndarray, frozenset[str]]:
    """Image ``number`` as grey levels, and its findings; a drawn one shows each as a bright spot at its own place."""
    if sample():
        path, findings = sample()[number % len(sample())]
        with Image.open(path) as image:
            return np.asarray(image.resize((side, side))), findings
    random = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    lungs = sum(np.exp(-((x - c) ** 2 / 0.05 + (y + 0.1) ** 2 / 0.3)) for c in (-0.4, 0.4))
    findings = frozenset(name for name in FINDINGS if random.random() < 0.2)
    angles = [2 * np.pi * FINDINGS.index(name) / len(FINDINGS) for name in findings]
    spots = sum(np.exp(-((x - 0.65 * np.cos(a)) ** 2 + (y - 0.65 * np.sin(a)) ** 2) / 0.02) for a in angles)
    levels = 170 - 110 * lungs + 70 * spots + random.normal(0, 8, (side, side))
    return np.clip(levels, 0, 255).astype(np.uint8), findings


def save(path: Path, pixels: np.ndarray) -> Path:
    """As the PNG or JPEG that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return path


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """A CSV file, gzipped where its name says so."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


class ChestFiles:
    """Writes data sets below ``root``; every image and label follows from ``seed`` and its number."""

    def __init__(self, root: Path, seed: int = 0, side: int = 64) -> None:
        self.root, self.seed, self.side = root, seed, side
        self._next = 0

    @property
    def home(self) -> DataHome:
        return DataHome(self.root, download=False)

    def image(self, path: Path, site: Site = NIH) -> frozenset[str]:
        """A new image there; its findings."""
        pixels, findings = xray(self._next, self.side)
        self._next += 1
        save(path, site(pixels))
        return findings

    def nih(
        self, rows: int = 60, *, per_patient: int = 3, lists: bool = False, archives: bool = False, old: bool = False
    ) -> Path:
        """ChestX-ray14; ``lists``: with the official lists, ``archives``: in two of them, ``old``: 2017's CSV."""
        folder = self.root / "chestxray14"
        lines, names = [], []
        for row in range(rows):
            patient, follow_up = row // per_patient + 1, row % per_patient
            names.append(f"{patient:08d}_{follow_up:03d}.png")
            where = f"images_{1 + (2 * row >= rows):03d}/images" if archives else "images"
            findings = "|".join(sorted(self.image(folder / where / names[-1]))) or NO_FINDING
            view = "AP" if row % 3 == 2 else "PA"
            lines.append(f"{names[-1]},{findings},{follow_up},{patient},57,M,{view},2682,2749,0.143,0.143")
        end = ",\n" if old else "\n"  # the older file ends every line in a comma
        name = "Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv"
        (folder / name).write_text("".join(line + end for line in (NIH_HEADER, *lines)))
        if lists:
            cut = rows * 3 // 4 // per_patient * per_patient
            (folder / "train_val_list.txt").write_text("\n".join(names[:cut]))
            (folder / "test_list.txt").write_text("\n".join(names[cut:]) + "\n")
        return folder

    def chexpert(
        self, train: int = 40, valid: int = 20, *, release: str = "CheXpert-v1.0-small", below: str = "."
    ) -> Path:
        """CheXpert: two images a patient, frontal and lateral; labels of the training part partly -1 or blank."""
        folder = self.root / below / release
        header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
        for part, rows, first in (("train", train, 1), ("valid", valid, 64541)):
            table = []
            for row in range(rows):
                view = ("frontal", "lateral")[row % 2]
                path = f"{part}/patient{first + row // 2:05d}/study1/view{row % 2 + 1}_{view}.jpg"
                cells = self._cells(self.image(folder / path, STANFORD), sure=part == "valid")
                frontal = view == "frontal"
                about = (f"{release}/{path}", "Female", 68, view.capitalize(), "AP" if frontal else "")
                table.append((*about, *(cells.get(name, "") for name in CHEXPERT_LABELS)))
            write_table(folder / f"{part}.csv", header, table)
        return folder

    def mimic(
        self,
        train: int = 40,
        validate: int = 20,
        test: int = 20,
        *,
        folder: str = "mimic-cxr-jpg",
        suffix: str = ".csv.gz",
        unlabelled: int = 0,
    ) -> Path:
        """MIMIC-CXR-JPG: two images a study, PA and lateral; ``unlabelled`` studies of each part have no labels."""
        place = self.root / folder
        splits, labels, metadata = [], [], []
        number = 0
        for part, rows in (("train", train), ("validate", validate), ("test", test)):
            for row in range(rows):
                patient, study = 10000032 + number // 2, 50414267 + number // 2
                dicom = "-".join(f"{self.seed * 100003 + number * 7 + part_of:08x}" for part_of in range(5))
                path = place / f"files/p{str(patient)[:2]}/p{patient}/s{study}/{dicom}.jpg"
                cells = self._cells(self.image(path, BOSTON), sure=False)
                splits.append((dicom, study, patient, part))
                view = ("PA", "LATERAL")[row % 2]
                metadata.append(
                    (dicom, patient, study, "CHEST (PA AND LAT)", view, 64, 64, 21800506, 213014.531, *"abc")
                )
                if row % 2 == 0 and row >= 2 * unlabelled:
                    labels.append((patient, study, *(cells.get(name, "") for name in MIMIC_LABELS)))
                number += 1
        for name, header, table in (
            ("split", ("dicom_id", "study_id", "subject_id", "split"), splits),
            ("chexpert", ("subject_id", "study_id", *MIMIC_LABELS), labels),
            ("metadata", METADATA, metadata),
        ):
            write_table(place / f"mimic-cxr-2.0.0-{name}{suffix}", header, table)
        return place

    def _cells(self, findings: frozenset[str], *, sure: bool) -> Mapping[str, str]:
        """Label cells as CheXpert's labeler leaves them: 1.0, 0.0, and where it is not ``sure`` -1.0 or blank too."""
        random = np.random.default_rng((self.seed, self._next))
        cells = {}
        for name in COMMON:
            kind = 1.0 if sure else random.random()
            present = name in findings or random.random() < 0.2
            cells[name] = "" if kind < 0.3 else "-1.0" if kind < 0.4 else f"{float(present):.1f}"
        return cells | {"No Finding": "" if findings else "1.0"}
