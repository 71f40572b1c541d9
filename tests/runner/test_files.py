"""Whole files, checkpoints, lines that can be cut back, seeds and the clock."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from spectral_run.runner import checkpoint, seeding
from spectral_run.runner.clock import Clock
from spectral_run.runner.files import write_json, write_whole
from spectral_run.runner.record import Lines


def test_a_file_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5], "c": True})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "c": True}


def test_two_checkpoints_are_kept_and_the_newest_whole_one_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"step": step, "tensor": torch.arange(step)})
    assert len(list(tmp_path.iterdir())) == 2
    told: list[str] = []
    state = checkpoint.load_last(tmp_path, told.append)
    assert state is not None
    assert state["step"] == 3
    assert told == []
    newest = checkpoint.last_path(tmp_path)
    assert newest is not None
    newest.write_bytes(newest.read_bytes()[:-1])
    state = checkpoint.load_last(tmp_path, told.append)
    assert state is not None
    assert state["step"] == 2
    assert len(told) == 1
    assert checkpoint.load_last(tmp_path / "empty", told.append) is None


def test_checkpoints_load_without_unpickling_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("code ran",))

    checkpoint.save(tmp_path, 1, {"bad": Code()})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        checkpoint.load_last(tmp_path, print)


def test_lines_are_cut_back_to_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = Lines(path)
    lines.write(a=1)
    keep = lines.sync()
    lines.write(a=2)
    lines.close()
    again = Lines(path, keep)
    again.write(a=3)
    again.close()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 3]
    with pytest.raises(ValueError, match="shorter than its checkpoint says"):
        Lines(path, 10_000)


def test_seeds_differ_by_everything_and_repeat() -> None:
    seeds = {
        seeding.derive(seed, data, purpose, *numbers)
        for seed in (0, 1)
        for data in ("digits", "usps")
        for purpose in ("order", "eigensolver")
        for numbers in ((), (0,), (1,), (1, 0))
    }
    assert len(seeds) == 32
    assert seeding.derive(0, "digits", "order", 3) == seeding.derive(0, "digits", "order", 3)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_clock_books_every_second_once() -> None:
    began = time.perf_counter()
    clock = Clock({"gradient": 10.0})
    with clock.phase("eigensolver"):
        time.sleep(0.02)
    time.sleep(0.01)
    booked = clock.seconds()
    passed = time.perf_counter() - began
    assert booked["eigensolver"] >= 0.02
    assert booked["other"] >= 0.01
    assert booked["gradient"] == 10.0
    assert 10.03 <= sum(booked.values()) <= 10.0 + passed
