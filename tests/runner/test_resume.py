"""A run that is killed, interrupted or out of disk goes on where it was and ends as an unbroken one, byte by byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spectral_run.runner import cli

# Children start from a server that has torch imported: a start costs milliseconds, and each is a process of its own.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["spectral_run.runner.run", "spectral_run.reports.summary", "hydra", "torch._dynamo", "sklearn.datasets"]
)
ARGUMENTS = ("training.epochs=12", "training.checkpoint_minutes=0.003", "curvature.every_epochs=3", "model.widths=[16]")
TIMES = {"seconds", "seconds_by_phase", "finished"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def run_in_child(folder: Path, arguments: tuple[str, ...], limit: int | None) -> None:
    os.chdir(folder)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with (folder / "out").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os._exit(cli.command(list(arguments)))


def start(folder: Path, *arguments: str, limit: int | None = None) -> Any:
    folder.mkdir(exist_ok=True)
    child = CONTEXT.Process(target=run_in_child, args=(folder, (*ARGUMENTS, *arguments), limit))
    child.start()
    return child


def finish(folder: Path, *arguments: str, limit: int | None = None) -> int:
    child = start(folder, *arguments, limit=limit)
    child.join(240)
    return child.exitcode


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.005)


def kill(folder: Path, seconds: float) -> None:
    """Start a run and kill it that long after its next checkpoint."""
    before = set(folder.rglob("step-*.pt"))
    child = start(folder)
    wait_for(lambda: bool(set(folder.rglob("step-*.pt")) - before) or not child.is_alive())
    child.join(seconds)
    child.kill()
    child.join()


def ends(folder: Path) -> tuple[Any, bytes]:
    (result,) = folder.rglob("result.json")
    return without_times(json.loads(result.read_text())), (result.parent / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, bytes, float]:
    folder = tmp_path_factory.mktemp("unbroken")
    assert finish(folder) == 0
    (result,) = folder.rglob("result.json")
    return *ends(folder), json.loads(result.read_text())["train"]["seconds"]


@pytest.mark.timeout(900)  # 20 processes that import torch: a minute and a half, on a machine with other work five
def test_killed_at_20_random_moments(unbroken: tuple[Any, bytes, float], tmp_path: Path) -> None:
    result, metrics, seconds = unbroken
    moments = random.Random(0)
    resumed = 0
    for trial in range(20):
        folder = tmp_path / str(trial)
        kill(folder, moments.uniform(0.0, 0.7) * seconds)
        assert finish(folder) == 0, (folder / "out").read_text()
        resumed += "resuming" in (folder / "out").read_text()
        assert ends(folder) == (result, metrics), f"trial {trial}"
    assert resumed >= 10, "too few of the kills hit training: the test shows little"


def test_killed_before_the_first_checkpoint(unbroken: tuple[Any, bytes, float], tmp_path: Path) -> None:
    result, metrics, _ = unbroken
    child = start(tmp_path)
    wait_for(lambda: bool(list(tmp_path.rglob("config.yaml"))))
    child.kill()
    child.join()
    assert finish(tmp_path) == 0
    assert ends(tmp_path) == (result, metrics)


def test_killed_again_and_again(unbroken: tuple[Any, bytes, float], tmp_path: Path) -> None:
    result, metrics, seconds = unbroken
    for part in (0.2, 0.1, 0.3):
        kill(tmp_path, part * seconds)
    assert finish(tmp_path) == 0
    assert ends(tmp_path) == (result, metrics)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_saves_and_goes_on(unbroken: tuple[Any, bytes, float], tmp_path: Path, number: int) -> None:
    result, metrics, _ = unbroken
    child = start(tmp_path, "training.checkpoint_minutes=1000")
    wait_for(lambda: bool(list(tmp_path.rglob("step-*.pt"))))
    os.kill(child.pid, number)
    child.join(60)
    text = (tmp_path / "out").read_text()
    assert child.exitcode == 1
    assert "interrupted; the same command goes on" in text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("result.json"))
    assert finish(tmp_path, "training.checkpoint_minutes=1000") == 0
    assert "resuming" in (tmp_path / "out").read_text()
    got, lines = ends(tmp_path)
    assert lines == metrics
    assert (got["test"], got["rho"]) == (result["test"], result["rho"])


def test_a_full_disk_is_reported_and_nothing_is_lost(unbroken: tuple[Any, bytes, float], tmp_path: Path) -> None:
    """The kernel refuses to let any file grow beyond 8 KiB: checkpoints can't be written."""
    result, metrics, _ = unbroken
    assert finish(tmp_path, limit=8192) == 1
    text = (tmp_path / "out").read_text()
    assert "File too large" in text
    assert "make room, and the same command goes on from the last checkpoint" in text
    assert "Traceback" not in text
    assert not list(tmp_path.rglob("*.tmp")), "half a file was left"
    assert finish(tmp_path) == 0
    assert ends(tmp_path) == (result, metrics)


def test_a_disk_that_fills_up_midway_keeps_the_last_checkpoint(
    unbroken: tuple[Any, bytes, float], tmp_path: Path
) -> None:
    result, metrics, seconds = unbroken
    kill(tmp_path, 0.5 * seconds)
    assert finish(tmp_path, limit=8192) == 1
    assert list(tmp_path.rglob("step-*.pt")), "the checkpoint of the first session is gone"
    assert finish(tmp_path) == 0
    assert ends(tmp_path) == (result, metrics)


def test_a_sweep_killed_twice_goes_on(tmp_path: Path) -> None:
    arguments = ("--multirun", "seed=0,1,2", "regularizer=none", "training.epochs=4", "generalization=none")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    began = time.monotonic()
    assert finish(whole, *arguments) == 0
    seconds = time.monotonic() - began
    for part in (0.5, 0.6):
        child = start(broken, *arguments)
        child.join(part * seconds)
        child.kill()
        child.join()
    assert finish(broken, *arguments) == 0
    results = sorted(path.relative_to(whole) for path in whole.rglob("result.json"))
    assert len(results) == 3
    for path in results:
        one, other = (without_times(json.loads((root / path).read_text())) for root in (whole, broken))
        assert one == other
