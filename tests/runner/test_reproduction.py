"""What is committed of a reproduction makes the same reports as the runs it was taken from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spectral_run.reports.paper_reports import REPORTS
from spectral_run.runner import reproduction
from spectral_run.runner.report import report

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "reproduction"


def made(root: Path, experiment: str = "table2") -> Path:
    """Two seeds of two methods, with residuals, weights and histograms."""
    jobs = []
    for method, solver, rho in (("unregularized", "lanczos", 12.0), ("mu0.005-K1", "power", 3.0)):
        for seed in range(2):
            folder = root / "covtype" / method / f"seed-{seed}"
            folder.mkdir(parents=True)
            result: dict[str, Any] = {
                "status": "done",
                "seed": seed,
                "config": {"regularizer": {"solver": solver}},
                "rho": {"value": rho + seed / 8, "converged": True},
                "test": {"accuracy": 0.75 + seed / 64, "ci_low": 0.7, "ci_high": 0.8, "n": 100},
            }
            (folder / "result.json").write_text(json.dumps(result))
            rows = [
                {"step": 1, "epoch": 1, "split": "train", "name": name, "value": 0.5, "products": 1}
                for name in ("loss", "residual", "rho")
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "model.pt").write_bytes(b"weights")
            (folder / "constructed_cosines.csv").write_text("low,high\n")
            overrides = {"method": method, "seed": str(seed)}
            job = {"job": len(jobs), "overrides": overrides, "code": 0, "status": "done", "skipped": False}
            jobs.append(job | {"folder": f"../../covtype/{method}/seed-{seed}"})
    sweep = root / "sweeps" / "1"
    sweep.mkdir(parents=True)
    about = {"schema": 1, "experiment": experiment, "scale": "small", "overrides": [], "cells": 4}
    begun = {"jobs": [job["overrides"] for job in jobs], "started": "2026-01-01"}
    (sweep / "sweep.json").write_text(json.dumps(about | begun))
    (sweep / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    return root


def test_the_copy_has_what_reports_read_and_nothing_else(tmp_path: Path) -> None:
    root, copy = made(tmp_path / "results" / "paper_small"), tmp_path / "docs" / "reproduction"
    for _ in range(2):  # the second replaces the first
        reproduction.archive(root, copy)
    there = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
    assert there == sorted(
        [f"covtype/{method}/seed-{seed}/result.json" for method in ("unregularized", "mu0.005-K1") for seed in (0, 1)]
        + [f"covtype/mu0.005-K1/seed-{seed}/metrics.jsonl" for seed in (0, 1)]
        + ["sweeps/1/jobs.jsonl", "sweeps/1/sweep.json"]
    )
    kept = (copy / "covtype" / "mu0.005-K1" / "seed-0" / "metrics.jsonl").read_text()
    assert [json.loads(line)["name"] for line in kept.splitlines()] == ["residual", "rho"]
    for place in (root, copy):
        assert report("table2", place) == 0
    ours, theirs = (sorted((place / "reports" / "table2").glob("table2*.[cmt]*")) for place in (root, copy))
    assert [path.read_bytes() for path in ours] == [path.read_bytes() for path in theirs]


def test_figures_6_and_7_are_of_one_run_of_figure_1(tmp_path: Path) -> None:
    root, copy = made(tmp_path / "results" / "paper_small", "figure1"), tmp_path / "docs" / "reproduction"
    reproduction.archive(root, copy)
    (kept,) = copy.rglob("constructed_*.csv")
    assert kept.relative_to(copy) == Path("covtype/unregularized/seed-0/constructed_cosines.csv")


def test_everything_in_one_command_and_the_page_has_the_tables(tmp_path: Path) -> None:
    root, copy = made(tmp_path / "results" / "paper_small"), tmp_path / "docs" / "reproduction"
    page = tmp_path / "docs" / "reproduction.md"
    page.parent.mkdir()
    page.write_text("before\n\n<!-- table reproduction/reports/table2/table2.md -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        assert reproduction.main(root, copy, page) == 0
        text = page.read_text()
        assert text.startswith("before\n\n<!-- table reproduction/reports/table2/table2.md -->\n| model")
        assert text.endswith("|\n<!-- end -->\nafter\n")
    assert (copy / "reports" / "verdicts" / "verdicts.csv").is_file()
    assert not (copy / "reports" / "table5").exists()
    page.write_text("<!-- table reproduction/sweeps/1/sweep.json --><!-- end -->")
    reproduction.fill(page)  # no newline after the marker: no place for a table
    page.write_text("<!-- table reproduction/sweeps/1/sweep.json -->\n<!-- end -->")
    with pytest.raises(ValueError, match="no table in"):
        reproduction.fill(page)


def test_what_is_no_copy_is_not_deleted_and_no_folder_of_this_machine_is_told(tmp_path: Path) -> None:
    root = made(tmp_path / "results" / "paper_small")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="is no copy of a results folder"):
        reproduction.archive(root, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()
    with pytest.raises(ValueError, match="no sweep of the paper's experiments"):
        reproduction.archive(tmp_path / "mine", tmp_path / "copy")
    path = root / "covtype" / "unregularized" / "seed-1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"error": f"{Path.home()}/data is not there"}))
    with pytest.raises(ValueError, match=r"result\.json names .*, a folder of this machine"):
        reproduction.archive(root, tmp_path / "copy")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("docs") / "reproduction"
    shutil.copytree(COMMITTED, copy, ignore=shutil.ignore_patterns("reports"))
    return copy


@pytest.mark.parametrize("name", REPORTS)
def test_the_committed_reports_are_those_of_the_committed_results(name: str, copied: Path) -> None:
    """Byte for byte what is rounded: whoever changes how a table is made renews them, ``make reproduction``."""
    assert report(name, copied) == 0
    before, after = (root / "reports" / name for root in (COMMITTED, copied))
    tables = [path for path in after.iterdir() if path.suffix in (".csv", ".md", ".tex")]
    assert tables
    for path in tables:
        if path.suffix == ".csv":  # all digits, the last of which another processor may round otherwise
            pd.testing.assert_frame_equal(pd.read_csv(before / path.name), pd.read_csv(path), rtol=1e-9)
        else:
            assert (before / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_page_holds_the_committed_tables(tmp_path: Path) -> None:
    shutil.copytree(COMMITTED / "reports", tmp_path / "reproduction" / "reports")
    page = tmp_path / "reproduction.md"
    page.write_bytes((ROOT / "docs" / "reproduction.md").read_bytes())
    reproduction.fill(page)
    assert page.read_bytes() == (ROOT / "docs" / "reproduction.md").read_bytes()
