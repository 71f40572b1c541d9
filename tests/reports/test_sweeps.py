"""What is read of a sweep's folder: cells in order, those not reached, what a kill left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spectral_run.reports.sweeps import gather, read_jobs, read_sweep


def write(
    folder: Path, ended: list[dict[str, Any]], *, cells: int | None = 3, experiment: str = "e", **more: Any
) -> Path:
    folder.mkdir(parents=True)
    overrides = None if cells is None else [{"method": "a", "seed": str(seed)} for seed in range(cells)]
    about = {"schema": 1, "experiment": experiment, "scale": "small", "overrides": [], "cells": cells}
    started = {"jobs": overrides, "started": f"2026-01-01T{folder.name}"}
    (folder / "sweep.json").write_text(json.dumps(about | started | more))
    (folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in ended))
    return folder


def job(number: int, status: str = "done", folder: str | None = None) -> dict[str, Any]:
    overrides = {"method": "a", "seed": str(number)}
    return {"job": number, "overrides": overrides, "code": 0, "status": status, "folder": folder, "skipped": False}


def test_cells_stand_in_the_order_of_the_jobs_with_their_results(tmp_path: Path) -> None:
    for seed, status in ((0, "done"), (2, "diverged")):
        run = tmp_path / "e" / f"seed-{seed}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps({"status": status, "seed": seed}))
    jobs = [job(2, "diverged", "../../seed-2"), job(0, "done", "../../seed-0")]
    sweep = read_sweep(write(tmp_path / "e" / "sweeps" / "1", jobs))
    assert (sweep.experiment, sweep.scale, len(sweep.cells)) == ("e", "small", 3)
    assert [cell.status for cell in sweep.cells] == ["done", "missing", "diverged"]
    assert [cell.overrides["seed"] for cell in sweep.cells] == ["0", "1", "2"]
    assert [cell.result and cell.result["seed"] for cell in sweep.cells] == [0, None, 2]
    assert sweep.cells[0].folder == str(tmp_path / "e" / "seed-0")


def test_a_results_folder_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "a" / "run" / "result.json").write_text("{}")
    write(tmp_path / "a" / "sweeps" / "1", [job(0, "done", "../../run")])
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_sweep(tmp_path / "b" / "sweeps" / "1").cells[0].status == "done"


@pytest.mark.parametrize(("status", "read"), [("busy", "missing"), ("valid", "missing"), ("invalid", "failed")])
def test_what_has_no_result(tmp_path: Path, status: str, read: str) -> None:
    assert read_sweep(write(tmp_path / "1", [job(1, status)])).cells[1].status == read


def test_a_run_that_was_removed_is_missing(tmp_path: Path) -> None:
    assert read_sweep(write(tmp_path / "1", [job(0, "done", "gone")])).cells[0].status == "missing"


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "1", [job(0), job(1)])
    path = folder / "jobs.jsonl"
    path.write_text(path.read_text()[:-9])
    assert [line["job"] for line in read_jobs(folder)] == [0]


def test_a_sweeper_that_decides_as_it_goes_has_the_cells_it_has_had(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path / "1", [job(1, "failed"), job(0, "failed")], cells=None))
    assert [cell.overrides["seed"] for cell in sweep.cells] == ["0", "1"]


def test_the_newest_sweep_of_the_experiment_is_taken(tmp_path: Path) -> None:
    for name, experiment in (("01", "e"), ("03", "e"), ("02", "e"), ("04", "other")):
        write(tmp_path / "sweeps" / name, [], experiment=experiment)
    (tmp_path / "sweeps" / "05").mkdir()
    found = gather(tmp_path, "e")
    assert found is not None
    assert found.folder.name == "03"
    assert gather(tmp_path, "none") is None
    assert gather(tmp_path / "nowhere", "e") is None


def test_sweeps_of_the_same_settings_are_one_and_the_newest_run_of_a_cell_counts(tmp_path: Path) -> None:
    for name, seed in (("old", 0), ("old", 1), ("new", 1), ("new", 3)):
        run = tmp_path / "runs" / name / f"seed-{seed}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps({"status": "done", "seed": seed}))
    old = [job(seed, "done", f"../../runs/old/seed-{seed}") for seed in (0, 1)]
    write(tmp_path / "sweeps" / "01", old)
    jobs = [{"method": "a", "seed": str(seed)} for seed in (1, 0, 3)]  # 0 is not reached
    new = [job(0, "done", "../../runs/new/seed-1"), job(2, "done", "../../runs/new/seed-3")]
    write(tmp_path / "sweeps" / "02", new, jobs=jobs)
    found = gather(tmp_path, "e")
    assert found is not None
    assert [cell.overrides["seed"] for cell in found.cells] == ["0", "1", "2", "3"]
    assert [cell.status for cell in found.cells] == ["done", "done", "missing", "done"]
    assert [cell.folder and Path(cell.folder).parent.name for cell in found.cells] == ["old", "new", None, "new"]
    write(tmp_path / "sweeps" / "03", [], jobs=[{"method": "a", "seed": "0", "training.epochs": "2"}])
    found = gather(tmp_path, "e")  # a trial of something else
    assert found is not None
    assert [dict(cell.overrides)["training.epochs"] for cell in found.cells] == ["2"]
    write(tmp_path / "sweeps" / "04", [], scale="paper")
    assert len(gather(tmp_path, "e").cells) == 3


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no sweep's folder: it has no sweep\.json"):
        read_sweep(tmp_path)
    with pytest.raises(ValueError, match="schema must be 1, got 2"):
        read_sweep(write(tmp_path / "1", [], schema=2))
