"""The end of a command: what is printed, what is written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

from spectral_run.reports.summary import summarize

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_files_and_lines(
    write: Write, make: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write(make.result(0.9 + 0.01 * s, seed=s), make.lines(2)) for s in range(2)]
    destination = tmp_path / ("long-" * 30) / "sweep"  # is made, and is not wrapped
    summarize(folders, destination)
    out, err = capsys.readouterr()
    first, *_, seeds, curves, gaps, last = out.splitlines()
    assert err == ""
    assert first == "2 runs of 1 model"
    assert seeds == "mean ± standard deviation over seeds"
    assert curves == f"figure   {destination / 'training_curves.png'}"
    assert gaps == f"figure   {destination / 'gap_against_rho.png'}"
    assert last == f"results  {destination}"
    names = ["gap_against_rho.png", "table.csv", "table.md", "training_curves.png"]
    assert sorted(path.name for path in destination.iterdir()) == names
    for name in (names[0], names[3]):
        with Image.open(destination / name) as image:
            assert min(image.size) > 400
    frame = pd.read_csv(destination / "table.csv")
    assert frame["folder"].tolist() == [str(folder) for folder in folders]
    assert frame["test accuracy"].tolist() == [0.9, 0.91]  # unrounded
    assert frame["seed"].tolist() == [0, 1]
    text = (destination / "table.md").read_text()
    assert text.startswith("2 runs of 1 model. Mean ± standard deviation over seeds.\n\n|")
    assert "| test accuracy" in text


def test_one_run_needs_no_title(
    write: Write, make: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarize([write(make.result())], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("┏")
    assert lines[-1] == f"results  {tmp_path}"
    assert max(map(len, lines[:12])) <= 80


def test_unfinished_runs_are_named(
    write: Write, make: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, gone = write(make.failed("diverged", seed=1)), tmp_path / "gone"
    summarize([write(make.result()), bad, gone, gone], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert f"diverged: {bad}: it diverged" in lines  # the error's first line, path in one piece
    assert lines.count(f"no result: {gone}") == 1


@pytest.mark.parametrize("count", [1, 3])
def test_all_failed(
    write: Write, make: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    summarize([write(make.failed(seed=s)) for s in range(count)], tmp_path)
    out = capsys.readouterr().out
    assert f"0 of {count} ({count} failed)" in out
    assert "figure" not in out
    assert len(pd.read_csv(io.StringIO((tmp_path / "table.csv").read_text()))) == count


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summarize([tmp_path / "a"], tmp_path)
    assert capsys.readouterr().out.splitlines() == [f"no result: {tmp_path / 'a'}", f"results  {tmp_path}"]
    assert list(tmp_path.iterdir()) == []
