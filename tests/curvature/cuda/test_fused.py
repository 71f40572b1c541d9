"""Fused kernels against the torch rules that they stand in for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.cuda.fused_rules import replacements
from spectral_run.curvature.cuda.problem import CudaNetwork, CudaProblem
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.rop.forms import Elementwise
from spectral_run.curvature.rop.losses.cross_entropy import CrossEntropy
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.registry import registry

pytestmark = pytest.mark.usefixtures("_triton")
SHAPE = (3, 5, 100)  # more than one program, and a last one that is not full
FUNCTIONS = [rule for rule in registry().rules if issubclass(rule, Elementwise)]


def numbers(*shape: int, seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("second", [True, False], ids=["with x2", "without x2"])
@pytest.mark.parametrize("rule", FUNCTIONS, ids=lambda rule: rule.__name__)
def test_elementwise(rule: Any, second: bool, device: torch.device) -> None:
    x0, g0, x1, g1, g2, x2 = (numbers(*SHAPE, seed=seed, device=device) for seed in range(6))

    def passes(kind: Any) -> list[Tensor]:
        one = kind()
        y0 = one.forward0(x0)
        found = [y0, one.backward0(g0)[0], one.forward1(x1)]
        one.bend = one.second() * one.g0
        return [*found, one.forward2(x2 if second else None), one.backward1(g1)[0], one.backward2(g1, g2)[0]]

    assert issubclass(replacements()[rule], rule)
    for got, want in zip(passes(replacements()[rule]), passes(rule), strict=True):
        assert distance(got, want) < 1e-5


def test_other_layouts_go_the_torch_way(device: torch.device) -> None:
    from spectral_run.curvature.cuda.kernels.fused import flat_alike

    x = numbers(4, 6, seed=0, device=device)
    assert flat_alike(x, x.clone())
    assert flat_alike(x.t(), x.clone().t())
    assert not flat_alike(x, x.t().contiguous().t())
    assert not flat_alike(x, x[:1].expand(4, 6))
    assert not flat_alike(x[:, ::2], x[:, ::2])
    assert not flat_alike(x, x.double())


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 3), (300, 10), (2, 1500)])
def test_cross_entropy(rows: int, classes: int, device: torch.device) -> None:
    z0, z1 = (numbers(rows, classes, seed=seed, device=device) for seed in range(2))
    targets = torch.arange(rows, device=device) % classes

    def order1(kind: Any) -> Tensor:
        rule = kind({"weight": torch.arange(1.0, 1.0 + classes, device=device)})
        rule.cotangent0(z0, targets)
        return rule.cotangent1(z1)

    got, want = order1(replacements()[CrossEntropy]), order1(CrossEntropy)
    assert float((got - want).norm()) <= 1e-5 * float(want.norm())


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (3, 50), (16, 700)])
def test_orthogonalization(rows: int, n: int, device: torch.device) -> None:
    from spectral_run.curvature.cuda.kernels.fused import orthogonalize

    basis = torch.zeros(rows, n, device=device)
    held = min(rows, n)
    basis[:held] = torch.linalg.qr(numbers(n, held, seed=0, device=device))[0].T
    w = numbers(n, seed=1, device=device)
    left, coefficients, norm = orthogonalize(basis, w)
    double = basis.double()
    want = w.double() - double.T @ (double @ w.double())
    scale = float(w.norm())
    assert float((left.double() - want).norm()) <= 1e-5 * scale
    assert float((basis @ left).norm()) <= 1e-6 * scale
    assert float((coefficients - double @ w.double()).norm()) <= 1e-5 * scale
    assert float(norm) == pytest.approx(float(left.norm()), rel=1e-5, abs=1e-7)


def test_a_network_of_fused_rules(device: torch.device) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.Softplus(), nn.Flatten(), nn.Linear(18, 6), nn.Tanh(), nn.Linear(6, 3)]
    objective = Objective(nn.Sequential(*layers).to(device), F.cross_entropy)
    x, y = numbers(4, 1, 5, 5, seed=0, device=device), torch.tensor([0, 1, 2, 0], device=device)
    problem = CudaProblem(CudaNetwork(objective, fused=True), objective, x, y)
    rules = RopProblem(objective, x, y)
    v = numbers(objective.n, seed=1, device=device)
    for got, want in zip(problem.hvp_and_quadratic_grad(v), rules.hvp_and_quadratic_grad(v), strict=True):
        assert distance(got, want) < 1e-5
    assert distance(problem.grad(), rules.grad()) < 1e-5
    kinds = {type(node[0]).__name__ for node in problem._plan()._primal.result.swept._nodes}
    assert {"FusedSoftplus", "FusedTanh"} <= kinds
    solver = Lanczos(eps=1e-2, cap=8)
    got, want = problem.eigenpair(solver, v), rules.eigenpair(solver, v)
    assert (got.reason, got.products) == (want.reason, want.products)
    assert got.value == pytest.approx(want.value, rel=1e-5)
