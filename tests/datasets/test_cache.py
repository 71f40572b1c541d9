from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from spectral_run.datasets.cache import Arrays, cache_folder, cached, write_whole

ARRAYS = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.array([1, 2])}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "spectral-run"


def must_not_run() -> Arrays:
    raise AssertionError("made again")


def same(found: Arrays) -> bool:
    return found.keys() == ARRAYS.keys() and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_made_once(folder: Path) -> None:
    assert same(cached("key", lambda: ARRAYS))
    assert same(cached("key", must_not_run))
    assert [path.name for path in folder.iterdir()] == ["key.npz"]


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "flip"])
def test_damaged_entry_is_made_again(folder: Path, damage: str) -> None:
    cached("key", lambda: ARRAYS)
    path = folder / "key.npz"
    whole = path.read_bytes()
    flipped = whole.replace(ARRAYS["a"].tobytes(), b"\xff" * 6)
    assert flipped != whole
    path.write_bytes({"truncate": whole[:-30], "empty": b"", "garbage": b"hello", "flip": flipped}[damage])
    assert same(cached("key", lambda: ARRAYS))
    assert same(cached("key", must_not_run))


def test_without_a_writable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert same(cached("key", lambda: ARRAYS))


def test_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "spectral-run"


def _fill(number: int) -> bool:
    return all(same(cached(f"key{round_}", lambda: ARRAYS)) for round_ in range(50))


def test_two_processes_at_once(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_fill, range(4)) == [True] * 4
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"key{round_}.npz" for round_ in range(50))


def _append(path: Path) -> Arrays:
    with path.open("a") as file:
        file.write("made\n")
    time.sleep(0.5)
    return ARRAYS


def _make_once(path: Path) -> bool:
    return same(cached("key", lambda: _append(path), once=True))


def test_once_is_made_by_one_process_while_the_others_wait(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_make_once, [log] * 2, chunksize=1) == [True] * 2
    assert log.read_text() == "made\n"
    assert sorted(path.name for path in folder.iterdir()) == [".key.lock", "key.npz"]


def test_once_where_making_fails_frees_the_lock() -> None:
    with pytest.raises(AssertionError, match="made again"):
        cached("key", must_not_run, once=True)
    assert same(cached("key", lambda: ARRAYS, once=True))
    assert same(cached("key", must_not_run, once=True))


def test_once_without_a_writable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert same(cached("key", lambda: ARRAYS, once=True))


def test_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def write(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x", write)
    assert not os.listdir(tmp_path)
