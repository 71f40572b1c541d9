"""Backend ``cuda`` over recordings: against dense matrices, and what becomes of batches, points, masks and statistics.

On the CPU the recordings are a stand-in with a graph's semantics, so that all of this holds of the buffers.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.cuda import plan as plans
from spectral_run.curvature.cuda import problem as problems
from spectral_run.curvature.cuda.capture import CaptureError
from spectral_run.curvature.cuda.problem import CudaNetwork, CudaProblem
from spectral_run.curvature.exact_layers import running_statistics, swap_norms
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.rop.problem import RopProblem


def mlp(device: torch.device, *, seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> Objective:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))
    return Objective(model.to(device, torch.float64), F.cross_entropy)


def batch(
    device: torch.device, *, seed: int = 1, rows: int = 7, shape: tuple[int, ...] = (4,)
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    return inputs.to(device), torch.randint(3, (rows,), generator=generator).to(device)


def vector(n: int, device: torch.device, *, seed: int = 2) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def mlp_loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The same network, module-free."""
    a, b, c, d = w.split([24, 6, 18, 3])
    logits = torch.tanh(x @ a.view(6, 4).T + b) @ c.view(3, 6).T + d
    return -(logits - logits.exp().sum(1, keepdim=True).log()).gather(1, y[:, None]).mean()


def test_against_the_dense_hessian(device: torch.device) -> None:
    objective, (x, y) = mlp(device), batch(device)
    problem = CudaProblem(CudaNetwork(objective), objective, x, y)
    w, v = problem.params, vector(objective.n, device)
    gradient = torch.func.grad(lambda w: mlp_loss(w, x, y))
    hessian = torch.func.jacfwd(gradient)(w)

    def along(w: Tensor) -> Tensor:
        return torch.func.jvp(gradient, (w,), (v,))[1]

    assert float((problem.loss() - mlp_loss(w, x, y)).abs()) < 1e-12
    assert distance(problem.grad(), gradient(w)) < 1e-9
    assert distance(problem.hvp(v), hessian @ v) < 1e-9
    first, second = problem.hvp_and_quadratic_grad(v)
    assert distance(first, hessian @ v) < 1e-9
    assert distance(second, torch.func.jvp(along, (w,), (v,))[1]) < 1e-9
    rows = torch.stack([v, 2 * v, torch.ones_like(v)])
    assert distance(problem.hvps(rows), rows @ hessian) < 1e-9
    assert problem.products == 5


def test_jacobian(device: torch.device) -> None:
    objective, (x, y) = mlp(device), batch(device)
    problem = CudaProblem(CudaNetwork(objective), objective, x, y)
    v, u = vector(objective.n, device), torch.ones(7, 3, dtype=torch.float64, device=device)

    def outputs(w: Tensor) -> Tensor:
        a, b, c, d = w.split([24, 6, 18, 3])
        return torch.tanh(x @ a.view(6, 4).T + b) @ c.view(3, 6).T + d

    dense = torch.func.jacrev(outputs)(problem.params)
    assert distance(problem.jacobian().jvp(v), dense @ v) < 1e-9
    assert distance(problem.jacobian().vjp(u), torch.einsum("rcn,rc->n", dense, u)) < 1e-9


class Residual(nn.Module):
    """Convolution, normalization in training, pooling, a shortcut: rules that keep what a first product computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.softplus(self.norm(self.first(x))), 2)
        x = F.gelu(self.second(x)) + x
        return self.last(F.adaptive_avg_pool2d(x, 2).flatten(1))


LOSSES = {
    "cross-entropy": (F.cross_entropy, lambda z, y: y),
    "binary": (F.binary_cross_entropy_with_logits, lambda z, y: torch.sigmoid(z)),
    "squares": (partial(F.mse_loss, reduction="sum"), lambda z, y: torch.sigmoid(z)),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [Residual, nn.Linear])
def test_as_the_rules_have_it(kind: type[nn.Module], loss: str, device: torch.device) -> None:
    torch.manual_seed(0)
    model = Residual() if kind is Residual else nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    function, target = LOSSES[loss]
    objective = Objective(swap_norms(model).to(device, torch.float64), function)
    network = CudaNetwork(objective)
    for seed in (1, 2):
        x, y = batch(device, seed=seed, shape=(1, 8, 8))
        y = target(objective.model(x).detach(), y)
        problem = CudaProblem(network, objective, x, y, weight_decay=0.3)
        rules = RopProblem(objective, x, y, weight_decay=0.3)
        v = vector(objective.n, device, seed=seed)
        assert distance(problem.loss(), rules.loss()) < 1e-14
        for got, want in zip(problem.hvp_and_quadratic_grad(v), rules.hvp_and_quadratic_grad(v), strict=True):
            assert distance(got, want) < 1e-12 or float(want.norm()) == 0.0 == float(got.norm())
        assert distance(problem.hvp(v), rules.hvp(v)) < 1e-12
        assert distance(problem.grad(), rules.grad()) < 1e-13
    assert len(network._plans) == 1


def test_batches_of_one_shape_share_a_plan_and_come_back(device: torch.device) -> None:
    objective = mlp(device)
    network, v = CudaNetwork(objective), vector(objective.n, device)
    batches = [batch(device, seed=seed) for seed in (1, 2)]
    first, second = [CudaProblem(network, objective, *each) for each in batches]
    wants = [RopProblem(objective, *each).hvp_and_quadratic_grad(v) for each in batches]
    for turn in range(2):
        for problem, want in ((first, wants[0]), (second, wants[1])):
            # The kinds of product alternate: none may live on what the other left behind.
            got = problem.hvp(v) if turn else problem.hvp_and_quadratic_grad(v)[1]
            assert distance(got, want[0] if turn else want[1]) < 1e-12
    assert len(network._plans) == 1


def test_a_problem_stays_where_it_is(device: torch.device) -> None:
    objective, (x, y), v = mlp(device), batch(device), vector(51, device)
    network = CudaNetwork(objective)
    problem, want, point = CudaProblem(network, objective, x, y), RopProblem(objective, x, y).hvp(v), None
    assert distance(problem.hvp(v), want) < 1e-12
    point = problem.params
    with torch.no_grad():
        for p in objective.parameters:
            p.mul_(1.5)
    moved = CudaProblem(network, objective, x, y)
    assert distance(moved.hvp(v), RopProblem(objective, x, y).hvp(v)) < 1e-12
    assert distance(problem.hvp(v), want) < 1e-12
    assert torch.equal(problem.params, point)
    there = problem.at(point * 2)
    assert distance(there.hvp(v), RopProblem(objective, x, y, params=point * 2).hvp(v)) < 1e-12


def test_nothing_of_the_network_moves(device: torch.device) -> None:
    objective, (x, y) = mlp(device), batch(device)
    before, state = flatten(objective.parameters).detach().clone(), torch.get_rng_state()
    problem = CudaProblem(CudaNetwork(objective), objective, x, y)
    problem.hvp(problem.grad())
    assert torch.equal(flatten(objective.parameters), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in objective.parameters)


def test_results_are_the_callers(device: torch.device) -> None:
    objective, (x, y), v = mlp(device), batch(device), vector(51, device)
    problem = CudaProblem(CudaNetwork(objective), objective, x, y)
    product, gradient = problem.hvp(v), problem.grad()
    kept = product.clone(), gradient.clone()
    problem.hvp(2 * v)
    CudaProblem(problem.network, objective, *batch(device, seed=5)).grad()
    assert torch.equal(product, kept[0])
    assert torch.equal(gradient, kept[1])


def test_plans_are_kept_for_eight_shapes(device: torch.device) -> None:
    objective = mlp(device)
    network = CudaNetwork(objective)
    problems_ = [CudaProblem(network, objective, *batch(device, rows=rows)) for rows in range(2, 12)]
    for problem in problems_:
        problem.linearize()
    assert len(network._plans) == 8
    v = vector(objective.n, device)
    want = RopProblem(objective, *batch(device, rows=2)).hvp(v)
    assert distance(problems_[0].hvp(v), want) < 1e-12  # a problem keeps its plan


def test_other_plans_make_room(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = mlp(device)
    network = CudaNetwork(objective)
    CudaProblem(network, objective, *batch(device, rows=3)).linearize()
    real, made = problems.Plan, []

    def scarce(*args: Any, **settings: Any) -> Any:
        made.append(len(network._plans))
        if network._plans:
            raise torch.OutOfMemoryError("none left")
        return real(*args, **settings)

    monkeypatch.setattr(problems, "Plan", scarce)
    problem = CudaProblem(network, objective, *batch(device, rows=4))
    assert problem.hvp(problem.grad()).isfinite().all()
    assert made == [1, 0]


def test_a_change_of_mode_makes_another_plan(device: torch.device) -> None:
    torch.manual_seed(0)
    objective = Objective(swap_norms(Residual()).to(device, torch.float64), F.cross_entropy)
    network, (x, y), v = CudaNetwork(objective), batch(device, shape=(1, 8, 8)), vector(objective.n, device)
    for training in (True, False, True):
        objective.model.train(training)
        problem = CudaProblem(network, objective, x, y)
        assert distance(problem.hvp(v), RopProblem(objective, x, y).hvp(v)) < 1e-12
    assert len(network._plans) == 2
    objective.model.eval()
    with torch.no_grad():
        objective.model.norm.running_var.mul_(3)  # in place: the same address
    assert distance(CudaProblem(network, objective, x, y).hvp(v), RopProblem(objective, x, y).hvp(v)) < 1e-12
    objective.model.norm.running_var = objective.model.norm.running_var / 3  # elsewhere
    assert distance(CudaProblem(network, objective, x, y).hvp(v), RopProblem(objective, x, y).hvp(v)) < 1e-12
    assert len(network._plans) == 3


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_once_and_only_where_they_should(momentum: float | None, device: torch.device) -> None:
    def moved(kind: type[Any]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        model = Residual()
        model.norm.momentum = momentum
        objective = Objective(swap_norms(model).to(device, torch.float64), F.cross_entropy)
        make = partial(CudaProblem, CudaNetwork(objective)) if kind is CudaProblem else RopProblem
        norm = objective.model.norm
        for seed in (1, 2):
            x, y = batch(device, seed=seed, shape=(1, 8, 8))
            with running_statistics(objective.model):
                problem = make(objective, x, y)
                problem.loss()
            problem.hvp(vector(objective.n, device))
            with running_statistics(objective.model):
                problem.at(problem.params).hvp(vector(objective.n, device))
            make(objective, x, y).hvp(vector(objective.n, device))  # outside: nothing moves
        return norm.running_mean.clone(), norm.running_var.clone()

    for got, want in zip(moved(CudaProblem), moved(RopProblem), strict=True):
        assert torch.allclose(got, want, rtol=1e-12)


def test_dropout_masks_stay_with_their_batch(device: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 3)).to(device, torch.float64)
    objective, (x, y) = Objective(model, F.cross_entropy), batch(device)
    network, v = CudaNetwork(objective), vector(objective.n, device)
    torch.manual_seed(3)
    first, second = [CudaProblem(network, objective, x, y) for _ in range(2)]
    one, two = first.hvp(v), second.hvp(v)
    assert distance(one, two) > 1e-3  # new masks for a new batch
    assert torch.equal(first.hvp(v), one)
    assert torch.equal(second.hvp(v), two)
    assert torch.equal(first.at(first.params).hvp(v), one)
    torch.manual_seed(3)
    assert distance(one, RopProblem(objective, x, y).hvp(v)) < 1e-12  # and torch's own
    assert len(network._plans) == 1
    model.eval()
    assert distance(CudaProblem(network, objective, x, y).hvp(v), RopProblem(objective, x, y).hvp(v)) < 1e-12


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus])
def test_a_rule_that_keeps_something_between_products_is_found(
    activation: type[nn.Module], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``bend`` would be, were it not computed with the primal pass."""
    objective, (x, y) = mlp(device, activation=activation), batch(device)
    monkeypatch.setattr(plans, "settle", lambda rules: None)
    with pytest.raises(CaptureError, match=f"the rule {activation.__name__} keeps 'bend' from one product"):
        CudaProblem(CudaNetwork(objective), objective, x, y).linearize()
    monkeypatch.setattr(plans, "nothing_kept", lambda rules: nullcontext())
    with pytest.raises(CaptureError, match=r"its recorded (Hv|grad v'Hv) differs from the rules by .* \(relative\)"):
        CudaProblem(CudaNetwork(objective), objective, x, y).linearize()


def test_lower_precision_is_of_products_alone(device: torch.device) -> None:
    objective, (x, y), v = mlp(device), batch(device), vector(51, device)
    objective.model.float()
    x, v = x.float(), v.float()
    exact = CudaProblem(CudaNetwork(objective), objective, x, y)
    coarse = CudaProblem(CudaNetwork(objective, precision="bf16"), objective, x, y)
    assert torch.equal(exact.grad(), coarse.grad())
    assert exact.hvp(v).dtype == coarse.hvp(v).dtype == torch.float32
    assert 1e-4 < distance(coarse.hvp(v), exact.hvp(v)) < 5e-2
    assert exact.network.error is not None
    assert exact.network.error < 1e-6
    assert coarse.network.error is not None
    assert 1e-4 < coarse.network.error < 5e-2


def test_the_switches_of_matrix_products_are_put_back(device: torch.device) -> None:
    backends: Any = torch.backends
    switches = backends.cuda.matmul, backends.cudnn.conv
    before = [switch.fp32_precision for switch in switches]
    objective, (x, y) = mlp(device), batch(device)
    problem = CudaProblem(CudaNetwork(objective, precision="tf32"), objective, x, y)
    assert problem.hvp(problem.grad()).isfinite().all()
    assert [switch.fp32_precision for switch in switches] == before


def test_refusals(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, other = mlp(device), mlp(device)
    with pytest.raises(ValueError, match=r"precision must be one of exact, tf32, bf16, got 'fp8'"):
        CudaNetwork(objective, precision="fp8")
    with pytest.raises(ValueError, match=r"network must be of this objective"):
        CudaProblem(CudaNetwork(objective), other, *batch(device))
    monkeypatch.setattr(problems, "triton_runs", lambda device: False)
    with pytest.raises(ValueError, match=r"fused needs Triton, which does not run on this device"):
        CudaNetwork(objective, fused=True)
