"""Splits and subsamples by patient: images of one patient are much alike, and never on both sides."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64
from sklearn.model_selection import GroupShuffleSplit

from spectral_run.datasets.base import DataError


def hold_out_patients(
    owner: str, patients: Int64[np.ndarray, " rows"], fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held"]]:
    """Row numbers, each in file order, of the rows kept and of those of ``fraction`` of the patients, rounded up."""
    distinct = len(np.unique(patients))
    if distinct - np.ceil(fraction * distinct) < 1:
        raise DataError(f"{owner}: {distinct} patient(s) can't be split in two with {fraction:g} of them held out.")
    splitter = GroupShuffleSplit(1, test_size=fraction, random_state=seed)
    kept, held = next(splitter.split(patients, groups=patients))
    return np.sort(kept).astype(np.int64), np.sort(held).astype(np.int64)


def subsample_patients(
    owner: str, patients: Int64[np.ndarray, " rows"], rows: int, seed: int
) -> Int64[np.ndarray, " sample"]:
    """Row numbers, in file order, of whole patients in random order, the last one cut where ``rows`` are reached."""
    if rows > len(patients):
        raise DataError(f"{owner}: rows must be at most {len(patients)}, the images there are, got {rows}.")
    distinct, numbers = np.unique(patients, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(distinct))[numbers]
    return np.sort(np.argsort(place, kind="stable")[:rows]).astype(np.int64)
