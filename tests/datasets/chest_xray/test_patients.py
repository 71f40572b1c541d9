from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectral_run.datasets.base import DataError
from spectral_run.datasets.chest_xray.patients import hold_out_patients, subsample_patients

PATIENTS = st.lists(st.integers(0, 30), min_size=1, max_size=80).map(lambda values: np.array(values, np.int64))
SEEDS = st.integers(0, 2**32 - 1)


@given(patients=PATIENTS, fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_no_patient_on_both_sides_and_no_row_lost(patients: np.ndarray, fraction: float, seed: int) -> None:
    distinct = len(np.unique(patients))
    if np.ceil(fraction * distinct) >= distinct:
        with pytest.raises(DataError, match=rf"chests: {distinct} patient\(s\) can't be split in two"):
            hold_out_patients("chests", patients, fraction, seed)
        return
    kept, held = hold_out_patients("chests", patients, fraction, seed)
    assert not set(patients[kept]) & set(patients[held])
    assert sorted([*kept, *held]) == list(range(len(patients)))
    assert len(set(patients[held])) == np.ceil(fraction * distinct)
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()


@given(patients=PATIENTS, data=st.data(), seed=SEEDS)
def test_subsample_takes_whole_patients_but_one(patients: np.ndarray, data: st.DataObject, seed: int) -> None:
    rows = data.draw(st.integers(1, len(patients)))
    sample = subsample_patients("chests", patients, rows, seed)
    assert len(sample) == rows
    assert (np.diff(sample) > 0).all()
    left = set(patients[sample]) & set(np.delete(patients, sample))
    assert len(left) <= 1  # the last one may be cut


def test_a_larger_subsample_holds_the_smaller() -> None:
    patients = np.repeat(np.arange(40), 3)
    small, large = (subsample_patients("chests", patients, rows, 5) for rows in (20, 70))
    assert set(small) < set(large)
    assert not np.array_equal(small, subsample_patients("chests", patients, 20, 6))
    assert not np.array_equal(small, np.arange(20))


def test_seeds_decide() -> None:
    patients = np.repeat(np.arange(40), 3)
    held = [hold_out_patients("chests", patients, 0.2, seed)[1].tolist() for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_too_many_rows() -> None:
    with pytest.raises(DataError, match=r"chests: rows must be at most 3, the images there are, got 4\."):
        subsample_patients("chests", np.arange(3), 4, 0)
