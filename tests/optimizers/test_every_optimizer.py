"""The contract of an optimizer, checked for every conf file there is."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem
from spectral_run.optimizers.base import Averaging, Closure
from spectral_run.runner.run import execute
from spectral_run.runner.settings import Settings, settings_from
from spectral_run.runner.targets import build

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
NAMES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
EPOCHS = 250  # enough for every conf file
LATE = 199  # an epoch from which on all of them average


class Batches:
    """What the runner hands to a step, on a linear model: two halves of the data in turn."""

    def __init__(self, convex: Convex, number: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(1000 * seed + number)
        self.convex, self.half, self.calls, self.spent = convex, number % 2, 0, 0
        self.problem: BatchProblem = self._problem()

    def __call__(self) -> float:
        self.problem = self._problem()
        self.calls += 1
        gradient = self.problem.grad().clone()
        for p, g in zip(self.convex.objective.parameters, self.convex.objective.split(gradient), strict=True):
            p.grad = g
        return float(self.problem.loss())

    def next_batch(self) -> None:
        self.half = 1 - self.half

    def spend(self, evaluations: int) -> None:
        self.spent += evaluations

    def _problem(self) -> BatchProblem:
        x, y = self.convex.x[self.half :: 2], self.convex.y[self.half :: 2]
        return AutogradProblem(self.convex.objective, x, y)


class Convex:
    """Squared error of a linear model on fixed data, and an optimizer from a conf file."""

    def __init__(self, node: dict[str, Any], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(64, 4, generator=generator), torch.randn(64, 3, generator=generator)
        model = nn.utils.skip_init(nn.Linear, 4, 3)  # without a draw
        for p in model.parameters():
            nn.init.constant_(p, 0.1)
        self.objective = Objective(model, F.mse_loss)
        self.optimizer = build(node, "optimizer", self.objective.parameters, epochs=EPOCHS)
        self.seed, self.steps = seed, 0
        self.drew = False

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.objective.parameters])

    def loss(self) -> float:
        return float(self.objective(self.x, self.y).detach())

    def step(self) -> None:
        closure = Batches(self, self.steps, self.seed)
        assert isinstance(closure, Closure)
        before = closure.generator.get_state()
        loss = self.optimizer.step(closure)
        assert math.isfinite(float(loss))
        assert closure.calls >= 1
        self.drew |= not torch.equal(before, closure.generator.get_state())
        self.steps += 1
        if isinstance(self.optimizer, Averaging):
            self.optimizer.end_epoch(LATE + self.steps)

    def ends(self) -> list[Tensor]:
        average = self.optimizer.averaged() if isinstance(self.optimizer, Averaging) else None
        return [self.weights, *(average or ())]


def settings(*overrides: str) -> Settings:
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        return settings_from(compose("config", list(overrides)))


@pytest.fixture(params=NAMES)
def node(request: pytest.FixtureRequest) -> dict[str, Any]:
    return settings(f"optimizer={request.param}").optimizer


def test_a_step_lowers_a_convex_loss(node: dict[str, Any]) -> None:
    convex = Convex(node)
    before = convex.loss()
    convex.step()
    assert convex.loss() < before


def test_resuming_is_exact(node: dict[str, Any]) -> None:
    """Through a file, as a checkpoint is read: without unpickling code."""
    whole, broken = Convex(node), Convex(node)
    for _ in range(3):
        whole.step()
        broken.step()
    file = io.BytesIO()
    torch.save([broken.optimizer.state_dict(), broken.weights], file)
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    resumed = Convex(node)
    for p, value in zip(resumed.objective.parameters, resumed.objective.split(weights), strict=True):
        p.data.copy_(value)
    resumed.optimizer.load_state_dict(state)
    resumed.steps = 3
    for _ in range(4):
        whole.step()
        resumed.step()
    assert len(whole.ends()) == len(resumed.ends())
    assert all(torch.equal(a, b) for a, b in zip(whole.ends(), resumed.ends(), strict=True))
    assert not torch.equal(whole.weights, weights)


def test_random_numbers_are_the_closures(node: dict[str, Any]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = Convex(node, seed=0), Convex(node, seed=0), Convex(node, seed=1)
    for convex in (one, same, other):
        convex.step()
        convex.step()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.weights, same.weights)
    assert torch.equal(one.weights, other.weights) == (not one.drew)


def test_learning_rates_are_in_its_groups(node: dict[str, Any]) -> None:
    """The runner's schedules multiply them: at 0 nothing moves, after a state was loaded too."""
    convex = Convex(node)
    convex.step()
    convex.optimizer.load_state_dict(convex.optimizer.state_dict())
    before = convex.weights
    for group in convex.optimizer.param_groups:
        group["lr"] = 0.0
    if isinstance(convex.optimizer, torch.optim.SGD) or not convex.optimizer.defaults.get("momentum"):
        convex.step()
        assert torch.allclose(convex.weights, before, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_with_the_spectral_radius(name: str, tmp_path: Path) -> None:
    """Three steps of a run, its record complete."""
    result = run(name, "digits", 3, tmp_path)
    assert result["train"]["steps"] == 3
    assert result["train"]["gradient_evaluations"] >= 3
    assert result["train"]["products"] >= 3


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_on_findings(name: str, tmp_path: Path) -> None:
    """A step with the weighted loss of several labels a row."""
    findings = ("training.class_weights=balanced", "training.select_by=auc", "dataset.patients=60")
    result = run(name, "synthetic_multilabel", 1, tmp_path, *findings)
    assert 0 <= result["test"]["ci_low"] <= result["test"]["auc"] <= result["test"]["ci_high"] <= 1
    assert math.isfinite(result["train"]["loss"])


def run(name: str, dataset: str, steps: int, folder: Path, *more: str) -> dict[str, Any]:
    """The record of a run of so many steps."""
    asked = settings(
        f"dataset={dataset}", f"optimizer={name}", "regularizer=spectral_radius", "regularizer.cap=3",
        f"training.max_steps={steps}", f"training.epochs={EPOCHS}", "model.widths=[8]", "curvature.cap=2",
        f"results_dir={folder}", "device=cpu", *more,
    )  # fmt: skip
    random = torch.get_rng_state()
    try:
        outcome = execute(asked, {"dataset": dataset, "model": "mlp", "regularizer": "spectral_radius"})
    finally:
        torch.set_rng_state(random)
    assert outcome.folder is not None
    result: dict[str, Any] = json.loads((Path(outcome.folder) / "result.json").read_text())
    assert outcome.status == "done", result.get("traceback")
    return result
