"""Kronecker factors against curvlinops on the same batch, against the dense Gauss-Newton matrix where they are exact,
and their inverse against the matrix it is the inverse of; in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from curvlinops import KFACLinearOperator
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.kfac import KFAC
from spectral_run.curvature.kronecker import KroneckerFactors
from spectral_run.curvature.lobpcg import LOBPCG
from spectral_run.curvature.objective import Objective


def _mlp(bias: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6, bias=bias), nn.ReLU(inplace=True) if bias else nn.Tanh(), nn.Linear(6, 3))


def _cnn() -> nn.Module:
    first = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    second = nn.Conv2d(3, 4, (2, 1), dilation=(1, 2), padding=(1, 0))
    return nn.Sequential(first, nn.ReLU(), second, nn.Tanh(), nn.Flatten(), nn.Linear(80, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: _mlp(True), (5,)),
    "mlp without a bias": (lambda: _mlp(False), (5,)),
    "cnn": (_cnn, (2, 7, 7)),
}
LOSSES: dict[str, tuple[Any, nn.Module]] = {
    "cross entropy": (F.cross_entropy, nn.CrossEntropyLoss()),
    "squares": (F.mse_loss, nn.MSELoss()),
    "binary": (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()),
}
ROWS = 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(network: str, loss: str, seed: int = 3) -> tuple[AutogradProblem, nn.Module]:
    torch.manual_seed(seed)
    build, shape = NETWORKS[network]
    inputs = torch.randn(ROWS, *shape).double()
    labels = torch.randint(3, (ROWS,))
    targets = {
        "cross entropy": labels,
        "squares": torch.randn(ROWS, 3).double(),
        "binary": F.one_hot(labels, 3).double(),
    }
    function, module = LOSSES[loss]
    return AutogradProblem(Objective(build().double(), function), inputs, targets[loss]), module


def dense(product: Callable[[Tensor], Tensor], n: int) -> Tensor:
    return torch.stack([product(row) for row in torch.eye(n, dtype=torch.float64)])


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("kind", "theirs"), [("exact", "type-2"), ("empirical", "empirical")])
def test_equals_curvlinops(network: str, loss: str, kind: Any, theirs: str) -> None:
    # A mean over rows and C outputs is 1/C of a likelihood's logarithm; curvlinops scales empirical gradients back.
    scale = 3 if kind == "empirical" and loss != "cross entropy" else 1
    problem, module = make(network, loss)
    model = problem.objective.model
    want = KFACLinearOperator(
        model, module, list(model.parameters()), [(problem.inputs, problem.targets)], fisher_type=theirs,
        kfac_approx="expand", separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    got = KFAC(kind=kind).update(problem, generator()).product()
    v = torch.randn(problem.n, dtype=torch.float64, generator=generator(1))
    assert error(scale * got(v), want @ v) < 1e-9


def test_is_the_gauss_newton_matrix_of_a_linear_layer_under_squares() -> None:
    torch.manual_seed(0)
    problem = AutogradProblem(
        Objective(nn.Linear(4, 3).double(), F.mse_loss), torch.randn(9, 4).double(), torch.randn(9, 3).double()
    )
    factors = KFAC(kind="exact").update(problem, generator())
    assert error(dense(factors.product(), problem.n), dense(problem.hvp, problem.n)) < 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_are_the_gauss_newton_blocks_on_a_single_row(loss: str) -> None:
    problem, _ = make("mlp", loss)
    problem = AutogradProblem(problem.objective, problem.inputs[:1], problem.targets[:1])
    factors = KFAC(kind="exact").update(problem, generator())

    def outputs(w: Tensor) -> Tensor:
        a, b, c, d = problem.objective.split(w)
        return (problem.inputs @ a.T + b).relu() @ c.T + d

    jacobian = torch.func.jacrev(outputs)(problem.params)[0]
    hessian = torch.func.hessian(lambda z: problem.objective.loss(z, problem.targets))(outputs(problem.params))
    ggn = jacobian.T @ hessian[0, :, 0] @ jacobian
    product = dense(factors.product(), problem.n)
    for block in factors.blocks:
        begin, end = block.layer.weight.start, block.layer.bias.stop
        assert error(product[begin:end, begin:end], ggn[begin:end, begin:end]) < 1e-10


def test_sampled_has_the_exact_factors_as_mean() -> None:
    problem, _ = make("mlp", "cross entropy")
    exact = KFAC(kind="exact").update(problem, generator())
    draws = [KFAC(kind="sampled").update(problem, g) for g in [generator(5)] for _ in range(400)]
    for i, block in enumerate(exact.blocks):
        assert error(draws[0].blocks[i].factors[0], block.factors[0]) < 1e-12
        samples = torch.stack([draw.blocks[i].factors[1] for draw in draws])
        spread = samples.std(0) / len(draws) ** 0.5
        assert bool(((samples.mean(0) - block.factors[1]).abs() <= 4 * spread + 1e-12).all())


@pytest.mark.parametrize("network", NETWORKS)
def test_inverse_times_damped_matrix_is_the_identity(network: str) -> None:
    problem, _ = make(network, "cross entropy")
    factors = KFAC(kind="exact").update(problem, generator())
    damping = 0.3
    want = torch.zeros(problem.n, problem.n, dtype=torch.float64)
    for block in factors.blocks:
        a, g = block.factors
        pi = float((a.trace() / len(a) / (g.trace() / len(g))).sqrt())
        a = a + pi * damping**0.5 * torch.eye(len(a), dtype=a.dtype)
        g = g + damping**0.5 / pi * torch.eye(len(g), dtype=a.dtype)
        weight, bias = block.layer.weight, block.layer.bias
        places = torch.arange(weight.start, weight.stop).view(len(g), -1)
        places = places if bias is None else torch.cat([places, torch.arange(bias.start, bias.stop)[:, None]], 1)
        flat = places.reshape(-1)
        want[flat[:, None], flat] = torch.kron(g, a)
    identity = torch.eye(problem.n, dtype=torch.float64)
    torch.testing.assert_close(dense(factors.inverse(damping), problem.n) @ want, identity, rtol=0, atol=1e-10)
    exact = dense(factors.function(lambda x: 1 / (x + damping)), problem.n)
    torch.testing.assert_close(
        exact @ (dense(factors.product(), problem.n) + damping * identity), identity, rtol=0, atol=1e-10
    )


def test_parameters_outside_the_blocks_get_the_mean_diagonal() -> None:
    torch.manual_seed(0)
    model = swap_norms(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))).double()
    model[2].weight.requires_grad_(False)
    problem = AutogradProblem(Objective(model, F.cross_entropy), torch.randn(6, 4).double(), torch.randint(3, (6,)))
    factors = KFAC(kind="exact").update(problem, generator())
    product = dense(factors.product(), problem.n)
    inside = product[:25, :25]
    outside = product[25:, 25:]
    torch.testing.assert_close(outside, inside.trace() / 25 * torch.eye(13, dtype=torch.float64))
    assert not product[:25, 25:].any()


def test_averages_and_comes_back_from_its_tensors() -> None:
    (one, _), (two, _) = make("cnn", "squares", seed=1), make("cnn", "squares", seed=2)
    older = KFAC(kind="exact").update(one, generator())
    newer = KFAC(kind="exact", decay=0.75).update(two, generator(), older)
    fresh = KFAC(kind="exact").update(two, generator(), older)
    for old, new, mixed in zip(older.blocks, fresh.blocks, newer.blocks, strict=True):
        for a, b, c in zip(old.factors, new.factors, mixed.factors, strict=True):
            torch.testing.assert_close(c, 0.75 * a + 0.25 * b, rtol=1e-10, atol=1e-12)
    again = KroneckerFactors.from_tensors(two.objective, newer.tensors() | {"vector": torch.zeros(3)})
    v = torch.randn(two.n, dtype=torch.float64, generator=generator(4))
    assert again is not None
    assert torch.equal(again.inverse(0.1)(v), newer.inverse(0.1)(v))
    assert KroneckerFactors.from_tensors(two.objective, {}) is None


def test_its_inverse_helps_at_the_small_end_and_hinders_at_the_large() -> None:
    # Where F is the Hessian, F^-1 is all that is needed for the smallest eigenvalue, and the opposite for the largest.
    torch.manual_seed(0)
    inputs = torch.randn(60, 30).double() * torch.logspace(0, -2, 30).double()
    problem = AutogradProblem(Objective(nn.Linear(30, 2).double(), F.mse_loss), inputs, torch.randn(60, 2).double())
    inverse = KFAC(kind="exact").update(problem, generator()).inverse(1e-9)
    start = torch.randn(problem.n, dtype=torch.float64, generator=generator(1))
    products = {}
    for which in ("smallest", "largest"):
        for name, preconditioner in (("plain", None), ("kfac", inverse)):
            settings = LOBPCG(eps=1e-3, cap=2000, which=which)
            result = settings.solve(problem.hvp, start, preconditioner=preconditioner)
            assert result.converged
            products[which, name] = result.products
    assert products["smallest", "kfac"] < products["smallest", "plain"] / 5
    assert products["largest", "kfac"] > 2 * products["largest", "plain"]


def test_a_dead_layer_and_a_nan_do_not_raise() -> None:
    problem, _ = make("mlp", "cross entropy")
    v = torch.ones(problem.n, dtype=torch.float64)
    dead = KFAC(kind="exact").update(problem.at(torch.zeros_like(problem.params)), generator())
    assert bool(torch.isfinite(dead.inverse(0.1)(v)).all())
    broken = KFAC(kind="exact").update(problem.at(torch.full_like(problem.params, torch.nan)), generator())
    assert bool(broken.inverse(0.1)(v).isnan().any())


def test_leaves_the_network_and_global_random_state_alone() -> None:
    torch.manual_seed(0)
    model = swap_norms(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))).double()
    problem = AutogradProblem(Objective(model, F.cross_entropy), torch.randn(6, 4).double(), torch.randint(3, (6,)))
    problem.loss()
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    KFAC(kind="sampled").update(problem, generator())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def _refused(model: nn.Module, loss: Any = F.cross_entropy, shape: tuple[int, ...] = (3,)) -> None:
    problem = AutogradProblem(Objective(model.double(), loss), torch.randn(2, *shape).double(), torch.tensor([0, 1]))
    KFAC(kind="exact").update(problem, generator())


def test_refuses_what_it_has_no_factors_for() -> None:
    with pytest.raises(ValueError, match="KFAC: layer '0' is a convolution in 2 groups"):
        _refused(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), shape=(2, 5, 5))
    with pytest.raises(ValueError, match="KFAC: layer 'layer' is used twice"):
        _refused(Twice())
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="layers '0' and '1' share their weight"):
        _refused(tied)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].bias = tied[0].bias
    with pytest.raises(ValueError, match="layers '0' and '1' share their bias"):
        _refused(tied)
    with pytest.raises(ValueError, match="has no trainable Linear or Conv2d"):
        _refused(nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match="outputs must be of shape"):
        _refused(nn.Sequential(nn.Conv2d(2, 3, 3)), shape=(2, 4, 4))
    with pytest.raises(ValueError, match="not convex"):
        _refused(nn.Linear(3, 3), loss=lambda z, y: z.cos().mean())
    with pytest.raises(ValueError, match="no second derivative"):
        _refused(nn.Linear(3, 3), loss=lambda z, y: z.mean())
    unused = nn.Sequential(nn.Linear(3, 3))
    unused.register_module("other", nn.Linear(3, 3))
    unused.forward = lambda x: unused[0](x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="layer 'other' took no part"):
        _refused(unused)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"damping": 0.0}, "damping must be positive, got 0.0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        KFAC(**settings)


def test_a_convolution_of_single_pixels() -> None:
    """Eight of nine input places are padding: float32's decomposition fails over so many zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(48, 6, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(6, 3))
    inputs, targets = torch.randn(16, 48, 1, 1).relu(), torch.randint(3, (16,))
    v = torch.randn(sum(p.numel() for p in model.parameters()))
    found = []
    for dtype in (torch.float32, torch.float64):
        objective = Objective(model.to(dtype), F.cross_entropy)
        problem = AutogradProblem(objective, inputs.to(dtype), targets)
        factors = KFAC(damping=1e-2, kind="exact").update(problem, torch.Generator().manual_seed(1), None)
        found.append(factors.inverse(1e-2)(v.to(dtype)))
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-4, atol=1e-4 * float(found[1].abs().max()))
