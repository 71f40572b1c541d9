"""Averages are the means they say, change no trajectory, and have the moments of theory on a noisy quadratic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.optimizers.averaging import ExponentialAverage, IterateAverage, fresh_statistics
from spectral_run.optimizers.base import MakeOptimizer
from spectral_run.optimizers.padam import Padam


class Task:
    """A small network's loss on a fresh batch per step."""

    def __init__(self, make: MakeOptimizer, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(6, 5), (5,), (5, 3)]
        self.params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype) / 2) for shape in shapes]
        self.optimizer = make(self.params)
        self.generator, self.dtype = generator, dtype

    def step(self) -> None:
        x = torch.randn(16, 6, generator=self.generator, dtype=self.dtype)
        w1, b, w2 = self.params

        def closure() -> float:
            loss = (torch.tanh(x @ w1 + b) @ w2 - x[:, :3]).square().mean()
            for p, g in zip(self.params, torch.autograd.grad(loss, self.params), strict=True):
                p.grad = g
            return float(loss.detach())

        self.optimizer.step(closure)

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params]


def adamw(params: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)  # type: ignore[arg-type]


def largest(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x.double() - y.double()).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-7), (torch.float64, 1e-12)])
@pytest.mark.parametrize("every", [None, 3])
def test_the_average_is_the_arithmetic_mean(dtype: torch.dtype, bound: float, every: int | None) -> None:
    """Of epochs 4 to 43, two past the beginning and some before the end; five steps each."""
    task = Task(lambda params: IterateAverage(params, adamw, start=4, end=43, every=every, epochs=50), dtype)
    optimizer = task.optimizer
    assert isinstance(optimizer, IterateAverage)
    iterates = []
    within = 0
    for epoch in range(1, 51):
        for _ in range(5):
            task.step()
            within += 4 <= epoch <= 43
            if every and 4 <= epoch <= 43 and within % every == 0:
                iterates.append(task.weights)
        optimizer.end_epoch(epoch)
        if every is None and 4 <= epoch <= 43:
            iterates.append(task.weights)
        if epoch == 3:
            assert optimizer.averaged() is None
    average = optimizer.averaged()
    assert average is not None
    assert len(iterates) == (40 if every is None else 66)
    means = [torch.stack([w[i].double() for w in iterates]).mean(0) for i in range(3)]
    assert all(a.dtype == dtype for a in average)
    assert largest(list(average), means) < bound
    assert largest(list(average), task.weights) > 1e-3
    # Jensen: the mean is no longer than the mean of lengths (thesis, theorem 20).
    squares = [sum(float(p.double().square().sum()) for p in w) for w in iterates]
    assert sum(float(a.double().square().sum()) for a in average) <= sum(squares) / len(squares)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_exponential_average_is_the_weighted_mean(decay: float) -> None:
    task = Task(lambda params: ExponentialAverage(params, adamw, decay=decay))
    optimizer = task.optimizer
    assert isinstance(optimizer, ExponentialAverage)
    assert optimizer.averaged() is None
    iterates = []
    for _ in range(30):
        task.step()
        iterates.append(task.weights)
        weights = [decay ** (len(iterates) - 1 - i) for i in range(len(iterates))]
        means = [sum(c * w[i] for c, w in zip(weights, iterates, strict=True)) / sum(weights) for i in range(3)]
        average = optimizer.averaged()
        assert average is not None
        assert largest(list(average), means) < 1e-13


@pytest.mark.parametrize("base", [adamw, lambda p: Padam(p, lr=0.05, weight_decay=0.01)], ids=["gadam", "gadamx"])
def test_the_trajectory_is_the_base_optimizers(base: MakeOptimizer) -> None:
    """Gadam is torch's AdamW before averaging starts, and after it too: to the bit, which is within 1e-12."""
    averaging = Task(lambda params: IterateAverage(params, base, start=2, epochs=5))
    exponential = Task(lambda params: ExponentialAverage(params, base, decay=0.9))
    plain = Task(base)
    for epoch in range(1, 6):
        for _ in range(40):
            for task in (averaging, exponential, plain):
                task.step()
            assert largest(averaging.weights, plain.weights) == largest(exponential.weights, plain.weights) == 0.0
        averaging.optimizer.end_epoch(epoch)  # type: ignore[attr-defined]


@pytest.mark.parametrize("amsgrad", [False, True])
def test_padam_at_one_half_is_adamw(amsgrad: bool) -> None:
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "amsgrad": amsgrad}
    ours, torchs = Task(lambda p: Padam(p, partial=0.5, **settings)), Task(lambda p: torch.optim.AdamW(p, **settings))
    for _ in range(200):
        ours.step()
        torchs.step()
        assert largest(ours.weights, torchs.weights) < 1e-12


def test_padam_at_zero_is_bias_corrected_momentum_sgd() -> None:
    ours = Task(lambda p: Padam(p, partial=0.0, lr=0.05, betas=(0.9, 0.99), eps=0.1, weight_decay=0.1))
    plain = Task(lambda p: torch.optim.SGD(p, lr=0.0))
    mean = [torch.zeros_like(p) for p in plain.params]
    for t in range(1, 201):
        ours.step()
        plain.step()  # leaves the gradients
        for p, m in zip(plain.params, mean, strict=True):
            assert p.grad is not None
            m.mul_(0.9).add_(0.1 * p.grad)
            p.data = p.data * (1 - 0.05 * 0.1) - 0.05 * m / (1 - 0.9**t)
        assert largest(ours.weights, plain.weights) < 1e-12


def test_padam_between_is_the_formula() -> None:
    """One parameter, two gradients by hand; amsgrad keeps the larger second moment."""
    w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = Padam([w], lr=0.1, betas=(0.9, 0.5), eps=1e-2, weight_decay=0.3, partial=0.125, amsgrad=True)
    want = 2.0
    m = v = u = 0.0
    for t, g in enumerate((3.0, 0.01), start=1):
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.5 * v + 0.5 * g * g
        u = max(u, v)
        want = want * (1 - 0.03) - 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(u / (1 - 0.5**t)) + 1e-2) ** 0.25
    assert float(w.detach()) == pytest.approx(want, rel=1e-14)


def noisy_quadratic(make: MakeOptimizer, steps: int, runs: int, start: float) -> tuple[Tensor, Tensor]:
    """Last iterates and averages of many runs on w^2/2 with unit gradient noise, side by side in one vector."""
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.full((runs,), start, dtype=torch.float64))
    optimizer = make([w])
    for _ in range(steps):
        w.grad = w.detach() + torch.randn(runs, generator=generator, dtype=torch.float64)
        optimizer.step()  # type: ignore[call-arg]
    (average,) = optimizer.averaged()  # type: ignore[attr-defined]
    return w.detach(), average


def check_moments(sample: Tensor, mean: float, variance: float) -> None:
    runs = len(sample)
    assert abs(float(sample.mean()) - mean) < 4 * math.sqrt(variance / runs)
    assert abs(float(sample.var()) - variance) < 4 * variance * math.sqrt(2 / (runs - 1))


def sgd(params: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [20, 1000])
def test_moments_on_a_noisy_quadratic(n: int) -> None:
    """Thesis, theorem 18, with its factors put right; a = 1 - rate, l = sigma = 1."""
    rate, a, start, runs = 0.05, 0.95, 3.0, 4000
    make = lambda params: IterateAverage(params, sgd, start=1, epochs=1, every=1)  # noqa: E731
    last, average = noisy_quadratic(make, n, runs, start)
    check_moments(last, a**n * start, rate * (1 - a ** (2 * n)) / (2 - rate))
    exact = sum(((1 - a**m) / n) ** 2 for m in range(1, n + 1))
    check_moments(average, a * start * (1 - a**n) / (n * rate), exact)
    if n == 1000:
        assert exact == pytest.approx(1 / n, rel=0.05)  # the limit sigma^2 / (l^2 n)


def test_stationary_variance_of_the_exponential_average() -> None:
    rate, a, d = 0.05, 0.95, 0.9
    make = lambda params: ExponentialAverage(params, sgd, decay=d)  # noqa: E731
    _, average = noisy_quadratic(make, 400, 4000, 0.0)
    check_moments(average, 0.0, rate / (2 - rate) * (1 - d) / (1 + d) * (1 + d * a) / (1 - d * a))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Tanh(), nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5)]
        return nn.Sequential(*layers, nn.Linear(48, 4), nn.BatchNorm1d(4))


@pytest.fixture
def images() -> Tensor:
    return 3 * torch.randn(53, 2, 6, 6, generator=torch.Generator().manual_seed(1)) + 5


def test_fresh_statistics_are_those_of_the_layers_inputs(images: Tensor) -> None:
    """Of the first layer in uneven batches; of all layers in one batch, against torch's own layers."""
    model = swap_norms(network())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for size in (8, 13, 53, 1000):  # 13 leaves a single row over
        model[0].running_mean.fill_(99.0)  # type: ignore[index, union-attr]
        fresh_statistics(model, images, size, torch.Generator().manual_seed(size))
        torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)  # type: ignore[index]
        torch.testing.assert_close(model[0].running_var, images.var((0, 2, 3)), rtol=1e-5, atol=1e-5)  # type: ignore[index]
    torchs = network().train()
    torchs[5] = nn.Identity()  # type: ignore[operator]
    model[5] = nn.Identity()  # type: ignore[operator]
    for layer in torchs.modules():
        if hasattr(layer, "momentum"):
            layer.momentum = 1.0  # type: ignore[assignment]
    torchs(images)
    fresh_statistics(model, images, 53, torch.Generator().manual_seed(0))
    for index in (3, 7):
        for name in ("running_mean", "running_var"):
            ours, theirs = getattr(model[index], name), getattr(torchs[index], name)  # type: ignore[index]
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{i}.running_{what}" for i in (0, 3, 7) for what in ("mean", "var")}


def test_fresh_statistics_leave_modes_and_random_numbers(images: Tensor) -> None:
    model = swap_norms(network())
    model.train()
    model[3].eval()  # type: ignore[index]
    torch.manual_seed(4)
    random = torch.get_rng_state()
    states = []
    for seed in (0, 0, 1):
        fresh_statistics(model, images, 8, torch.Generator().manual_seed(seed))
        states.append(model[7].running_mean.clone())  # type: ignore[index, operator]
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])  # other rows meet, and other masks
    assert [module.training for module in model] == [True, True, True, False, True, True, True, True]  # type: ignore[union-attr]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_fresh_statistics_of_instance_norm_are_the_rows_own(images: Tensor) -> None:
    model = swap_norms(nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)))
    fresh_statistics(model, images, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(model[0].running_mean, images.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)  # type: ignore[index]
    torch.testing.assert_close(model[0].running_var, images.var((2, 3)).mean(0), rtol=1e-5, atol=1e-5)  # type: ignore[index]


@pytest.mark.parametrize(
    ("start", "epochs", "first"), [(0.8, 100, 81), (0.8, 30, 25), (0.0, 5, 1), (0.9, 3, 3), (161, 250, 161), (1, 1, 1)]
)
def test_where_averaging_starts(start: float, epochs: int, first: int) -> None:
    optimizer = IterateAverage([nn.Parameter(torch.zeros(1))], sgd, start=start, epochs=epochs)
    assert (optimizer.start, optimizer.end) == (first, epochs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 1.5}, r"start must be an epoch's number, or a share in \[0, 1\), got 1.5"),
        ({"start": -1}, "start must be an epoch's number"),
        ({"start": 161}, r"epochs 161 to 100 must be among those of training \(training.epochs\), got 100"),
        ({"start": 0.5, "end": 40}, "epochs 51 to 40 must be"),
        ({"start": 0.5, "end": 101}, "epochs 51 to 101 must be"),
        ({"start": 0.5, "every": 0}, "every must be at least 1 or null, got 0"),
    ],
)
def test_refusals(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"IterateAverage: {message}"):
        IterateAverage([nn.Parameter(torch.zeros(1))], sgd, epochs=100, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_the_exponential_average_refuses(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ExponentialAverage: decay must be in \[0, 1\), got"):
        ExponentialAverage([nn.Parameter(torch.zeros(1))], sgd, decay=decay)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0"),
        ({"betas": (0.9,)}, r"betas must be two numbers in \[0, 1\)"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"eps": -1.0}, "eps must be >= 0"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"partial": 0.6}, r"partial must be in \[0, 1/2\], got 0.6"),
    ],
)
def test_padam_refuses(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"Padam: {message}"):
        Padam([nn.Parameter(torch.zeros(1))], **settings)  # type: ignore[arg-type]
