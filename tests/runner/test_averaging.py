"""The runner's side of optimizers that average iterates or take several batches a step."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spectral_run.datasets.base import DataHome
from spectral_run.datasets.digits import Digits
from spectral_run.runner.closure import StepClosure
from spectral_run.runner.loop import Loop

COMMON = ("regularizer=none", "curvature.eps=0.1", "dtype=float64", "training.batch_size=128")  # nine batches
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
GREEDY = """
import torch

SEEN = []

class Greedy(torch.optim.SGD):
    def step(self, closure):
        problem = closure.problem  # before any call: at the weights as they are
        assert problem.products == 0
        loss = closure()
        assert closure.problem is not problem
        assert abs(float(closure.problem.loss()) - loss) < 1e-12
        SEEN.append(closure.problem.targets)
        closure()
        closure.problem.hvps(torch.zeros(2, closure.problem.n, dtype=torch.float64))
        closure.next_batch()
        closure()
        SEEN.append(closure.problem.targets)
        closure.problem.hvp(torch.zeros(closure.problem.n, dtype=torch.float64))
        closure.spend(10)
        SEEN.append(torch.rand(1, generator=closure.generator))
        super().step()
        return loss
"""
TIMES = {"seconds", "seconds_by_phase", "finished", "started"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def own(folder: Path, group: str, name: str, module: str, source: str) -> tuple[str, ...]:
    """A module of the user's, and its conf file."""
    conf = folder / "mine" / group
    conf.mkdir(parents=True, exist_ok=True)
    target = f"{name}.{module}"
    extra = "lr: 0.1\n" if group == "optimizer" else ""
    (conf / f"{name}.yaml").write_text(f"# One of mine.\n_target_: {target}\n{extra}")
    (folder / f"{name}.py").write_text(source)
    sys.modules.pop(name, None)
    return ("--config-dir", "mine", f"{group}={name}")


def load(folder: Path, name: str) -> dict[str, torch.Tensor]:
    (path,) = folder.rglob(name)
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


def last_checkpoint(folder: Path) -> dict[str, Any]:
    path = max(folder.rglob("step-*.pt"))
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def test_the_average_is_evaluated_and_training_does_not_notice(command: Callable[..., Any], tmp_path: Path) -> None:
    """With BatchNorm and dropout: statistics of the average are fresh, those of training are training's."""
    net = own(tmp_path, "model", "net", "Net", NET)
    gadam = ("optimizer=gadam", "training.epochs=5", "optimizer.start=3", "optimizer.base.lr=0.01")
    ran = command(*net, *COMMON, *gadam, "name=averaged")
    assert ran.code == 0, ran.err
    adamw = "optimizer={_target_: torch.optim.AdamW, lr: 0.01, betas: [0.9, 0.999], weight_decay: 0.01}"
    plain = command(*net, *COMMON, adamw, "training.epochs=5", "name=plain")
    assert plain.code == 0, plain.err
    averaged_run, plain_run = tmp_path / "results" / "averaged", tmp_path / "results" / "plain"
    last = load(averaged_run, "last.pt")
    trained = last_checkpoint(plain_run)
    assert trained["counters"] == last_checkpoint(averaged_run)["counters"]
    assert all(torch.equal(value, trained["model"][name]) for name, value in last.items())
    assert torch.equal(last_checkpoint(averaged_run)["random"], trained["random"])
    assert not list(plain_run.rglob("last.pt"))

    model = load(averaged_run, "model.pt")
    result = json.loads(next(averaged_run.rglob("result.json")).read_text())
    assert result["train"]["averaged"] is True
    assert result["train"]["best_epoch"] >= 3  # whatever came before there was an average
    assert "averaged" not in json.loads(next(plain_run.rglob("result.json")).read_text())["train"]
    data = Digits().load(DataHome(tmp_path, download=False))
    rows = data.train.inputs.double().flatten(1)
    inputs = rows @ model["layers.1.weight"].T + model["layers.1.bias"]
    torch.testing.assert_close(model["layers.2.running_mean"], inputs.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model["layers.2.running_var"], inputs.var(0), rtol=1e-5, atol=1e-5)
    before_average = [
        [json.loads(line)["value"] for line in next(run.rglob("metrics.jsonl")).read_text().splitlines()
         if (number := json.loads(line))["split"] == "validation" and number["epoch"] <= 2]
        for run in (averaged_run, plain_run)
    ]  # fmt: skip
    assert before_average[0] == before_average[1] != []


def test_selected_weights_are_the_mean_of_the_epochs_last_iterates(command: Callable[..., Any], tmp_path: Path) -> None:
    """Runs of 3, 4 and 5 epochs of SGD end where the averaging run's epochs do."""
    sgd = ("optimizer=sgd", "optimizer.lr=0.5")
    ends = []
    for epochs in (3, 4, 5):
        name = f"plain{epochs}"
        assert command(*COMMON, *sgd, f"training.epochs={epochs}", f"name={name}").code == 0
        ends.append(last_checkpoint(tmp_path / "results" / name)["model"])
    valley = ("optimizer=asymmetric_valley", "optimizer.start=3", "optimizer.end=5", "training.epochs=6")
    ran = command(*COMMON, *valley, "name=valley", "training.select_by=loss")
    assert ran.code == 0, ran.err
    state = last_checkpoint(tmp_path / "results" / "valley")["optimizer"]
    average = [own["average"] for own in state["own"]]
    for value, name in zip(average, ends[0], strict=True):
        torch.testing.assert_close(value, torch.stack([end[name] for end in ends]).mean(0), rtol=1e-12, atol=1e-14)
    result = json.loads(next((tmp_path / "results" / "valley").rglob("result.json")).read_text())
    best = result["train"]["best_epoch"]
    count = min(best, 5) - 2
    model = load(tmp_path / "results" / "valley", "model.pt")
    for name, value in model.items():
        want = torch.stack([end[name] for end in ends[:count]]).mean(0)
        torch.testing.assert_close(value, want, rtol=1e-12, atol=1e-14)


def test_once_there_is_an_average_iterates_do_not_count() -> None:
    """However good they were; among averages the first of the best is kept."""
    model = torch.nn.Linear(1, 1)
    settings = SimpleNamespace(training=SimpleNamespace(select_by="accuracy"))
    loop: Any = SimpleNamespace(parts=SimpleNamespace(model=model, settings=settings), best=None, epoch=0)
    kept = []
    for accuracy, averaged in ((0.9, False), (0.8, False), (0.5, True), (0.7, True), (0.7, True), (0.6, True)):
        loop.epoch += 1
        Loop._select(loop, {"accuracy": accuracy}, averaged=averaged)
        kept.append(loop.best["epoch"])
    assert kept == [1, 1, 3, 4, 4, 4]


def test_averaging_that_never_began_is_said(quick: Callable[..., Any]) -> None:
    ran = quick("regularizer=none", "optimizer=gadam", "training.max_steps=1")
    assert ran.code == 0, ran.err
    assert "training ended before there was an average" in ran.out + ran.err
    assert ran.result()["train"]["averaged"] is False


@pytest.mark.parametrize(
    "optimizer",
    [
        ("optimizer=gadam", "optimizer.start=2", "optimizer.every=4"),
        ("optimizer=entropy_sgd", "optimizer.inner_steps=4", "optimizer.noise=0.01"),
    ],
    ids=lambda value: value[0],
)
def test_broken_off_anywhere_it_ends_as_an_unbroken_one(
    command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: tuple[str, ...],
) -> None:
    """Three times, each in the middle of a step and of an epoch: bit for bit."""
    net = own(tmp_path, "model", "net", "Net", NET)
    every_step = ("training.checkpoint_minutes=0", "training.epochs=5", *COMMON, *net)
    assert command(*every_step, *optimizer, "name=whole").code == 0
    call, calls = StepClosure.__call__, []

    def breaks_off(closure: StepClosure) -> float:
        calls.append(1)
        if len(calls) in (13, 23, 39):
            raise KeyboardInterrupt
        return call(closure)

    with monkeypatch.context() as patch:
        patch.setattr(StepClosure, "__call__", breaks_off)
        for stop in (13, 23, 39):
            assert command(*every_step, *optimizer, "name=broken").code == 1
            assert len(calls) == stop
    assert not list((tmp_path / "results" / "broken").rglob("result.json"))
    ran = command(*every_step, *optimizer, "name=broken")
    assert ran.code == 0, ran.err
    assert "resuming" in ran.out + ran.err
    whole, broken = (next((tmp_path / "results" / name).rglob("result.json")).parent for name in ("whole", "broken"))
    results = [without_times(json.loads((run / "result.json").read_text())) for run in (whole, broken)]
    for result in results:
        result.pop("name")
    assert results[0] == results[1]
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    for file in ("model.pt", "last.pt"):
        assert (whole / file).exists() == (broken / file).exists()
        if (whole / file).exists():
            states = [torch.load(run / file, weights_only=True) for run in (whole, broken)]
            assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_step_takes_batches_as_it_likes(command: Callable[..., Any], tmp_path: Path) -> None:
    """Two batches a step of an epoch of nine: the last step goes round to the epoch's first."""
    net = own(tmp_path, "model", "net", "Net", NET)
    greedy = own(tmp_path, "optimizer", "greedy", "Greedy", GREEDY)[2:]
    ran = command(*net, *greedy, *COMMON, "training.epochs=2")
    assert ran.code == 0, ran.err
    train = ran.result()["train"]
    assert train["steps"] == 10
    assert train["gradient_evaluations"] == 10 * (3 + 10)
    assert train["products"] == 10 * (2 + 1)  # on either batch
    seen = sys.modules["greedy"].SEEN
    batches = [targets for number, targets in enumerate(seen) if number % 3 < 2]
    first, second = batches[:10], batches[10:]
    assert torch.equal(first[9], first[0])
    assert sorted(torch.cat(first[:9]).tolist()) == sorted(torch.cat(second[:9]).tolist())
    assert not torch.equal(first[0], second[0])
    assert len({float(number) for number in seen[2::3]}) == 10  # another generator every step
    statistics = load(tmp_path, "model.pt")["layers.2.num_batches_tracked"]
    assert int(statistics) in (10, 20)  # by epoch: once per batch, though the first was called on twice


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer=gadam", "+optimizer.base.lrr=1"], "optimizer.base.lrr: torch.optim.AdamW takes no argument 'lrr'"),
        (["optimizer=gadam", "optimizer.base.lr=fast"], "optimizer.base.lr: torch.optim.AdamW needs .*got 'fast'"),
        (["optimizer=gadam", "optimizer.base.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["optimizer=gadam", "optimizer.base._partial_=perhaps"], "optimizer.base._partial_ must be true or false"),
        (["optimizer=gadam", "optimizer.base._target_=torch.optim.AdamV"], "torch.optim has no 'AdamV'"),
        (["optimizer=adam", "+optimizer._partial_=true"], "optimizer: partial is no Optimizer"),
        (["optimizer=asymmetric_valley"], r"epochs 161 to 200 must be among those of training \(training.epochs\)"),
        (["optimizer=gadam", "curvature.weight_decay=true"], "IterateAverage's decay is no part of any loss"),
        (
            ["optimizer=adam", "generalization=[valley_probe]"],
            "generalization.valley_probe: optimizer must average its iterates, and Adam does not",
        ),
    ],
)
def test_refused_before_any_work(command: Callable[..., Any], overrides: list[str], message: str) -> None:
    ran = command(*overrides)
    assert ran.code == 2
    assert not list(ran.folder.rglob("metrics.jsonl"))
    assert re.search(message, ran.err), ran.err


def test_the_valley_probe_in_a_run_and_afterwards(command: Callable[..., Any], tmp_path: Path) -> None:
    net = own(tmp_path, "model", "net", "Net", NET)
    probe = ("generalization=[valley_probe]", "generalization.valley_probe.points=4")
    gadam = ("optimizer=gadam", "optimizer.start=2", "training.epochs=3", *COMMON)
    ran = command(*net, *gadam, *probe)
    assert ran.code == 0, ran.err
    result = ran.result()
    folder = ran.results()[0].parent
    assert {f"valley_probe_line.{kind}" for kind in ("csv", "png", "pdf")} <= {path.name for path in folder.iterdir()}
    lines = (folder / "valley_probe_line.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["-1.0", "0.0", "1.0", "2.0"]
    at_average = dict(zip(lines[0].split(","), map(float, lines[3].split(",")), strict=True))
    # model.pt has the statistics of another order of the rows, which only the first layer's do not feel.
    assert at_average["test_loss"] == pytest.approx(result["test"]["loss"], rel=1e-6)
    later = command(f"run_dir={folder}", *probe, "rerun=true")
    assert later.code == 0, later.err
    assert later.result()["generalization"] == result["generalization"]
    (folder / "last.pt").unlink()
    refused = command(f"run_dir={folder}", *probe, "rerun=true")
    assert refused.code == 1
    assert "ValleyProbe: a run needs its last iterate beside the average (last.pt), and has none" in refused.err


@pytest.mark.parametrize("optimizer", ["sam", "asam", "usam"])
def test_batch_statistics_move_once_a_step(command: Callable[..., Any], tmp_path: Path, optimizer: str) -> None:
    """The second gradient of a step is at other weights; it must leave no trace in the running statistics."""
    net = own(tmp_path, "model", "net", "Net", NET)
    first = ("training.max_steps=1", "generalization=none", "curvature.cap=2")
    ran = command(*net, *COMMON, *first, f"optimizer={optimizer}", "optimizer.base.lr=0.0", "name=sharp")
    assert ran.code == 0, ran.err
    plain = command(*net, *COMMON, *first, "optimizer=sgd", "optimizer.lr=0.0", "name=plain")
    assert plain.code == 0, plain.err
    sharp, once = (last_checkpoint(tmp_path / "results" / name) for name in ("sharp", "plain"))
    assert (sharp["counters"][4], once["counters"][4]) == (2, 1)  # gradient evaluations
    assert all(torch.equal(value, once["model"][name]) for name, value in sharp["model"].items())
    assert float(once["model"]["layers.2.running_mean"].abs().sum()) > 0
