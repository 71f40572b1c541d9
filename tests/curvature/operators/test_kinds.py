"""Every kind against its dense matrix, for every backend, whole and in uneven batches, here and elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.operators.base import CurvatureOperator
from spectral_run.curvature.operators.operators import KINDS, curvature_operator

RTOL = 1e-9
NETWORKS, BACKENDS = ("mlp", "cnn", "norms"), ("autograd", "rop", "native")
LOSSES = ("cross-entropy", "binary", "squares")
ROWS = 7
SERVED = [(n, b) for n in NETWORKS for b in BACKENDS if (n, b) != ("norms", "native")]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def operator(kind: str, case: Any, **settings: Any) -> CurvatureOperator:
    return curvature_operator(
        kind, case.objective, case.inputs, case.targets, **({"generator": generator()} | settings)
    )


def assert_close(got: Tensor, want: Tensor, rtol: float = RTOL) -> None:
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * float(want.norm()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("network", "backend"), SERVED, ids=lambda x: x)
def test_products_are_those_of_the_dense_matrix(make_case, make_backend, network: str, backend: str, loss: str) -> None:
    case, served = make_case(network, loss), make_backend(backend, make_case(network, loss))
    vectors = torch.randn(3, len(case.point), dtype=torch.float64, generator=generator(1))
    elsewhere = case.point + 0.5
    for kind, matrix in case.matrices.items():
        for batch_size in (ROWS, 3):  # 3 + 3 + 1 rows
            here = operator(kind, case, backend=served, batch_size=batch_size)
            torch.nn.utils.vector_to_parameters(elsewhere, case.objective.parameters)
            there = operator(kind, case, backend=served, batch_size=batch_size, params=case.point)
            for made in (here, there):  # the first has been made where the network no longer is
                assert_close(made.matvecs(vectors), vectors @ matrix)
                assert_close(made.matvec(vectors[1]), matrix @ vectors[1])
                assert made.products == 4
            torch.nn.utils.vector_to_parameters(case.point, case.objective.parameters)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fisher_sampled"])
def test_dense_by_default(make_case, kind: str) -> None:
    case = make_case("cnn", "cross-entropy")
    made = operator(kind, case)
    assert_close(made.dense(), case.matrices[kind])
    assert made.products == made.n == len(case.point)


@pytest.mark.parametrize("loss", LOSSES)
def test_hessian_is_gauss_newton_and_residual(make_case, loss: str) -> None:
    case = make_case("mlp", loss)
    both = operator("gauss_newton", case, batch_size=4) + operator("residual", case, batch_size=2)
    assert_close(both.dense(), operator("hessian", case).dense())
    matrix = case.matrices["residual"]
    assert float(matrix.norm()) > 0.01 * float(case.matrices["hessian"].norm())


@pytest.mark.parametrize(("loss", "outputs"), [("cross-entropy", 1), ("squares", 1), ("binary", 3)])
def test_fisher_is_gauss_newton(make_case, loss: str, outputs: int) -> None:
    """For binary cross-entropy the loss is a C-th of the negative log likelihood."""
    case = make_case("cnn", loss)
    assert_close(outputs * operator("fisher", case).dense(), operator("gauss_newton", case).dense())
    different = operator("fisher_empirical", case).dense() - operator("fisher", case).dense()
    assert float(different.norm()) > 0.1 * float(case.matrices["fisher"].norm())


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_gauss_newton_has_small_rank_and_no_negative_eigenvalue(rows: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    inputs, targets = torch.randn(rows, 4).double(), torch.randint(4, (rows,))
    matrix = curvature_operator("gauss_newton", Objective(model, F.cross_entropy), inputs, targets).dense()
    values = torch.linalg.eigvalsh(matrix)
    assert float(values[0]) > -1e-14
    assert int((values > 1e-12 * values[-1]).sum()) == rows * 3  # N (C - 1)


def test_hessian_of_a_linear_model_is_gauss_newton() -> None:
    torch.manual_seed(0)
    objective = Objective(nn.Linear(4, 3).double(), F.cross_entropy)
    batch = torch.randn(6, 4).double(), torch.randint(3, (6,))
    assert_close(
        curvature_operator("hessian", objective, *batch).dense(),
        curvature_operator("gauss_newton", objective, *batch).dense(),
    )
    assert float(curvature_operator("residual", objective, *batch).dense().norm()) < 1e-14


def test_trace_of_the_covariance_is_the_spread_of_the_gradients(make_case) -> None:
    case = make_case("mlp", "cross-entropy")
    gradients = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(case.objective(x, y), case.objective.parameters)])
            for x, y in zip(case.inputs.split(1), case.targets.split(1), strict=True)
        ]
    )
    want = float((gradients**2).sum(1).mean() - (gradients.mean(0) ** 2).sum())
    assert float(operator("gradient_covariance", case).dense().trace()) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_fisher_is_fixed_and_the_same_in_batches(make_case, make_backend, backend: str, loss: str) -> None:
    case = make_case("mlp", loss)
    served = make_backend(backend, case)
    made = [operator("fisher_sampled", case, backend=served, batch_size=b, samples=2) for b in (7, 3)]
    whole = made[0].dense()
    assert_close(whole, whole.T)
    assert torch.equal(made[0].dense(), whole)
    assert_close(made[1].dense(), whole)
    assert torch.linalg.matrix_rank(whole, hermitian=True) <= 2 * 7
    other = operator("fisher_sampled", case, backend=served, generator=generator(5), samples=2).dense()
    assert float((other - whole).norm()) > 0.01 * float(whole.norm())


def test_sampled_fisher_of_one_row_is_the_outer_product_of_one_labels_gradient(make_case) -> None:
    case = make_case("mlp", "cross-entropy")
    z = case.function(case.point, case.inputs)[0]
    possible = [torch.outer(g, g) for g in (case.gradients(z, torch.tensor(y), 0) for y in range(3))]
    seen = set()
    for seed in range(12):
        made = curvature_operator(
            "fisher_sampled", case.objective, case.inputs[:1], case.targets[:1], generator=generator(seed)
        ).dense()
        near = [i for i, matrix in enumerate(possible) if float((matrix - made).norm()) < 1e-12]
        assert len(near) == 1
        seen.update(near)
    assert len(seen) > 1


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_fisher_is_unbiased(make_case, make_backend, loss: str) -> None:
    """Trace and quadratic forms within three standard errors of the exact ones, and these are not wide."""
    case, source, draws = make_case("mlp", loss), generator(2), 60
    served = make_backend("rop", case)
    vectors = torch.randn(3, len(case.point), dtype=torch.float64, generator=generator(3))

    def numbers(matrix: Tensor) -> Tensor:
        return torch.cat([matrix.trace()[None], ((vectors @ matrix) * vectors).sum(1)])

    made = (operator("fisher_sampled", case, backend=served, generator=source, samples=8) for _ in range(draws))
    sample = torch.stack([numbers(one.dense()) for one in made])
    exact = numbers(case.matrices["fisher"])
    errors = sample.std(0) / draws**0.5
    assert bool(((sample.mean(0) - exact).abs() <= 3 * errors).all())
    assert bool((errors <= 0.05 * exact).all())


def test_more_samples_come_nearer(make_case) -> None:
    case = make_case("mlp", "cross-entropy")
    fisher = case.matrices["fisher"]
    errors = [float((operator("fisher_sampled", case, samples=s).dense() - fisher).norm()) for s in (1, 1000)]
    assert errors[1] < 0.15 * errors[0]


WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.2, weight=WEIGHT),
        nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(reduction="sum"),
        lambda z, y: F.cross_entropy(z, y) + (z**4).mean(),  # no rule: second derivatives by autograd
    ],
    ids=["weighted", "ignored", "summed", "of its own"],
)
@pytest.mark.parametrize("backend", ["autograd", "rop"])
def test_gauss_newton_of_other_losses(make_case, backend: str, loss: Any) -> None:
    case = make_case("mlp", "cross-entropy")
    objective = Objective(case.objective.model, loss)
    if backend == "rop" and not isinstance(loss, nn.Module):
        backend = "autograd"
    from spectral_run.curvature.backends import choose_backend

    served = choose_backend(backend, objective, case.inputs)
    made = curvature_operator("gauss_newton", objective, case.inputs, case.targets, backend=served)
    z = case.function(case.point, case.inputs)
    second = torch.func.hessian(lambda z: loss(z, case.targets))(z).reshape(z.numel(), z.numel())
    j = case.jacobian.reshape(z.numel(), -1)
    assert_close(made.dense(), j.T @ second @ j)


@pytest.mark.parametrize("backend", ["autograd", "rop"])
def test_gauss_newton_of_outputs_with_positions(backend: str) -> None:
    """Cross-entropy at every pixel: outputs (rows, C, height, width)."""
    from spectral_run.curvature.backends import choose_backend

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 3, 1)).double()
    inputs, targets = torch.randn(4, 1, 3, 2).double(), torch.randint(3, (4, 3, 2))
    objective = Objective(model, F.cross_entropy)
    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def function(w: Tensor) -> Tensor:
        a, b, c, d = w.split([2, 2, 6, 3])
        x = torch.tanh(inputs * a.view(1, 2, 1, 1) + b.view(1, 2, 1, 1))
        return torch.einsum("oc,nchw->nohw", c.view(3, 2), x) + d.view(1, 3, 1, 1)

    def loss(z: Tensor) -> Tensor:
        return (z.exp().sum(1).log() - z.gather(1, targets[:, None])[:, 0]).mean()

    z = function(w)
    j = torch.func.jacrev(function)(w).reshape(z.numel(), -1)
    second = torch.func.hessian(loss)(z).reshape(z.numel(), z.numel())
    served = choose_backend(backend, objective, inputs)
    for batch_size in (4, 3):
        made = curvature_operator("gauss_newton", objective, inputs, targets, backend=served, batch_size=batch_size)
        assert_close(made.dense(), j.T @ second @ j)
    with pytest.raises(ValueError, match=r"fisher: the model's outputs must be of shape \(rows, C\), got \(2, 3, 3, 2"):
        curvature_operator("fisher", objective, inputs, targets, backend=served)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_decay_is_in_the_hessian_and_gauss_newton_alone(make_case, make_backend, backend: str) -> None:
    case = make_case("mlp", "cross-entropy")
    served = make_backend(backend, case, weight_decay=0.5)
    identity = torch.eye(len(case.point), dtype=torch.float64)
    for kind, matrix in case.matrices.items():
        shift = 0.5 if kind in ("hessian", "gauss_newton") else 0.0
        for batch_size in (7, 3):
            got = operator(kind, case, backend=served, batch_size=batch_size).dense()
            assert_close(got, matrix + shift * identity)


@pytest.mark.parametrize("swapped", [True, False])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "residual"])
@pytest.mark.parametrize("backend", ["autograd", "rop"])
def test_batch_norm_in_training_is_covered_in_one_batch(kind: str, backend: str, swapped: bool) -> None:
    """There the batch's loss is what is differentiated, rows and all."""
    from spectral_run.curvature.backends import choose_backend

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double().train()
    model = swap_norms(model) if swapped else model
    objective = Objective(model, F.cross_entropy)
    inputs, targets = torch.randn(6, 3).double(), torch.randint(3, (6,))

    def function(w: Tensor) -> Tensor:
        a, b, s, t, c, d = w.split([12, 4, 4, 4, 12, 3])
        x = inputs @ a.view(4, 3).T + b
        x = (x - x.mean(0)) / (((x - x.mean(0)) ** 2).mean(0) + 1e-5) ** 0.5 * s + t
        return torch.tanh(x) @ c.view(3, 4).T + d

    def loss(z: Tensor) -> Tensor:
        return (z.exp().sum(1).log() - z.gather(1, targets[:, None])[:, 0]).mean()

    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    z = function(w)
    j = torch.func.jacrev(function)(w).reshape(z.numel(), -1)
    second = torch.func.hessian(loss)(z).reshape(z.numel(), z.numel())
    hessian = torch.func.hessian(lambda w: loss(function(w)))(w)
    want = {"hessian": hessian, "gauss_newton": j.T @ second @ j, "residual": hessian - j.T @ second @ j}[kind]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    served = choose_backend(backend, objective, inputs)
    assert_close(curvature_operator(kind, objective, inputs, targets, backend=served).dense(), want)
    if swapped or backend == "rop" or kind == "gauss_newton":  # torch's own layer moves in the autograd problem's pass
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_curvlinops_agrees(make_case) -> None:
    from curvlinops import EFLinearOperator, GGNLinearOperator

    case = make_case("cnn", "cross-entropy")
    model, parameters = case.objective.model, list(case.objective.parameters)
    data = list(zip(case.inputs.split(3), case.targets.split(3), strict=True))
    identity = torch.eye(len(case.point), dtype=torch.float64)
    for kind, theirs in (("gauss_newton", GGNLinearOperator), ("fisher_empirical", EFLinearOperator)):
        matrix = theirs(model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False)
        assert_close(operator(kind, case, batch_size=3).dense(), matrix @ identity)
