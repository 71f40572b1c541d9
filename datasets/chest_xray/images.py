"""Chest X-rays as rows of a split: grey levels on the disk that become a batch when they are asked for.

Source: appendix C.3 of the spectral-radius paper: resized to 256x256, then cropped to 224x224 (the middle, as its
CheXNet tests), and Rajpurkar et al. 2017 for what a network that begins from ImageNet is given: three equal channels
in [0, 1], each minus ImageNet's mean over ImageNet's deviation.
Cost: a batch reads ``rows * crop**2`` bytes of a memory map; nothing else is held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from spectral_run.datasets.base import DataError
from spectral_run.datasets.chest_xray.store import decode_folder

MEAN: Final = (0.485, 0.456, 0.406)  # of ImageNet's channels, in units of [0, 1]: torchvision's numbers
DEVIATION: Final = (0.229, 0.224, 0.225)
NAMED: Final = 10  # bad images that a message names


@final
@dataclass(frozen=True)
class Geometry:
    """Side of the square that an image is resized to, and of the square cut out of its middle; pixels."""

    resize: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        for name, value in (("resize", self.resize), ("crop", self.crop)):
            if type(value) is not int or value < 1:
                raise ValueError(f"Geometry: {name} must be an integer >= 1, got {value!r}.")
        if self.crop > self.resize:
            raise ValueError(f"Geometry: crop must be at most resize ({self.resize}), got {self.crop}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return (3, self.crop, self.crop)


@final
@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to decode: by how many threads, None for one per core, and what share of the images may be bad.

    Missing and undecodable images are left out and named; more of them than ``bad_images_limit`` are a ``DataError``.
    """

    workers: int | None = None
    bad_images_limit: float = 0.01

    def __post_init__(self) -> None:
        if self.workers is not None and (type(self.workers) is not int or self.workers < 1):
            raise ValueError(f"Decoding: workers must be null or an integer >= 1, got {self.workers!r}.")
        if not 0 <= self.bad_images_limit <= 1:
            raise ValueError(f"Decoding: bad_images_limit must be in [0, 1], got {self.bad_images_limit}.")


@final
class StoredImages:
    """``Rows`` over a store's pixels: rows ``numbers`` of ``pixels``, normalized on the device they are wanted on."""

    def __init__(
        self,
        pixels: UInt8[np.ndarray, "stored height width"],
        numbers: Int64[np.ndarray, " rows"],
        geometry: Geometry,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"StoredImages: dtype must be a floating-point one, got {dtype}.")
        self.pixels, self.numbers, self.geometry = pixels, numbers, geometry
        self.device, self.dtype = torch.device("cpu") if device is None else device, dtype
        border = (geometry.resize - geometry.crop) // 2
        self._inside = slice(border, border + geometry.crop)
        mean, deviation = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, DEVIATION))
        self._mean, self._deviation = (value.to(self.device, dtype) for value in (mean, deviation))

    @property
    def shape(self) -> torch.Size:
        """``(rows, 3, crop, crop)``."""
        return torch.Size((len(self.numbers), *self.geometry.shape))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | Tensor) -> Float[Tensor, "rows 3 crop crop"]:
        which = self.numbers[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        grey = torch.from_numpy(np.ascontiguousarray(self.pixels[which, self._inside, self._inside]))
        levels = grey[:, None].to(self.device).to(self.dtype) / 255
        return (levels - self._mean).div_(self._deviation)

    def to(self, device: torch.device, dtype: torch.dtype, /) -> StoredImages:
        """The same rows of the same store, whose pieces lie there."""
        return StoredImages(self.pixels, self.numbers, self.geometry, device, dtype)

    def select(self, rows: Int64[np.ndarray, " selected"]) -> StoredImages:
        """Some of the rows, unread."""
        return StoredImages(self.pixels, self.numbers[rows], self.geometry, self.device, self.dtype)


@final
@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """What became of a list of image files."""

    inputs: StoredImages  # of those that are good
    kept: Int64[np.ndarray, " rows"]  # their numbers in the list
    files: Mapping[str, str]  # "images (n files)" -> SHA-256 of the sorted SHA-256 of the good ones' bytes
    left_out: Mapping[str, int]  # "missing images" and "undecodable images" -> how many, where there are any
    notices: tuple[str, ...]


def load_images(folder: Path, names: Sequence[str], geometry: Geometry, decoding: Decoding) -> ImageFiles:
    """The images ``folder/name``, decoded where the store has not got them.

    Raises ``DataError`` where more than ``bad_images_limit`` of them are bad, or all.
    """
    decoded = decode_folder(folder, names, geometry.resize, decoding.workers)
    kept = np.flatnonzero(decoded.rows >= 0)
    bad: dict[str, list[str]] = {"missing": [], "undecodable": []}
    for name, why in decoded.bad.items():
        kind = "missing" if why == "missing" else "undecodable"
        bad[kind].append(name if kind == why else f"{name}: {why}")
    told = [f"{len(those)} {kind} ({listed(those)})" for kind, those in bad.items() if those]
    what = f"{folder}: of {len(names)} images {', '.join(told)}"
    if len(decoded.bad) > decoding.bad_images_limit * len(names) or not len(kept):
        limit = f"bad_images_limit={decoding.bad_images_limit:g} allows {int(decoding.bad_images_limit * len(names))}"
        raise DataError(f"{what}; {limit}. Bring them back, or raise the limit to go on without them.")
    digest = hashlib.sha256("".join(sorted(f"{decoded.hashes[number]}\n" for number in kept)).encode()).hexdigest()
    return ImageFiles(
        inputs=StoredImages(decoded.pixels, decoded.rows[kept], geometry),
        kept=kept,
        files={f"images ({len(kept)} files)": digest},
        left_out={f"{kind} images": len(those) for kind, those in bad.items() if those},
        notices=(*decoded.notices, *((f"{what}; left out",) if told else ())),
    )


def listed(names: Sequence[str]) -> str:
    """The first ten, and how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
