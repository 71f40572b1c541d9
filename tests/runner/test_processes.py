"""``spectral-run`` under torchrun: two processes leave what one leaves, are interrupted, fail, and sweep as one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.runner import cli
from spectral_run.runner.parts import refuse_single_rows
from spectral_run.runner.processes import Launch, launch

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no torch.distributed")

# Children start from a server that has torch imported; one test goes through torchrun itself.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["spectral_run.runner.run", "spectral_run.reports.summary", "hydra", "torch._dynamo", "sklearn.datasets"]
)
# Few messages: on a machine with more to do than processors, each waits for several turns.
QUICK = ("device=cpu", "generalization=none", "curvature.eps=0.1")
SMALL = (*QUICK, "model=mlp", "model.widths=[16]", "training.epochs=2", "training.batch_size=128")
TIMES = {"seconds", "seconds_by_phase", "finished"}

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, classes):
        super().__init__()
        layers = nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, classes)
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)
"""
BROKEN = """
import os
from dataclasses import dataclass
from spectral_run.regularizers.base import RegularizedGradient, Regularizer

@dataclass(frozen=True, kw_only=True)
class Broken(Regularizer):
    def gradient(self, problem, step):
        if step.number == 5 and os.environ["RANK"] == "1":
            raise OSError("the lights went out")
        return RegularizedGradient(problem.grad(), float(problem.loss()), float(problem.loss()))
"""


def run_in_child(folder: Path, rank: int, size: int, port: int, arguments: tuple[str, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    with (folder / f"out-{rank}").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os._exit(cli.command(list(arguments)))


def start(folder: Path, *arguments: str, size: int = 2) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    target = [CONTEXT.Process(target=run_in_child, args=(folder, r, size, port, arguments)) for r in range(size)]
    for child in target:
        child.start()
    return target


def codes(children: list[Any], seconds: float = 120) -> list[int]:
    for child in children:
        child.join(seconds)
    for child in children:
        child.kill()
    return [child.exitcode for child in children]


def text(folder: Path, rank: int = 0) -> str:
    return (folder / f"out-{rank}").read_text()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.005)


def result(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("result.json")
    return json.loads(path.read_text())


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def metrics(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.rglob("metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder: Path) -> torch.Tensor:
    (path,) = folder.rglob("model.pt")
    return torch.cat([p.flatten() for p in torch.load(path, weights_only=True).values()])


def relative(got: Any, want: Any) -> float:
    got, want = torch.as_tensor(got), torch.as_tensor(want)
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(("dtype", "steps", "bound"), [("float64", 50, 1e-6), ("float32", 10, 1e-3)])
def test_fifty_regularized_steps_equal_one_process(tmp_path: Path, dtype: str, steps: int, bound: float) -> None:
    """float64 through torchrun, twice: the second time there is nothing to do."""
    arguments = (*QUICK, f"training.max_steps={steps}", f"dtype={dtype}", "regularizer.eps=0.1")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    assert codes(start(one, *arguments, size=1)) == [0]
    if dtype == "float64":
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [*torchrun, "-m", "spectral_run.runner.cli", *arguments], cwd=two, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("starting") == done.stdout.count("test accuracy") == 1
    else:
        assert codes(start(two, *arguments)) == [0, 0], text(two, 1)
        assert text(two, 1) == ""
    assert codes(start(two, *arguments)) == [0, 0]
    assert "skipped, finished before (done)" in text(two)
    assert relative(weights(two), weights(one)) < bound
    got, want = result(two), result(one)
    assert (got["processes"], want["processes"]) == (2, 1)
    assert got["rho"]["value"] == pytest.approx(want["rho"]["value"], rel=bound)
    for split in ("train", "val", "test"):
        assert got[split]["loss"] == pytest.approx(want[split]["loss"], rel=bound)
    for line, other in zip(metrics(two), metrics(one), strict=True):
        if line["name"] not in ("residual", "gap"):  # what is left when the solver stops is rounding's
            assert line["value"] == pytest.approx(other["value"], rel=bound, abs=bound), line
    if dtype == "float64":
        assert got["train"]["products"] == want["train"]["products"]
    environment = next(two.rglob("environment.json"))
    assert json.loads(environment.read_text())["processes"] == 2
    names = {path.name for path in environment.parent.iterdir()}
    assert names == {path.name for path in next(one.rglob("environment.json")).parent.iterdir()}


def test_findings_of_stored_images_equal_one_process(tmp_path: Path, scans: Callable[..., tuple[str, ...]]) -> None:
    """Weighted loss, areas and their intervals, of images that each process reads its rows of."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        arguments = (*scans(folder), *QUICK, "model=mlp", "model.widths=[4]", "training.epochs=2", "dtype=float64")
        arguments = (*arguments, "training.class_weights=balanced", "training.batch_size=16", "regularizer.eps=0.1")
        size = 1 if folder == one else 2
        assert codes(start(folder, *arguments, size=size)) == [0] * size, text(folder)
    assert relative(weights(two), weights(one)) < 1e-6
    got, want = result(two), result(one)
    assert got["data"] == want["data"]
    for split in ("train", "val", "test"):
        assert without_times({**got[split], "loss": 0}) == without_times({**want[split], "loss": 0})
        assert got[split]["loss"] == pytest.approx(want[split]["loss"], rel=1e-6)


def test_interrupted_in_one_process_all_stop_and_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    """With dropout and BatchNorm: masks and running statistics go on too. Then one process goes on where two were."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = ("--config-dir", "mine", *QUICK, "model=net", "training.epochs=4", "training.batch_size=128")
    arguments = (*arguments, "regularizer.mode=track")
    for folder in (whole, broken):
        (folder / "mine" / "model").mkdir(parents=True)
        (folder / "mine" / "model" / "net.yaml").write_text("# A net.\n_target_: net.Net\n")
        (folder / "net.py").write_text(NET)
    assert codes(start(whole, *arguments)) == [0, 0], text(whole, 0)
    said = text(whole)
    for remark in ("2 processes share", "ghost batch norm", "dropout draws other masks"):
        assert remark in said
    children = start(broken, *arguments)
    wait_for(lambda: bool(list(broken.rglob("step-*.pt"))))
    os.kill(children[1].pid, signal.SIGTERM)
    assert codes(children) == [1, 1]
    assert "interrupted; the same command goes on" in text(broken)
    assert not list(broken.rglob("result.json"))
    (folder,) = {path.parent.parent for path in broken.rglob("step-*.pt")}
    shutil.copytree(broken, tmp_path / "one")
    assert codes(start(broken, *arguments)) == [0, 0]
    assert "resuming" in text(broken)
    assert "goes on with" not in text(broken)
    assert (folder / "metrics.jsonl").read_bytes() == next(whole.rglob("metrics.jsonl")).read_bytes()
    assert without_times(result(broken)) == without_times(result(whole))
    assert torch.equal(weights(broken), weights(whole))
    assert codes(start(tmp_path / "one", *arguments, size=1)) == [0]
    assert "begun with processes=2, goes on with 1" in text(tmp_path / "one")


def test_a_process_that_fails_ends_all_of_them_soon(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    conf = tmp_path / "mine" / "regularizer"
    conf.mkdir(parents=True)
    (conf / "broken.yaml").write_text("# Fails.\n_target_: broken.Broken\n")
    began = time.monotonic()
    children = start(tmp_path, "--config-dir", "mine", *SMALL, "--multirun", "regularizer=broken,none")
    assert codes(children, 60) == [1, 1]
    assert time.monotonic() - began < 30
    assert "[rank 1] the lights went out" in text(tmp_path, 1)
    assert result(tmp_path)["status"] == "failed"
    assert result(tmp_path)["error"] == "another process has ended; what it met is in its own output"


def test_a_sweep_goes_on_after_what_all_processes_met(tmp_path: Path) -> None:
    arguments = ("--multirun", "optimizer.lr=1e9,1e-3", "regularizer=none", *SMALL)
    assert codes(start(tmp_path, *arguments)) == [1, 1]
    results = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("result.json")]
    assert sorted(results) == ["diverged", "done"]
    assert text(tmp_path, 1) == ""
    (sweep,) = (tmp_path / "results" / "runs" / "sweeps").iterdir()
    assert len((sweep / "jobs.jsonl").read_text().splitlines()) == 2
    (tmp_path / "empty").mkdir()
    none = start(tmp_path, *SMALL, "dataset=usps", "data_root=empty", "download=false")
    assert codes(none) == [1, 1]
    assert "usps.bz2" in text(tmp_path)


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("hydra/launcher=parallel", "hydra/launcher=parallel starts processes of its own; leave it out with torchrun"),
        ("run_dir=somewhere", "a finished run is measured by one process; leave torchrun out"),
    ],
)
def test_refused_with_several_processes(
    quick: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, argument: str, why: str
) -> None:
    _torchrun(monkeypatch, RANK="0")
    many = ("--multirun",) if "launcher" in argument else ()
    monkeypatch.setenv("MASTER_PORT", "1")
    ran = quick(argument, *many)
    assert ran.code == 2
    assert why in ran.err


def test_batch_norm_needs_two_rows_in_every_process() -> None:
    model = swap_norms(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    settings = SimpleNamespace(training=SimpleNamespace(batch_size=32))
    parts: Any = SimpleNamespace(processes=SimpleNamespace(size=2), settings=settings, model=model)
    refuse_single_rows(parts, 4)
    with pytest.raises(ValueError, match="2 processes share batches of 32 rows, the last of 3"):
        refuse_single_rows(parts, 3)
    parts.model = nn.Linear(2, 2)
    refuse_single_rows(parts, 3)
    parts.model, parts.processes = model, None
    refuse_single_rows(parts, 3)


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch() == Launch(0, 1, 0)
    _torchrun(monkeypatch, RANK="3", LOCAL_RANK="1", WORLD_SIZE="4")
    assert launch() == Launch(3, 4, 1)
    assert not launch().first
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ValueError, match=r"RANK must be in \[0, WORLD_SIZE\), got RANK=4, WORLD_SIZE=4"):
        launch()
    monkeypatch.delenv("MASTER_PORT")  # a batch system's RANK and WORLD_SIZE are no torchrun
    assert launch() == Launch()


def test_one_gpu_for_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from spectral_run.runner.parts import _device
    from spectral_run.runner.settings import ConfigurationError

    _torchrun(monkeypatch)
    with pytest.raises(ConfigurationError, match="device=cuda:1 would be every process's"):
        _device("cuda:1")


def _torchrun(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in (told | variables).items():
        monkeypatch.setenv(name, value)
