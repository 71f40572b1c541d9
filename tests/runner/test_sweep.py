"""A sweep: its record and progress, what it goes on past, how it goes on after a kill, and the report at its end."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_module

from spectral_run.reports.document import Document, TableOut
from spectral_run.reports.paper_reports import Report
from spectral_run.reports.sweeps import Sweep, gather, read_sweep
from spectral_run.runner import cli
from spectral_run.runner.report import report
from spectral_run.runner.settings import ConfigurationError
from spectral_run.runner.sweep import progress

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["spectral_run.runner.run", "spectral_run.reports.summary", "hydra", "sklearn.datasets"])
TINY = ("training.max_steps=3", "model.widths=[8]", "generalization=none", "regularizer=none", "curvature.cap=5")
EXPERIMENT = (
    "# @package _global_\n# Mine.\nname: mine\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: 'range(2)'}}}\n"
)


@pytest.fixture
def mine(tmp_path: Path) -> tuple[str, ...]:
    """A stored sweep of two cells."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    return ("--config-dir", "conf", "experiment=mine", *TINY)


def test_the_record_and_progress_of_a_sweep(command: Callable, mine: tuple[str, ...], tmp_path: Path) -> None:
    ran = command(*mine, "optimizer.lr=0.01,-1", "scale=smoke", "name=mine")
    assert ran.code == 2
    (folder,) = (tmp_path / "results" / "mine" / "sweeps").iterdir()
    about = json.loads((folder / "sweep.json").read_text())
    assert (about["schema"], about["experiment"], about["scale"], about["cells"]) == (1, "mine", "smoke", 4)
    assert about["overrides"][-3:] == ["optimizer.lr=0.01,-1", "scale=smoke", "name=mine"]
    sweep = read_sweep(folder)
    assert [(cell.overrides["seed"], cell.overrides["optimizer.lr"]) for cell in sweep.cells] == [
        ("0", "0.01"), ("0", "-1"), ("1", "0.01"), ("1", "-1"),
    ]  # fmt: skip
    assert [cell.status for cell in sweep.cells] == ["done", "failed", "done", "failed"]
    assert not {"experiment", "scale"} & set(sweep.cells[0].overrides)
    assert sweep.cells[2].result["seed"] == 1
    lines = [line for line in ran.out.splitlines() if line.startswith(("[1/4]", "[2/4]", "[3/4]", "[4/4]"))]
    assert len(lines) == 4
    assert lines[1].startswith("[2/4] invalid in 0 s, 1 failed, about ")
    assert lines[3].startswith("[4/4] invalid in 0 s, 2 failed: seed=1 ")
    jobs = [json.loads(line) for line in (folder / "jobs.jsonl").read_text().splitlines()]
    keys = {"job", "overrides", "code", "status", "folder", "skipped", "began", "seconds"}
    assert [(job["job"], set(job)) for job in jobs] == [(number, keys) for number in range(4)]


def test_a_sweep_without_an_experiment_has_a_record_too(command: Callable, tmp_path: Path) -> None:
    assert command("--multirun", *TINY, "seed=0,1").code == 0
    assert len(gather(tmp_path / "results" / "runs", "").cells) == 2
    ran = command("--multirun", *TINY, "seed=0,1", "data_root=data-${seed}")
    assert "[2/2] done, skipped: " in ran.out
    cells = gather(tmp_path / "results" / "runs", "").cells  # of the second: it has a setting more
    assert [cell.overrides["data_root"] for cell in cells] == ["data-${seed}"] * 2


def job(
    number: int, seconds: float = 10.0, *, skipped: bool = False, code: int = 0, began: float = 0.0
) -> dict[str, Any]:
    status = "done" if code == 0 else "diverged"
    return {"job": number, "seconds": seconds, "skipped": skipped, "code": code, "status": status, "began": began}


@pytest.mark.parametrize(
    ("jobs", "total", "workers", "line"),
    [
        ([job(0)], 5, 1, "[1/5] done in 10 s, about 40 s left"),
        ([job(0)], 5, 2, "[1/5] done in 10 s, about 20 s left"),
        ([job(0)], 2, 8, "[1/2] done in 10 s, about 10 s left"),  # more workers than cells
        ([job(0, 0.1, skipped=True), job(1, 30)], 4, 1, "[2/4] done in 30 s, about 60 s left"),
        ([job(0, 0.1, skipped=True)], 4, 1, "[1/4] done, skipped"),
        ([job(0), job(1, 20, code=1)], 30, 1, "[2/30] diverged in 20 s, 1 failed, about 7 minutes left"),
        ([job(0, 3600)], 3, 1, "[1/3] done in 60 minutes, about 2.0 hours left"),
        ([job(0), job(1)], 4, None, "[2/4] done in 10 s, about 10 s left"),  # both at once: two workers
        ([job(0), job(1, began=10)], 4, None, "[2/4] done in 10 s, about 20 s left"),
        ([job(0), job(1)], 2, 1, "[2/2] done in 10 s"),
        ([job(0), job(0)], 2, 1, "[1/2] done in 10 s, about 10 s left"),  # a cell counts once
        ([job(0)], None, 1, "[1] done in 10 s"),
    ],
)
def test_progress(jobs: list[dict[str, Any]], total: int | None, workers: int | None, line: str) -> None:
    assert progress(jobs, jobs[-1], total, workers) == line


def count(sweeps: Mapping[str, Sweep]) -> Document:
    """A report that shows every number of its runs but times."""
    (sweep,) = sweeps.values()
    rows = []
    for cell in sweep.cells:
        result = cell.result or {}
        numbers = {key: json.dumps(result.get(key)) for key in ("test", "val")} | {
            "rho": result.get("rho", {}).get("value")
        }
        rows.append(dict(cell.overrides) | {"status": cell.status} | numbers)
    frame = pd.DataFrame(rows)
    return Document("count", "Count", (), (TableOut("cells", "All cells.", frame, frame),), (sweep,))


REPORTS = {
    "count": Report(("mine",), count),
    "both": Report(("mine", "other"), count),
    "second": Report(("other", "mine"), count),
    "either": Report(("other", "mine"), count, any_of=True),
}


def test_a_report_is_written_and_printed(
    command: Callable, mine: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command(*mine)
    capfd.readouterr()
    root = tmp_path / "results" / "mine"
    assert report("count", root, REPORTS) == 0
    out, err = capfd.readouterr()
    folder = root / "reports" / "count"
    assert f"report   {folder / 'cells.csv'}" in out
    assert f"report   {folder / 'count.html'}" in out
    assert "All cells." in out
    assert err == ""
    assert len(pd.read_csv(folder / "cells.csv")) == 2
    assert report("both", root, REPORTS) == 0  # can do without the second
    assert "report both: no sweep of other in" in capfd.readouterr().err
    assert report("second", root, REPORTS) == 1
    assert report("either", root, REPORTS) == 0


def test_what_a_report_lacks_is_said(
    command: Callable, mine: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert report("count", Path("results/paper_small"), REPORTS) == 1
    message = "report count: no sweep of mine in results/paper_small; spectral-run experiment=mine scale=small\n"
    assert capfd.readouterr().err == message
    command(*mine, "optimizer.lr=-1")
    capfd.readouterr()
    assert report("count", tmp_path / "results" / "mine", REPORTS) == 0
    assert "mine: of 2 cells 2 failed" in capfd.readouterr().err
    with pytest.raises(
        ConfigurationError,
        match=r"report must be one of count, both, second, either; got 'coutn'. Did you mean 'count'\?",
    ):
        report("coutn", Path("results"), REPORTS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report=tabel2"], 2, "got 'tabel2'. Did you mean 'table2'?"),
        (["report="], 2, "report needs a value."),
        (["report=table2", "seed=0"], 2, "report takes name, results_dir, scale, and not 'seed'."),
        (["report=table2", "scale=smal"], 2, "got 'smal'. Did you mean 'small'?"),
        (
            ["report=table2", "scale=smoke"],
            1,
            "no sweep of table2 in results/paper_smoke; spectral-run experiment=table2",
        ),
    ],
)
def test_wrong_report_commands(command: Callable, arguments: list[str], code: int, message: str) -> None:
    ran = command(*arguments)
    assert ran.code == code
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_sweep_without_its_data_is_one_line(command: Callable, tmp_path: Path) -> None:
    ran = command("experiment=table2", "scale=smoke", "data_root=nowhere", "download=false", "hydra/launcher=basic")
    assert ran.code == 1
    assert ran.err.startswith("spectral-run: table2 left out: no file ")
    assert len(ran.err.splitlines()) == 1
    assert not list(tmp_path.rglob("sweep.json"))


CELLS = ("--multirun", *TINY, "seed=range(3)", "optimizer.lr=0.001,0.01", "model.widths=[6],[8]", "name=mine")


def in_child(folder: Path) -> None:
    os.chdir(folder)
    with (folder / "out").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os._exit(cli.command(list(CELLS)))


def start(folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    child = CONTEXT.Process(target=in_child, args=(folder,))
    child.start()
    return child


def results(folder: Path) -> int:
    return len(list((folder / "results").rglob("result.json")))


def tables(folder: Path) -> dict[str, bytes]:
    os.chdir(folder)
    reports = {"count": Report(("",), count)}
    assert report("count", Path("results/mine"), reports) == 0
    return {
        path.name: path.read_bytes() for path in Path("results/mine/reports/count").iterdir() if path.suffix != ".html"
    }


def test_a_sweep_killed_twice_ends_in_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole, broken = start(tmp_path / "whole"), tmp_path / "broken"
    whole.join(120)
    assert whole.exitcode == 0
    for least in (3, 7):
        child = start(broken)
        end = time.monotonic() + 60
        while results(broken) < least and child.is_alive():
            assert time.monotonic() < end
            time.sleep(0.002)
        child.kill()
        child.join()
        assert least <= results(broken) < 12
    last = start(broken)
    last.join(120)
    assert last.exitcode == 0
    assert (broken / "out").read_text().count("skipped, finished before (done)") >= 7
    assert len(list((broken / "results" / "mine" / "sweeps").iterdir())) == 3
    expected = tables(tmp_path / "whole")
    assert {"cells.csv", "cells.md", "cells.tex", "count.md"} == set(expected)
    assert expected["cells.csv"].count(b"\n") == 13
    assert tables(broken) == expected


LAUNCHERS = {
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", ["hydra.launcher.timeout_min=5"]),
    "ray": ("hydra_plugins.hydra_ray_launcher", ["+hydra.launcher.ray.init.num_cpus=2"]),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_other_launchers_in_local_mode(command: Callable, tmp_path: Path, launcher: str) -> None:
    package, more = LAUNCHERS[launcher]
    if find_spec("hydra_plugins") is None or find_spec(package) is None:
        pytest.skip(f"hydra-{launcher.partition('_')[0]}-launcher is not installed")
    ran = command("--multirun", *TINY, "seed=0,1", f"hydra/launcher={launcher}", *more)
    assert ran.code == 0, ran.err
    assert [cell.status for cell in gather(tmp_path / "results" / "runs", "").cells] == ["done", "done"]


@pytest.mark.skipif(find_spec("submitit") is None, reason="hydra-submitit-launcher is not installed")
def test_slurm_is_a_choice_of_the_papers_sweeps(tmp_path: Path) -> None:
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        config = compose("config", ["experiment=table2", "hydra/launcher=slurm"], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher")
    assert (launcher.timeout_min, launcher.cpus_per_task, launcher.array_parallelism) == (240, 1, 64)
