"""The contract of a regularizer, checked for every conf file there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from torch import nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.objective import Objective
from spectral_run.regularizers.base import Regularizer, Step
from spectral_run.runner.settings import settings_from
from spectral_run.runner.targets import build

# The paper's algorithm 2 stops far from an eigenvector, and then v'Hv is no rho and has another gradient; it says so.
STALLS = ("spectral_radius_lobpcg_paper",)
NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "regularizer").glob("*.yaml"))


@pytest.fixture(params=NAMES)
def regularizer(request: pytest.FixtureRequest) -> Regularizer:
    with initialize_config_module(version_base="1.3", config_module="spectral_run.conf"):
        settings = settings_from(compose("config", [f"regularizer={request.param}"]))
    built = build(settings.regularizer, "regularizer")
    assert isinstance(built, Regularizer)
    return built


@pytest.fixture
def problem() -> AutogradProblem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Softplus(), nn.Linear(6, 3)).double()
    return AutogradProblem(Objective(model, F.cross_entropy), torch.randn(8, 5).double(), torch.randint(3, (8,)))


def step() -> Step:
    return Step(0, torch.Generator().manual_seed(3))


def test_same_input_same_result(regularizer: Regularizer, problem: AutogradProblem) -> None:
    first, second = (regularizer.gradient(problem.at(problem.params), step()) for _ in range(2))
    assert torch.equal(first.gradient, second.gradient)
    assert first.log == second.log
    assert (first.loss, first.objective) == (second.loss, second.objective)


def test_leaves_everything_as_it_was(regularizer: Regularizer, problem: AutogradProblem) -> None:
    before, random = problem.params, torch.get_rng_state()
    result = regularizer.gradient(problem, step())
    assert torch.equal(problem.params, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in problem.objective.parameters)
    assert not result.gradient.requires_grad
    assert not any(tensor.requires_grad for tensor in result.state.values())


def test_gradient_is_the_objectives_slope(
    regularizer: Regularizer, problem: AutogradProblem, request: pytest.FixtureRequest
) -> None:
    result = regularizer.gradient(problem, step())
    if request.node.callspec.params["regularizer"] in STALLS:
        assert result.log["converged"] == 0.0
        return
    h = 1e-5
    for seed in range(3):
        direction = torch.randn(problem.n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ahead, behind = (
            regularizer.gradient(problem.at(problem.params + s * h * direction), step()).objective for s in (1.0, -1.0)
        )
        # As loose as the shipped solvers' tolerance of 1e-2 on the eigenvector, which the penalty multiplies by mu.
        assert float(result.gradient @ direction) == pytest.approx((ahead - behind) / (2 * h), rel=1e-3, abs=1e-4)
