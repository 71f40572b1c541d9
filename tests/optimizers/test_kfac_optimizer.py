"""K-FAC's step against dense Fisher matrices and Kronecker products made without our code, in float64; then refresh
intervals, clipping, resuming, and what it refuses. The factors themselves: ``tests/curvature/test_kfac.py``."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.kfac import KFAC
from spectral_run.curvature.kronecker import KroneckerFactors
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.parallel import ParallelProblem, Processes
from spectral_run.curvature.problem import BatchProblem
from spectral_run.optimizers.kfac import KFACOptimizer
from spectral_run.regularizers.base import Regularizer, Step
from spectral_run.regularizers.spectral_radius import SpectralRadius


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Batch:
    """A closure like the runner's, on one batch: regularized gradient, problem, generator, evaluations counted."""

    def __init__(
        self,
        objective: Objective,
        inputs: Tensor,
        targets: Tensor,
        *,
        seed: int = 0,
        regularizer: Regularizer | None = None,
        make: Callable[..., BatchProblem] = AutogradProblem,
    ) -> None:
        self.objective, self.make = objective, lambda: make(objective, inputs, targets)
        self.generator = generator(seed)
        self.regularizer = regularizer
        self.problem = self.make()
        self.evaluations = 0

    def __call__(self) -> float:
        self.problem = self.make()
        self.evaluations += 1
        gradient, loss = self.problem.grad(), float(self.problem.loss())
        if self.regularizer is not None:
            gradient = self.regularizer.gradient(self.problem, Step(0, generator(9))).gradient
        for p, piece in zip(self.objective.parameters, self.objective.split(gradient), strict=True):
            p.grad = piece
        return loss

    def next_batch(self) -> None:
        raise AssertionError("K-FAC takes no further batch.")

    def spend(self, evaluations: int) -> None:
        self.evaluations += evaluations

    def flat(self) -> Tensor:
        return flatten([p.detach() for p in self.objective.parameters])

    def gradient(self) -> Tensor:
        return flatten([p.grad for p in self.objective.parameters if p.grad is not None])

    def moved(self, optimizer: KFACOptimizer) -> Tensor:
        """The step taken, over the learning rate."""
        before = self.flat()
        optimizer.step(self)
        return (before - self.flat()) / optimizer.param_groups[0]["lr"]


def mlp(*sizes: int, act: type[nn.Module] = nn.Tanh) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1]).double()


def batch(model: nn.Module, shape: tuple[int, ...], classes: int = 3, rows: int = 9, **options: Any) -> Batch:
    inputs = torch.randn(rows, *shape, generator=generator(1), dtype=torch.float64)
    return Batch(
        Objective(model, F.cross_entropy), inputs, torch.randint(classes, (rows,), generator=generator(2)), **options
    )


def kfac(case: Batch, lr: float = 0.1, **settings: Any) -> KFACOptimizer:
    plain = {"momentum": 0.0, "kl_clip": None, "kind": "exact", "factor_every": 1, "inverse_every": 1}
    return KFACOptimizer(case.objective.parameters, lr, **(plain | settings))


def error(got: Tensor, want: Tensor | np.ndarray) -> float:
    want = torch.as_tensor(want)
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("sizes", [(5, 3), (6, 3, 3), (5, 3, 3, 4)])
def test_is_the_natural_gradient_of_a_linear_network(sizes: tuple[int, ...]) -> None:
    # Derivatives at every layer are those matrices' products, the same for all rows, so independent of the inputs.
    # No layer may be wider than one after it or before it, or its factors have no inverse.
    torch.manual_seed(0)
    model = mlp(*sizes[:2]) if len(sizes) == 2 else mlp(*sizes, act=nn.Identity)
    sizes_in_full_rank = [m for m in model if isinstance(m, nn.Linear)]
    inputs = torch.randn(60, sizes[0], dtype=torch.float64)
    targets = torch.randn(60, sizes[-1], dtype=torch.float64)
    case = Batch(Objective(model, F.mse_loss), inputs, targets)
    split = case.objective.split

    def outputs(w: Tensor) -> Tensor:
        h, pieces = inputs, split(w)
        for weight, bias in zip(pieces[::2], pieces[1::2], strict=True):
            h = h @ weight.T + bias
        return h

    jacobian = torch.func.jacrev(outputs)(case.flat()).flatten(0, 1)
    fisher = jacobian.T @ jacobian * 2 / len(jacobian)  # of N(outputs, C/2), whose negative logarithm is the loss
    residual = (outputs(case.flat()) - targets).flatten()
    gradient = jacobian.T @ residual * 2 / len(jacobian)
    want, begin = torch.zeros_like(gradient), 0
    for layer in sizes_in_full_rank:
        end = begin + layer.weight.numel() + layer.bias.numel()
        want[begin:end] = torch.linalg.solve(fisher[begin:end, begin:end], gradient[begin:end])
        begin = end
    if len(sizes) == 2:
        assert error(torch.linalg.solve(fisher, gradient), want) < 1e-12
    assert error(case.moved(kfac(case, damping=1e-24)), want) < 1e-9


def exact(case: Batch, older: KroneckerFactors | None = None, keep: float = 0.0) -> KroneckerFactors:
    """The factors at the parameters as they are."""
    return KFAC(kind="exact", decay=keep).update(case.make(), generator(), older)


def damped_inverse(pairs: list[tuple[np.ndarray, np.ndarray]], gradient: Tensor, damping: float) -> np.ndarray:
    """(A + pi d I) x (G + d/pi I) by numpy's kron, solved for the gradient: weights first, then the layer's biases."""
    steps, begin = [], 0
    for a, g in pairs:
        out, columns = len(g), len(a)
        pi = np.sqrt((np.trace(a) / columns) / (np.trace(g) / out))
        dense = np.kron(g + np.sqrt(damping) / pi * np.eye(out), a + pi * np.sqrt(damping) * np.eye(columns))
        piece = gradient[begin : begin + out * columns].numpy()
        weight, bias = piece[: out * (columns - 1)].reshape(out, -1), piece[out * (columns - 1) :]
        solved = np.linalg.solve(dense, np.concatenate([weight, bias[:, None]], 1).reshape(-1)).reshape(out, columns)
        steps += [solved[:, :-1].reshape(-1), solved[:, -1]]
        begin += out * columns
    return np.concatenate(steps)


def with_one(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.ones((len(rows), 1))], 1)


@pytest.mark.parametrize("damping", [1e-3, 0.5])
@pytest.mark.parametrize("regularizer", [None, SpectralRadius(mu=0.3, K=0.0, eps=1e-8)])
def test_equals_dense_kronecker_products(damping: float, regularizer: Regularizer | None) -> None:
    torch.manual_seed(0)
    case = batch(mlp(4, 5, 3), (4,), regularizer=regularizer)
    w1, b1, w2, b2 = (p.detach().numpy() for p in case.objective.parameters)
    x = case.problem.inputs.numpy()
    h = np.tanh(x @ w1.T + b1)
    z = np.exp(h @ w2.T + b2)
    p = z / z.sum(1, keepdims=True)
    second, first = np.zeros((3, 3)), np.zeros((5, 5))
    for row, q in enumerate(p):
        hessian = np.diag(q) - np.outer(q, q)
        jacobian = w2 * (1 - h[row] ** 2)
        second += hessian / len(x)
        first += jacobian.T @ hessian @ jacobian / len(x)
    a1, a2 = with_one(x), with_one(h)
    got = case.moved(kfac(case, damping=damping))
    gradient = case.gradient()  # the regularizer's with f's
    pairs = [(a1.T @ a1 / len(x), first), (a2.T @ a2 / len(x), second)]
    assert error(got, damped_inverse(pairs, gradient, damping)) < 1e-9
    if regularizer is not None:
        assert error(gradient, case.problem.grad()) > 0.01


def test_equals_dense_kronecker_products_of_a_convolution() -> None:
    torch.manual_seed(0)
    conv, top = nn.Conv2d(2, 3, 3, stride=2, padding=1).double(), nn.Linear(12, 3).double()
    case = batch(nn.Sequential(conv, nn.Tanh(), nn.Flatten(), top), (2, 4, 4), rows=5)
    x = case.problem.inputs
    padded = F.pad(x, (1, 1, 1, 1))
    patches = np.stack([padded[:, :, i : i + 3, j : j + 3].flatten(1).numpy() for i in (0, 2) for j in (0, 2)])
    below = conv(x).detach()

    def outputs(inner: Tensor) -> Tensor:
        return inner.tanh().flatten() @ top.weight.detach().T + top.bias.detach()

    first, second = torch.zeros(3, 3).double(), torch.zeros(3, 3).double()
    for row in below:
        p = outputs(row).softmax(0)
        hessian = torch.diag(p) - torch.outer(p, p)
        jacobian = torch.func.jacrev(outputs)(row).flatten(2)  # outputs, channels, positions
        first += torch.einsum("cit,cd,djt->ij", jacobian, hessian, jacobian) / len(x)
        second += hessian / len(x)
    rows = with_one(patches.reshape(-1, 18))
    hidden = with_one(below.tanh().flatten(1).numpy())
    pairs = [(rows.T @ rows / len(rows), first.numpy()), (hidden.T @ hidden / len(x), second.numpy())]
    got = case.moved(kfac(case, damping=0.01))
    assert error(got, damped_inverse(pairs, case.gradient(), 0.01)) < 1e-9


def test_weight_decay_is_part_of_the_objective() -> None:
    torch.manual_seed(0)
    case = batch(mlp(4, 3), (4,))
    before, factors = case.flat(), exact(case)
    got = case.moved(kfac(case, damping=0.02, weight_decay=0.03))
    # The same as the gradient with its part, at a damping of both.
    assert error(got, factors.inverse(0.05)(case.gradient() + 0.03 * before)) < 1e-12


def test_clips_the_divergence_over_all_layers() -> None:
    kappa, lr = 1e-3, 0.5

    def step(kl_clip: float | None) -> tuple[Tensor, Batch, KroneckerFactors]:
        torch.manual_seed(0)
        case = batch(mlp(4, 5, 3), (4,))
        factors = exact(case)
        return case.moved(kfac(case, lr=lr, kl_clip=kl_clip)), case, factors

    (free, _, _), (loose, _, _), (short, case, factors) = step(None), step(1e6), step(kappa)
    assert torch.equal(free, loose)
    nu = (kappa / (lr**2 * float(free @ case.gradient()))) ** 0.5
    assert nu < 0.9
    assert error(short, nu * free) < 1e-12
    # What the bound is for: of the damped matrix it is reached, of F itself kept.
    dense = torch.stack([factors.inverse(1e-3)(row) for row in torch.eye(case.objective.n).double()])
    assert lr**2 * float(short @ torch.linalg.solve(dense, short)) == pytest.approx(kappa, rel=1e-10)
    assert 0 < lr**2 * float(short @ factors.product()(short)) <= kappa


def test_momentum_and_the_learning_rate_of_the_group() -> None:
    torch.manual_seed(0)
    case = batch(mlp(4, 5, 3), (4,))
    optimizer = kfac(case, lr=0.1, momentum=0.9)
    factors = exact(case)
    first = case.moved(optimizer)
    assert error(first, factors.inverse(1e-3)(case.gradient())) < 1e-12
    optimizer.param_groups[0]["lr"] = 0.02  # as a schedule does
    newer = exact(case, factors, 0.5)  # the warm-up's at the second update
    second = case.moved(optimizer)
    assert error(second, newer.inverse(1e-3)(case.gradient()) + 0.9 * first) < 1e-9


def test_factors_are_averaged_with_the_papers_warm_up() -> None:
    torch.manual_seed(0)
    case = batch(mlp(4, 5, 3), (4,))
    optimizer = kfac(case, decay=0.6, inverse_every=100)
    weights = [layer.weight for layer in case.objective.model if isinstance(layer, nn.Linear)]
    want: list[tuple[Tensor, Tensor]] = []
    for k in range(1, 6):
        fresh = [block.factors for block in exact(case).blocks]
        optimizer.step(case)
        keep = min(1 - 1 / k, 0.6)
        want = [
            (keep * old[0] + (1 - keep) * new[0], keep * old[1] + (1 - keep) * new[1])
            for old, new in zip(want or fresh, fresh, strict=True)
        ]
        for weight, (a, g) in zip(weights, want, strict=True):
            assert error(optimizer.state[weight]["input_factor"], a) < 1e-12
            assert error(optimizer.state[weight]["output_factor"], g) < 1e-12


@pytest.mark.parametrize(("kind", "cost"), [("sampled", 1), ("empirical", 1), ("exact", 3)])
def test_refreshes_when_it_says_and_counts_what_that_costs(kind: str, cost: int) -> None:
    torch.manual_seed(0)
    case = batch(mlp(4, 5, 3), (4,))
    optimizer = kfac(case, kind=kind, factor_every=2, inverse_every=6)
    state = optimizer.state[case.objective.parameters[0]]
    held: dict[str, Any] = {}
    changes: dict[str, list[int]] = {"output_factor": [], "output_values": []}
    spent = []
    for step in range(14):
        before = case.evaluations
        optimizer.step(case)
        spent.append(case.evaluations - before)
        for name, steps in changes.items():
            if state[name] is not held.get(name):
                steps.append(step)
            held[name] = state[name]
    assert changes == {"output_factor": [0, 2, 4, 6, 8, 10, 12], "output_values": [0, 2, 4, 6, 12]}
    assert spent == [1 + cost, 1] * 7


def test_draws_from_the_closures_generator_alone() -> None:
    def factor(seed: int) -> Tensor:
        torch.manual_seed(0)
        case = batch(mlp(4, 5, 3), (4,), seed=seed)
        optimizer = kfac(case, kind="sampled")
        random = torch.get_rng_state()
        optimizer.step(case)
        assert torch.equal(torch.get_rng_state(), random)
        found: Tensor = optimizer.state[case.objective.parameters[0]]["output_factor"]
        return found

    assert torch.equal(factor(1), factor(1))
    assert not torch.equal(factor(1), factor(2))


def test_parameters_without_factors_follow_sgd_and_are_named() -> None:
    torch.manual_seed(0)
    model = swap_norms(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))).double()
    model[3].weight.requires_grad_(False)
    case = batch(model, (4,))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    optimizer = kfac(case, lr=0.1, momentum=0.9, weight_decay=0.01, kl_clip=1e-9)
    twins = [p.detach().clone().requires_grad_() for p in case.objective.parameters]
    sgd = torch.optim.SGD(twins, lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.step(case)
        for twin, p in zip(twins, case.objective.parameters, strict=True):
            assert p.grad is not None
            twin.grad = p.grad.clone()
        sgd.step()
        same = [torch.allclose(t, p, rtol=1e-13) for t, p in zip(twins, case.objective.parameters, strict=True)]
        assert [name for name, equal in zip(names, same, strict=True) if equal] == list(optimizer.outside)
        for twin, p in zip(twins[:2], case.objective.parameters[:2], strict=True):
            twin.data.copy_(p.detach())
    assert optimizer.outside == ("1.weight", "1.bias", "3.bias")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumes_exactly(dtype: torch.dtype) -> None:
    def start() -> tuple[nn.Module, KFACOptimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).to(dtype)
        return model, KFACOptimizer(model.parameters(), 0.05, factor_every=2, inverse_every=4)

    def go_on(model: nn.Module, optimizer: KFACOptimizer, steps: range) -> list[Tensor]:
        for step in steps:
            inputs = torch.randn(6, 1, 4, 4, generator=generator(step), dtype=dtype)
            targets = torch.randint(3, (6,), generator=generator(step))
            optimizer.step(Batch(Objective(model, F.cross_entropy), inputs, targets, seed=step))
        return [p.detach() for p in model.parameters()]

    whole = start()
    go_on(*whole, range(3))  # the next step uses a decomposition older than the factors
    file = io.BytesIO()
    torch.save({"model": whole[0].state_dict(), "optimizer": whole[1].state_dict()}, file)
    want = go_on(*whole, range(3, 13))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = start()
    resumed[0].load_state_dict(saved["model"])
    resumed[1].load_state_dict(saved["optimizer"])
    got = go_on(*resumed, range(3, 13))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    # Had the state been lost, the numbers would be others.
    lost = start()
    lost[0].load_state_dict(saved["model"])
    assert not all(torch.equal(a, b) for a, b in zip(go_on(*lost, range(3, 13)), want, strict=True))


def test_beats_the_best_sgd_in_steps() -> None:
    data = load_digits()
    inputs, targets = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)

    def loss_after(steps: int, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> float:
        torch.manual_seed(0)
        model = mlp(64, 20, 20, 20, 10, act=nn.ReLU).float()
        objective = Objective(model, F.cross_entropy)
        optimizer = make(list(model.parameters()))
        for step in range(steps):
            rows = torch.randint(len(inputs), (128,), generator=generator(step))
            optimizer.step(Batch(objective, inputs[rows], targets[rows], seed=step))
        return float(objective(inputs, targets).detach())

    rates = (0.01, 0.03, 0.1, 0.3, 1.0)
    sgd = [loss_after(100, lambda p, lr=lr: torch.optim.SGD(p, lr=lr, momentum=0.9)) for lr in rates]
    assert min(sgd) < min(sgd[0], sgd[-1])  # the best rate is inside the range
    ours = [loss_after(100, lambda p, lr=lr: KFACOptimizer(p, lr)) for lr in (1e-3, 3e-3, 1e-2)]
    assert max(ours) < 0.5 * min(sgd)  # at any of our rates


def test_a_shared_batch_gives_the_same_step(tmp_path: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        processes = Processes()

        def share(objective: Objective, inputs: Tensor, targets: Tensor) -> BatchProblem:
            backend = choose_backend("autograd", objective, inputs)
            return ParallelProblem.split(processes, backend, objective, inputs, targets)

        steps = []
        for make in (AutogradProblem, share):
            torch.manual_seed(0)
            case = batch(mlp(4, 5, 3), (4,), make=make)
            steps.append(case.moved(kfac(case, kind="sampled")))
        assert error(*steps) < 1e-12
        dropping = batch(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double(), (4,), make=share)
        with pytest.raises(ValueError, match="ParallelProblem is no batch of a network with its inputs and targets"):
            kfac(dropping).step(dropping)
    finally:
        dist.destroy_process_group()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def test_refuses_what_it_can_not_do() -> None:
    def refused(model: nn.Module, shape: tuple[int, ...], match: str) -> None:
        case = batch(model.double(), shape)
        before = case.flat()
        with pytest.raises(ValueError, match=match):
            kfac(case).step(case)
        assert torch.equal(case.flat(), before)

    advice = ".*Freeze what it names .* or take optimizer=adam"
    grouped = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))
    refused(grouped, (2, 4, 4), "KFACOptimizer: KFAC: layer '0' is a convolution in 2 groups" + advice)
    refused(Twice(), (3,), "KFACOptimizer: KFAC: layer 'layer' is used twice in a forward pass" + advice)
    refused(nn.BatchNorm1d(3, track_running_stats=False), (3,), "has no trainable Linear or Conv2d layer" + advice)
    case = batch(mlp(4, 3), (4,))
    with pytest.raises(TypeError, match="KFACOptimizer: step needs a closure like the runner's"):
        kfac(case).step(lambda: 0.0)
    with pytest.raises(TypeError, match="KFACOptimizer: step needs a closure like the runner's"):
        kfac(case).step()
    part = KFACOptimizer([case.objective.parameters[0]], 0.1)
    with pytest.raises(ValueError, match="needs exactly the network's trainable parameters"):
        part.step(case)
    groups = [{"params": [p]} for p in case.objective.parameters]
    with pytest.raises(ValueError, match="weight and bias of layer '0' share factors, so they must share a group"):
        KFACOptimizer(groups, 0.1).step(case)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lr": -1.0}, "KFACOptimizer: lr must be >= 0, got -1.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
        ({"damping": 0.0}, "damping must be positive, got 0.0"),
        ({"kl_clip": 0.0}, "kl_clip must be positive or null, got 0.0"),
        ({"kind": "true"}, "kind must be exact, sampled or empirical, got 'true'"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"factor_every": 0}, "factor_every must be at least 1 step, got 0"),
        ({"factor_every": 3, "inverse_every": 4}, "inverse_every must be a multiple of factor_every=3, got 4"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        KFACOptimizer([nn.Parameter(torch.zeros(2))], **({"lr": 0.1} | settings))
