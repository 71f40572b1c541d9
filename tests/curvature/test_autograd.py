"""Products of one batch against the dense Hessian of a module-free reference, in float64."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.objective import Objective

RTOL = 1e-9


def problem_of(case) -> AutogradProblem:
    return AutogradProblem(case.objective, case.inputs, case.targets)


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def test_loss_and_gradient_are_the_references(case) -> None:
    problem = problem_of(case)
    gradient, loss = torch.func.grad_and_value(lambda w: case.reference(w, case.inputs, case.targets))(case.point)
    assert error(problem.loss(), loss) < RTOL
    assert error(problem.grad(), gradient) < RTOL
    problem.linearize()
    assert error(problem.grad(), gradient) < RTOL


def test_product_equals_dense_hessian(case) -> None:
    problem, hessian = problem_of(case), case.dense_hessian()
    product = torch.stack([problem.hvp(row) for row in torch.eye(problem.n, dtype=torch.float64)])
    assert error(product, hessian) < RTOL
    assert problem.products == problem.n


def test_quadratic_gradient_equals_dense_third_derivative(case) -> None:
    problem = problem_of(case)
    v = torch.randn(problem.n, dtype=torch.float64)
    product, quadratic = problem.hvp_and_quadratic_grad(v)
    assert error(product, case.dense_hessian() @ v) < RTOL
    assert error(quadratic, case.dense_quadratic_grad(v)) < RTOL
    assert torch.equal(problem.quadratic_grad(v), quadratic)


def test_quadratic_gradient_equals_finite_differences(case, request) -> None:
    if "relu" in request.node.name:
        pytest.skip("finite differences cross the kinks of ReLU")
    problem = problem_of(case)
    v = torch.randn(problem.n, dtype=torch.float64)
    direction = torch.randn(problem.n, dtype=torch.float64)
    h = 1e-4
    ahead, behind = (problem.at(case.point + s * h * direction) for s in (1.0, -1.0))
    slope = (v @ ahead.hvp(v) - v @ behind.hvp(v)) / (2 * h)
    assert float(problem.quadratic_grad(v) @ direction) == pytest.approx(float(slope), rel=1e-5)


def test_product_is_symmetric_and_linear(case) -> None:
    problem = problem_of(case)
    u, v = torch.randn(2, problem.n, dtype=torch.float64)
    assert float(u @ problem.hvp(v)) == pytest.approx(float(v @ problem.hvp(u)), rel=1e-10)
    assert error(problem.hvp(2 * u - 3 * v), 2 * problem.hvp(u) - 3 * problem.hvp(v)) < 1e-12


def test_weight_decay_shifts_every_eigenvalue(case) -> None:
    plain = problem_of(case)
    shifted = AutogradProblem(case.objective, case.inputs, case.targets, weight_decay=0.5)
    v = torch.randn(plain.n, dtype=torch.float64)
    assert error(shifted.hvp(v), plain.hvp(v) + 0.5 * v) < 1e-14
    assert torch.equal(shifted.grad(), plain.grad())
    assert error(shifted.quadratic_grad(v), plain.quadratic_grad(v)) < 1e-12


def test_elsewhere_is_the_network_with_those_parameters(case) -> None:
    moved = case.point + 0.1
    there = problem_of(case).at(moved)
    v = torch.randn(there.n, dtype=torch.float64)
    got = there.hvp(v)
    assert torch.equal(there.params, moved)
    with torch.no_grad():
        for parameter in case.objective.parameters:
            parameter += 0.1
    assert error(got, problem_of(case).hvp(v)) < 1e-12


def test_nothing_of_the_network_moves(case) -> None:
    before = {name: tensor.clone() for name, tensor in case.objective.model.state_dict().items()}
    random = torch.get_rng_state()
    problem = problem_of(case)
    problem.quadratic_grad(torch.randn(problem.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.objective.model.state_dict().items())
    assert all(parameter.grad is None for parameter in case.objective.parameters)


def test_dropout_keeps_its_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 3)).double()
    objective = Objective(model, F.cross_entropy)
    problem = AutogradProblem(objective, torch.randn(5, 6).double(), torch.randint(3, (5,)))
    same = problem.at(problem.params)
    assert float(same.loss()) == float(problem.loss())
    v = torch.randn(problem.n, dtype=torch.float64)
    assert error(same.hvp(v), problem.hvp(v)) < 1e-12
    other = AutogradProblem(objective, problem.inputs, problem.targets)
    assert float(other.loss()) != float(problem.loss())


def test_a_loss_without_curvature_has_zero_products() -> None:
    model = nn.Linear(3, 2).double()
    objective = Objective(model, lambda y, t: (y * t).mean())
    problem = AutogradProblem(objective, torch.randn(4, 3).double(), torch.randn(4, 2).double())
    product, quadratic = problem.hvp_and_quadratic_grad(torch.ones(problem.n, dtype=torch.float64))
    assert not product.any()
    assert not quadratic.any()


def test_an_unused_parameter_has_zero_rows() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    objective = Objective(Unused().double(), F.cross_entropy)
    problem = AutogradProblem(objective, torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0]))
    assert not problem.hvp(torch.ones(problem.n, dtype=torch.float64))[8:].any()


def test_no_graph_outlives_its_batch(case) -> None:
    def tensors() -> int:  # by type(): isinstance asks objects for __class__, and some of torch's then warn
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    v = torch.randn(case.objective.n, dtype=torch.float64)

    def step() -> None:
        problem_of(case).hvp_and_quadratic_grad(v)

    step()
    gc.collect()
    before = tensors()
    gc.disable()  # a reference cycle would pile up now
    try:
        for _ in range(10):
            step()
        assert tensors() <= before
    finally:
        gc.enable()
