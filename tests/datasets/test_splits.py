from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_run.datasets.base import DataError
from spectral_run.datasets.splits import check_fraction, check_rows, check_seed, hold_out, subsample, three_way

COUNTS = (500, 300, 150, 50)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


@settings(derandomize=True, database=None, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), fraction=st.floats(0.05, 0.9))
def test_hold_out_is_a_stratified_partition(seed: int, fraction: float) -> None:
    kept, held = hold_out("X", LABELS, fraction, seed)
    assert len(held) == int(np.floor(fraction * 1000 + 1e-9))
    assert sorted([*kept, *held]) == list(range(1000))
    assert (np.diff(kept) > 0).all()
    expected = np.array(COUNTS) * len(held) / 1000
    assert (np.abs(np.bincount(LABELS[held], minlength=4) - expected) <= 1).all()


@pytest.mark.parametrize(("fraction", "rows", "held"), [(1 / 7, 7291, 1041), (0.2, 1000, 200), (0.29, 100, 29)])
def test_fractions_round_down(fraction: float, rows: int, held: int) -> None:
    assert len(hold_out("X", np.arange(rows) % 2, fraction, 0)[1]) == held


def test_three_way_shares() -> None:
    train, validation, test = three_way("X", LABELS, 0.16, 0.20, seed=3)
    assert (len(train), len(validation), len(test)) == (640, 160, 200)
    assert sorted([*train, *validation, *test]) == list(range(1000))
    for part in (train, validation, test):
        assert (np.abs(np.bincount(LABELS[part], minlength=4) - np.array(COUNTS) * len(part) / 1000) <= 1).all()


def test_only_the_seed_decides() -> None:
    first, again, other = (three_way("X", LABELS, 0.16, 0.20, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    state = np.random.get_state()[1].copy()  # noqa: NPY002  (the global state is what must not move)
    three_way("X", LABELS, 0.16, 0.20, 5)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("rows", [40, 997, 1000])
def test_subsample_is_stratified(rows: int) -> None:
    chosen = subsample("X", LABELS, rows, 0)
    assert len(chosen) == len(set(chosen)) == rows
    assert (np.abs(np.bincount(LABELS[chosen], minlength=4) - np.array(COUNTS) * rows / 1000) <= 1).all()


def test_refusals() -> None:
    with pytest.raises(DataError, match=r"X: rows must be at most 1000, .* got 1001"):
        subsample("X", LABELS, 1001, 0)
    with pytest.raises(DataError, match=r"X: class 2 has 1 row\(s\), a stratified split needs 2; take more rows"):
        hold_out("X", np.array([0, 0, 1, 1, 2]), 0.4, 0)
    with pytest.raises(DataError, match=r"X: class 1 has 2 row\(s\), a stratified split needs 3; take more rows"):
        three_way("X", np.repeat([0, 1], [9, 2]), 0.2, 0.2, 0)
    with pytest.raises(DataError, match=r"X: 19 \+ 1 rows can't both hold all 2 classes"):
        hold_out("X", np.arange(20) % 2, 0.05, 0)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_fraction_range(value: float) -> None:
    with pytest.raises(ValueError, match=rf"X: f must be in \(0, 1\), got {value}\."):
        check_fraction("X", "f", value)


def test_seed_and_rows_ranges() -> None:
    check_seed("X", "s", 0)
    check_rows("X", "rows", None)
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"X: s must be an integer in \[0, 2\*\*32\), got {seed}\."):
            check_seed("X", "s", seed)
    with pytest.raises(ValueError, match=r"X: rows must be null or an integer >= 1, got 0\."):
        check_rows("X", "rows", 0)
