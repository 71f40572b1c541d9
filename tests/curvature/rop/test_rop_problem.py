"""The problem as a whole: the shared cases against their dense Hessians, and what it leaves alone."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.exact_layers import running_statistics, swap_norms
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.trace import trace

RTOL = 1e-9


def problem_of(case) -> RopProblem:
    return RopProblem(case.objective, case.inputs, case.targets)


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def test_loss_and_gradient_are_the_references(case) -> None:
    problem = problem_of(case)
    gradient, loss = torch.func.grad_and_value(lambda w: case.reference(w, case.inputs, case.targets))(case.point)
    assert error(problem.loss(), loss) < RTOL
    assert error(problem.grad(), gradient) < RTOL
    assert error(problem_of(case).grad(), gradient) < RTOL


def test_product_equals_dense_hessian(case) -> None:
    problem, hessian = problem_of(case), case.dense_hessian()
    identity = torch.eye(problem.n, dtype=torch.float64)
    assert error(torch.stack([problem.hvp(row) for row in identity]), hessian) < RTOL
    assert problem.products == problem.n
    assert error(problem.hvps(identity), hessian) < RTOL
    assert problem.products == 2 * problem.n


def test_quadratic_gradient_equals_dense_third_derivative(case) -> None:
    problem = problem_of(case)
    v = torch.randn(problem.n, dtype=torch.float64)
    product, quadratic = problem.hvp_and_quadratic_grad(v)
    assert error(product, case.dense_hessian() @ v) < RTOL
    assert error(quadratic, case.dense_quadratic_grad(v)) < RTOL
    assert torch.equal(problem.quadratic_grad(v), quadratic)
    assert torch.equal(problem.hvp(v), product)
    assert problem.products == 3


@pytest.mark.parametrize("seed", range(5))
def test_identities(case, seed: int) -> None:
    """Symmetry and linearity of H; grad v'Hv is a quadratic form in v, of a symmetric third derivative."""
    torch.manual_seed(seed)
    problem = problem_of(case)
    u, v = torch.randn(2, problem.n, dtype=torch.float64)
    (hu, qu), (hv, qv) = problem.hvp_and_quadratic_grad(u), problem.hvp_and_quadratic_grad(v)
    assert float(u @ hv) == pytest.approx(float(v @ hu), rel=1e-10)
    assert error(problem.hvp(2 * u - 3 * v), 2 * hu - 3 * hv) < 1e-12
    assert error(problem.quadratic_grad(-3 * u), 9 * qu) < 1e-12
    assert error(problem.quadratic_grad(u + v) + problem.quadratic_grad(u - v), 2 * qu + 2 * qv) < 1e-12
    # The third derivative is symmetric: v' grad(u'Hu) = u' (mixed second form of (u, v)).
    mixed = (problem.quadratic_grad(u + v) - problem.quadratic_grad(u - v)) / 4
    assert float(v @ qu) == pytest.approx(float(u @ mixed), rel=1e-9)


def test_weight_decay_shifts_every_eigenvalue(case) -> None:
    plain = problem_of(case)
    shifted = RopProblem(case.objective, case.inputs, case.targets, weight_decay=0.5)
    v = torch.randn(plain.n, dtype=torch.float64)
    assert error(shifted.hvp(v), plain.hvp(v) + 0.5 * v) < 1e-14
    assert error(shifted.hvps(v[None])[0], plain.hvp(v) + 0.5 * v) < 1e-14
    assert torch.equal(shifted.grad(), plain.grad())
    assert error(shifted.quadratic_grad(v), plain.quadratic_grad(v)) < 1e-12


def test_elsewhere_is_the_network_with_those_parameters(case) -> None:
    moved = case.point + 0.1
    there = problem_of(case).at(moved)
    v = torch.randn(there.n, dtype=torch.float64)
    before = case.point
    got = there.hvp_and_quadratic_grad(v)
    assert torch.equal(there.params, moved)
    assert torch.equal(case.point, before)
    with torch.no_grad():
        for parameter in case.objective.parameters:
            parameter += 0.1
    for a, b in zip(got, problem_of(case).hvp_and_quadratic_grad(v), strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_any_number_of_rows(summed_case, rows: int) -> None:
    case, program = summed_case, trace(summed_case.objective)
    inputs, targets = case.inputs[:rows], case.targets[:rows]
    v = torch.randn(case.objective.n, dtype=torch.float64)
    got = RopProblem(case.objective, inputs, targets, program=program).hvp_and_quadratic_grad(v)
    for a, b in zip(got, AutogradProblem(case.objective, inputs, targets).hvp_and_quadratic_grad(v), strict=True):
        assert error(a, b) < RTOL


def test_single_precision(case) -> None:
    v = torch.randn(case.objective.n, dtype=torch.float64)
    want = problem_of(case).hvp_and_quadratic_grad(v)
    case.objective.model.float()
    problem = RopProblem(case.objective, case.inputs.float(), case.targets)
    for a, b in zip(problem.hvp_and_quadratic_grad(v.float()), want, strict=True):
        assert a.dtype == torch.float32
        assert error(a.double(), b) < 1e-4


def test_nothing_of_the_network_moves(case) -> None:
    before = {name: tensor.clone() for name, tensor in case.objective.model.state_dict().items()}
    random = torch.get_rng_state()
    problem = problem_of(case)
    v = torch.randn(problem.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = problem.hvp(v)
    gradient = problem.grad().clone()
    product.zero_()  # what a product gave is the caller's
    assert problem.quadratic_grad(v).requires_grad is False
    assert torch.equal(problem.grad(), gradient)
    assert problem.hvp(v).any()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.objective.model.state_dict().items())
    assert all(parameter.grad is None for parameter in case.objective.parameters)


def test_dropout_is_drawn_as_the_network_draws_it_and_kept() -> None:
    layers = [nn.Conv1d(3, 4, 2), nn.Dropout1d(0.4), nn.Flatten(), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 3)]
    objective = Objective(nn.Sequential(*layers).double(), F.cross_entropy)
    batch = torch.randn(5, 3, 6).double(), torch.randint(3, (5,))
    torch.manual_seed(1)
    want = AutogradProblem(objective, *batch)
    loss, after = want.loss(), torch.get_rng_state()
    torch.manual_seed(1)
    problem = RopProblem(objective, *batch)
    same = problem.at(problem.params)  # draws problem's masks
    assert torch.equal(torch.get_rng_state(), after)
    v = torch.randn(problem.n, dtype=torch.float64)
    for other in (problem, same):
        assert float(other.loss()) == pytest.approx(float(loss), rel=1e-14)
        for a, b in zip(other.hvp_and_quadratic_grad(v), want.hvp_and_quadratic_grad(v), strict=True):
            assert error(a, b) < RTOL
    assert float(RopProblem(objective, *batch).loss()) != float(loss)


def test_running_statistics_move_as_with_autograd() -> None:
    def moved(kind: type) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.InstanceNorm2d(3, track_running_stats=True)]
        model = swap_norms(nn.Sequential(*layers, nn.BatchNorm2d(3, momentum=None), nn.Flatten())).double()
        objective = Objective(model, F.cross_entropy)
        batch = torch.randn(4, 2, 4, 4).double(), torch.randint(27, (4,))
        for _ in range(2):
            problem = kind(objective, *batch)
            with running_statistics(model):
                problem.loss()
                problem.loss()
            v = torch.randn(problem.n).double()
            product, _ = problem.hvp_and_quadratic_grad(v)
            problem.at(problem.params + 0.1).hvp(v)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.eval()
        kind(objective, *batch).hvp(v)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        return state, product

    (ours, product), (theirs, want) = moved(RopProblem), moved(AutogradProblem)
    assert int(ours["1.num_batches_tracked"]) == 2
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-14, atol=1e-15)
    assert error(product, want) < RTOL


def test_statistics_stay_elsewhere_and_in_torchs_own_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    batch = torch.randn(5, 3).double(), torch.randint(4, (5,))
    for network in (model, swap_norms(model)):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        problem = RopProblem(Objective(network, F.cross_entropy), *batch)
        with running_statistics(network):
            there = problem.at(problem.params + 1)
            there.grad()
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_no_curvature_and_no_parameters() -> None:
    batch = torch.randn(4, 3).double(), torch.randn(4, 2).double()
    linear = RopProblem(Objective(nn.Linear(3, 2).double(), F.mse_loss), *batch)
    assert not linear.quadratic_grad(torch.ones(linear.n).double()).any()
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).double()
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-1)  # every unit is off
    dead = RopProblem(Objective(model, F.mse_loss), *batch)
    assert not torch.cat(dead.hvp_and_quadratic_grad(torch.ones(dead.n).double())).any()
    assert not dead.grad().any()


def test_not_a_number_flows_through(case) -> None:
    problem = problem_of(case)
    v = torch.randn(problem.n, dtype=torch.float64)
    v[0] = torch.nan
    assert problem.hvp(v).isnan().any()
    assert problem_of(case).at(problem.params * torch.nan).grad().isnan().any()


def test_a_program_serves_only_its_own_objective(case) -> None:
    other = Objective(nn.Linear(2, 2), F.cross_entropy)
    with pytest.raises(ValueError, match="program must be a trace of this objective"):
        RopProblem(case.objective, case.inputs, case.targets, program=trace(other))


def test_no_tensor_outlives_its_batch(case) -> None:
    def tensors() -> int:  # by type(): isinstance asks objects for __class__, and some of torch's then warn
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    program = trace(case.objective)
    v = torch.randn(case.objective.n, dtype=torch.float64)

    def step() -> None:
        problem = RopProblem(case.objective, case.inputs, case.targets, program=program)
        problem.hvp_and_quadratic_grad(v)
        problem.at(problem.params).hvp(v)

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


def test_a_product_keeps_nothing(case) -> None:
    problem = problem_of(case)
    v = torch.randn(problem.n, dtype=torch.float64)
    problem.hvp_and_quadratic_grad(v)
    problem.hvp(v)
    assert all(node[0].jet1 is None and node[0].jet2 is None for node in problem._nodes)
    assert torch.equal(problem.params, flatten([p.detach() for p in case.objective.parameters]))


def test_a_problem_whose_parameters_have_moved_refuses(case) -> None:
    problem = problem_of(case)
    v = torch.randn(problem.n, dtype=torch.float64)
    there = problem.at(problem.params)
    there.hvp(v)
    problem.hvp(v)
    with torch.no_grad():
        case.objective.parameters[-1].add_(1)
    with pytest.raises(RuntimeError, match="the parameters have moved"):
        problem.hvp(v)
    assert problem.grad().isfinite().all()
    there.hvp(v)
