"""Chest X-rays of other hospitals, to test a network of ChestX-ray14 on: six findings, images prepared the same way.

Source: appendix C.2 of the spectral-radius paper. Labels are 1 (present), 0 (absent) or NaN: CheXpert and MIMIC-CXR
write -1 where the report is uncertain, and leave a cell blank where it does not mention the finding (Irvin et al. 2019,
section 3); both are left out finding by finding, so an image may have a label for one and none for another, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor

from spectral_run.curvature.rows import Rows
from spectral_run.datasets.base import DataError
from spectral_run.datasets.chest_xray.images import Decoding, Geometry, load_images
from spectral_run.datasets.chest_xray.label_files import parsed
from spectral_run.datasets.chest_xray.patients import subsample_patients
from spectral_run.datasets.splits import check_rows, check_seed

VIEWS: Final = ("all", "frontal")
LABELS: Final = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": np.nan, "-1.0": np.nan, "": np.nan}


@final
@dataclass(frozen=True)
class TransferSet:
    """One part of another hospital's images. No row is a training row of anything here."""

    name: str  # chexpert or mimic
    part: str
    inputs: Rows
    labels: Tensor  # (rows, 6): 0, 1, or NaN where uncertain or missing; columns as in COMMON
    groups: Tensor  # patient numbers
    paths: Sequence[str]  # of each image, below the data set's folder
    files: Mapping[str, str]  # file name -> SHA-256
    notices: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)  # why images were left out -> how many


@final
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images of a part: ``views``, all or frontal; ``rows`` of patients drawn at random, None for all."""

    views: str = "all"
    rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.views not in VIEWS:
            raise ValueError(f"Selection: views must be one of {', '.join(VIEWS)}, got {self.views!r}.")
        check_rows("Selection", "rows", self.rows)
        check_seed("Selection", "seed", self.seed)


@final
@dataclass(frozen=True, kw_only=True)
class Listed:
    """What label files say of a part: a row per image."""

    name: str
    part: str
    folder: Path
    paths: Sequence[str]
    labels: Float32[np.ndarray, "rows 6"]
    patients: Int64[np.ndarray, " rows"]
    frontal: Shaped[np.ndarray, " rows"] | None  # None where it was not asked for
    files: Mapping[str, str]
    notices: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def labels_of(path: Path, columns: Mapping[str, Sequence[str]]) -> Float32[np.ndarray, "rows columns"]:
    """The cells of each column as 0, 1 or NaN. ``DataError`` naming row and column for anything else."""
    values = [parsed(path, name, cells, _label, "1, 0, -1 or blank") for name, cells in columns.items()]
    return np.array(values, np.float32).T


def _label(cell: str) -> float:
    if cell not in LABELS:
        raise ValueError
    return LABELS[cell]


def check_part(owner: str, part: str, parts: Sequence[str]) -> None:
    """Raise ``ValueError`` where there is no such part."""
    if part not in parts:
        raise ValueError(f"{owner}: part must be one of {', '.join(parts)}, got {part!r}.")


def transfer_set(listed: Listed, geometry: Geometry, selection: Selection, decoding: Decoding) -> TransferSet:
    """The selected images that are there and whole. Raises ``DataError`` where none is, or too many are bad."""
    rows, skipped = np.arange(len(listed.paths)), dict(listed.skipped)
    if selection.views == "frontal":
        assert listed.frontal is not None
        rows = np.flatnonzero(listed.frontal)
        if len(rows) < len(listed.paths):
            skipped["views that are not frontal"] = len(listed.paths) - len(rows)
    what = f"{listed.folder}, {listed.part} part"
    if not len(rows):
        raise DataError(f"{what}: no image is left ({skipped or 'none is listed'}).")
    if selection.rows is not None:
        rows = rows[subsample_patients(what, listed.patients[rows], selection.rows, selection.seed)]
    images = load_images(listed.folder, [listed.paths[row] for row in rows.tolist()], geometry, decoding)
    rows = rows[images.kept]
    return TransferSet(
        name=listed.name,
        part=listed.part,
        inputs=images.inputs,
        labels=torch.from_numpy(listed.labels[rows]),
        groups=torch.from_numpy(listed.patients[rows]),
        paths=tuple(listed.paths[row] for row in rows.tolist()),
        files={**listed.files, **images.files},
        notices=(*listed.notices, *images.notices),
        skipped={**skipped, **images.left_out},
    )
