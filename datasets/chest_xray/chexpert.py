"""CheXpert 1.0: 223,414 + 234 chest X-rays of 64,740 patients (Stanford Hospital, 2002 to 2017).

Source: Irvin et al. 2019, in the official layout: ``CheXpert-v1.0/`` or ``CheXpert-v1.0-small/`` below ``<root>`` or
``<root>/chexpert``, with ``train.csv``, ``valid.csv`` and the images at the ``Path`` column's
``<release>/train/patient00001/study1/view1_frontal.jpg``. Labels of the training part were read from reports by a
program, with -1 where it was uncertain and a blank where nothing was said; those of the validation part are the
majority of three radiologists', 0 or 1 throughout. Where both releases lie there, the large one is taken.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np

from spectral_run.datasets.base import DataHome
from spectral_run.datasets.chest_xray.findings import COMMON
from spectral_run.datasets.chest_xray.images import Decoding, Geometry
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

PARTS: Final = ("train", "valid")
RELEASES: Final = ("CheXpert-v1.0", "CheXpert-v1.0-small")
HOME_PAGE: Final = "https://stanfordmlgroup.github.io/competitions/chexpert/"
VIEW: Final = "Frontal/Lateral"
_IMAGE: Final = re.compile(r"[^/]+/((?:train|valid)/patient(\d+)/study\d+/view\d+_(?:frontal|lateral)\.jpg)")


def load_chexpert(
    home: DataHome,
    part: str,
    geometry: Geometry,
    *,
    selection: Selection | None = None,
    decoding: Decoding | None = None,
) -> TransferSet:
    """The ``train`` or ``valid`` part. Raises ``ByHandError`` where it is not there, and ``DataError``."""
    check_part("load_chexpert", part, PARTS)
    path = label_file(home, part)
    cells, views, *labels = read_columns(path, ("Path", VIEW, *COMMON))
    refuse_repeats(path, "Path", cells)
    form = f"<release>/{part}/patient<number>/study<number>/view<number>_<view>.jpg"
    images = parsed(path, "Path", cells, _image, form)
    frontal = parsed(path, VIEW, views, ("Lateral", "Frontal").index, "Frontal or Lateral")
    listed = Listed(
        name="chexpert",
        part=part,
        folder=path.parent,
        paths=[image for image, _ in images],
        labels=labels_of(path, dict(zip(COMMON, labels, strict=True))),
        patients=np.array([patient for _, patient in images], np.int64),
        frontal=np.array(frontal, bool),
        files={f"{path.parent.name}/{path.name}": file_digest(path)},
    )
    return transfer_set(listed, geometry, selection or Selection(), decoding or Decoding())


def prepare_chexpert(home: DataHome, part: str) -> None:
    """Raise ``ByHandError`` where the part is not there."""
    check_part("prepare_chexpert", part, PARTS)
    label_file(home, part)


def label_file(home: DataHome, part: str) -> Path:
    """Where the part's labels are. Raises ``ByHandError``."""
    for folder in (home.root, home.root / "chexpert"):
        for release in RELEASES:
            path = folder / release / f"{part}.csv"
            if path.is_file():
                return path
    raise ByHandError(
        f"no file {(home.root / RELEASES[0] / f'{part}.csv').absolute()}. No program can fetch CheXpert: register at "
        f"{HOME_PAGE}, and put {RELEASES[0]} or {RELEASES[1]}, with {part}.csv and {part}/patient.../ in it, into "
        f"{home.root.absolute()}, or point SPECTRAL_DATA or data_root=... to a folder that has it."
    )


def _image(cell: str) -> tuple[str, int]:
    match = _IMAGE.fullmatch(cell)
    if match is None:
        raise ValueError
    return match[1], int(match[2])
