"""The contract of an optimizer, checked for every conf file there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn

from spectral_run.runner.settings import settings_from
from spectral_run.runner.targets import build

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "optimizer").glob("*.yaml"))


class Convex:
    """|Xw - y|^2 / n on fixed data, and an optimizer from a conf file."""

    def __init__(self, node: dict[str, Any]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(50, 4, generator=generator), torch.randn(50, 1, generator=generator)
        self.w = nn.Parameter(torch.zeros(4, 1))
        self.optimizer = build(node, "optimizer", [self.w])

    def loss(self) -> Tensor:
        return ((self.x @ self.w - self.y) ** 2).mean()

    def step(self) -> None:
        def closure() -> float:
            loss = self.loss()
            (self.w.grad,) = torch.autograd.grad(loss, [self.w])
            return float(loss.detach())

        self.optimizer.step(closure)


@pytest.fixture(params=NAMES)
def node(request: pytest.FixtureRequest) -> dict[str, Any]:
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        return settings_from(compose("config", [f"optimizer={request.param}"])).optimizer


def test_a_step_lowers_a_convex_loss(node: dict[str, Any]) -> None:
    problem = Convex(node)
    before = float(problem.loss().detach())
    problem.step()
    assert float(problem.loss().detach()) < before


def test_resuming_is_exact(node: dict[str, Any]) -> None:
    whole, broken = Convex(node), Convex(node)
    for _ in range(3):
        whole.step()
        broken.step()
    state, weights = broken.optimizer.state_dict(), broken.w.detach().clone()
    resumed = Convex(node)
    resumed.w.data.copy_(weights)
    resumed.optimizer.load_state_dict(state)
    for _ in range(3):
        whole.step()
        resumed.step()
    assert torch.equal(whole.w, resumed.w)
