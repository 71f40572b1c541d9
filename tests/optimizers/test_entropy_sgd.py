"""Entropy-SGD on quadratics, where the local entropy has a closed form: f = x'Ax/2 - b'x.

exp(-f - gamma/2 |x' - x|^2) is a Gaussian of precision A + gamma I and mean (A + gamma I)^-1 (b + gamma x).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spectral_run.curvature.problem import BatchProblem
from spectral_run.optimizers.entropy_sgd import EntropySGD

A = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 0.2]], dtype=torch.float64)
b = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
COPIES = 4000


class Quadratic:
    """A closure that writes down what is done to it. Rows of x are separate points; batch k has the linear term b_k."""

    def __init__(self, x: Tensor, linear: Callable[[int], Tensor] = lambda _: b, seed: int = 0) -> None:
        self.x = nn.Parameter(x.clone())
        self.linear = linear
        self.generator = torch.Generator().manual_seed(seed)
        self.problem = cast(BatchProblem, None)
        self.batch = 0
        self.batches_of_calls: list[int] = []
        self.points: list[Tensor] = []

    def __call__(self) -> float:
        self.batches_of_calls.append(self.batch)
        self.points.append(self.x.detach().clone())
        value = (0.5 * (self.x @ A * self.x).sum(-1) - self.x @ self.linear(self.batch)).sum()
        (self.x.grad,) = torch.autograd.grad(value, [self.x])
        return float(value.detach())

    def next_batch(self) -> None:
        self.batch += 1

    def spend(self, evaluations: int) -> None:
        raise AssertionError("every gradient is one call")


def mean_of_the_local_gibbs_measure(x: Tensor, gamma: float, weight_decay: float = 0.0) -> Tensor:
    precision = A.numpy() + (gamma + weight_decay) * np.eye(3)
    return torch.from_numpy(np.linalg.solve(precision, (b + gamma * x).numpy().T).T)


def start() -> Tensor:
    return torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("weight_decay", [0.0, 0.4])
@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_without_noise_and_with_a_long_chain_the_direction_is_the_gradient_of_the_local_entropy(
    gamma: float, weight_decay: float
) -> None:
    closure = Quadratic(start())
    settings = {"lr": 0.7, "momentum": 0.0, "nesterov": False, "weight_decay": weight_decay, "noise": 0.0}
    settings |= {"divide_by_gamma": False, "gamma_max": 2.0}
    optimizer = EntropySGD([closure.x], **settings, gamma0=gamma, inner_steps=400, inner_lr=0.4)
    optimizer.step(closure)
    gradient = (start() - closure.x.detach()) / 0.7
    expected = gamma * (start() - mean_of_the_local_gibbs_measure(start(), gamma, weight_decay))
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_the_closed_form_is_the_gradient_of_the_log_integral() -> None:
    """In one dimension, f = a x^2/2 - c x, by quadrature: what the other tests compare with is no algebra slip."""
    gamma, x, a, c = 0.8, 1.3, 0.5, -0.4
    grid = np.linspace(-40, 40, 400_001)

    def local_entropy(at: float) -> float:
        density = np.exp(-(a * grid**2 / 2 - c * grid) - gamma / 2 * (at - grid) ** 2)
        return math.log(float(density.sum() * (grid[1] - grid[0])))

    derivative = -(local_entropy(x + 1e-4) - local_entropy(x - 1e-4)) / 2e-4
    assert derivative == pytest.approx(gamma * (x - (c + gamma * x) / (a + gamma)), rel=1e-6)


def test_the_chain_samples_the_local_gibbs_measure() -> None:
    """Mean within 4 standard errors; covariance that of the discrete chain, near the Gibbs measure's at noise^2 = 2."""
    gamma, rate = 0.5, 0.05
    closure = Quadratic(start().repeat(COPIES, 1))
    settings = {"lr": 1.0, "momentum": 0.0, "nesterov": False, "noise": math.sqrt(2.0), "average": 1.0}
    optimizer = EntropySGD([closure.x], **settings, gamma0=gamma, inner_steps=300, inner_lr=rate)
    optimizer.step(closure)  # to mu, which with average = 1 is the chain's end: an independent sample per row
    samples = closure.x.detach()
    errors = (samples.mean(0) - mean_of_the_local_gibbs_measure(start(), gamma)[0]) / (samples.std(0) / COPIES**0.5)
    assert float(errors.abs().max()) < 4
    # S = M S M + 2 rate I with M = I - rate P, all of them diagonal together: S = (P - rate P^2 / 2)^-1.
    precision = A.numpy() + gamma * np.eye(3)
    expected = np.linalg.inv(precision - rate * precision @ precision / 2)
    measured = torch.cov(samples.T).numpy()
    spread = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / COPIES)
    assert float(np.abs((measured - expected) / spread).max()) < 4
    assert np.abs(expected - np.linalg.inv(precision)).max() < 0.03


def test_the_smoothed_gradient_is_right_on_average() -> None:
    """gamma (x - mu) with the exponential average: unbiased once the chain is stationary."""
    gamma = 0.5
    closure = Quadratic(start().repeat(COPIES, 1), seed=5)
    settings = {"lr": 1.0, "momentum": 0.0, "nesterov": False, "noise": math.sqrt(2.0), "divide_by_gamma": False}
    EntropySGD([closure.x], **settings, gamma0=gamma, inner_steps=300, inner_lr=0.05).step(closure)
    gradients = start() - closure.x.detach()
    expected = gamma * (start() - mean_of_the_local_gibbs_measure(start(), gamma))
    errors = (gradients.mean(0) - expected[0]) / (gradients.std(0) / COPIES**0.5)
    assert float(errors.abs().max()) < 4


def test_mu_is_the_exponential_average_of_the_iterates() -> None:
    """(1-a)^L x + a sum over l of (1-a)^(L-l) x'_l, from the points that the closure saw."""
    closure = Quadratic(start())
    L, a = 7, 0.75
    optimizer = EntropySGD([closure.x], lr=1.0, momentum=0.0, nesterov=False, inner_steps=L, average=a, noise=0.1)
    optimizer.step(closure)
    closure_of_last = Quadratic(closure.points[-1], seed=0)  # the iterate after the last call, made again
    for _ in range(L):
        noise = torch.randn(1, 3, generator=closure_of_last.generator, dtype=torch.float64)
    closure_of_last()
    gradient = closure_of_last.x.grad
    assert gradient is not None
    x = closure.points[-1]
    iterates = [*closure.points[1:], x - 0.1 * (gradient + 0.03 * (x - start())) + math.sqrt(0.1) * 0.1 * noise]
    mu = (1 - a) ** L * start() + sum(a * (1 - a) ** (L - l) * x for l, x in enumerate(iterates, 1))  # noqa: E741
    torch.testing.assert_close(closure.x.detach(), mu, rtol=1e-12, atol=1e-14)


def test_gamma_grows_every_step_and_the_steps_use_it() -> None:
    closure = Quadratic(start())
    settings = {"lr": 1.0, "momentum": 0.0, "nesterov": False, "noise": 0.0, "inner_lr": 0.3, "inner_steps": 300}
    optimizer = EntropySGD([closure.x], **settings, gamma0=0.2, gamma1=0.5)
    for t in range(4):
        gamma = 0.2 * 1.5**t
        assert optimizer.gamma == pytest.approx(gamma, rel=1e-12)
        expected = mean_of_the_local_gibbs_measure(closure.x.detach(), gamma)
        optimizer.step(closure)
        torch.testing.assert_close(closure.x.detach(), expected, rtol=1e-9, atol=1e-12)


def test_gamma_stops_at_its_most_however_many_steps() -> None:
    closure = Quadratic(start())
    optimizer = EntropySGD([closure.x], gamma0=0.2, gamma1=0.5, gamma_max=0.4)
    optimizer.param_groups[0]["steps"] = 10**9
    assert optimizer.gamma == 0.4


def test_every_inner_step_has_a_batch_of_its_own_the_first_the_steps() -> None:
    closure = Quadratic(start(), linear=lambda batch: b * (batch + 1))
    optimizer = EntropySGD([closure.x], inner_steps=5)
    assert optimizer.step(closure) == pytest.approx(float(0.5 * (start() @ A * start()).sum() - (start() @ b).sum()))
    assert closure.batches_of_calls == [0, 1, 2, 3, 4]
    torch.testing.assert_close(closure.points[0], start(), rtol=0, atol=0)
    assert len({tuple(point.flatten().tolist()) for point in closure.points}) == 5


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_outer_step_is_sgd_with_x_minus_mu_as_its_gradient(nesterov: bool) -> None:
    closure, plain = Quadratic(start()), nn.Parameter(start())
    optimizer = EntropySGD([closure.x], lr=0.3, momentum=0.9, nesterov=nesterov, gamma0=0.4, inner_steps=6, noise=0.0)
    sgd = torch.optim.SGD([plain], lr=0.3, momentum=0.9, nesterov=nesterov)
    for _ in range(4):
        alone = Quadratic(closure.x.detach())
        whole = {"lr": 1.0, "momentum": 0.0, "nesterov": False, "noise": 0.0}
        EntropySGD([alone.x], **whole, gamma0=optimizer.gamma, inner_steps=6).step(alone)
        plain.grad = closure.x.detach() - alone.x.detach()
        sgd.step()
        optimizer.step(closure)
        torch.testing.assert_close(closure.x.detach(), plain.detach(), rtol=1e-12, atol=1e-14)


def test_dividing_by_gamma_is_a_learning_rate_divided_by_gamma() -> None:
    divided, letter = Quadratic(start()), Quadratic(start())
    settings: dict[str, Any] = {"momentum": 0.9, "gamma0": 0.25, "gamma1": 0.0, "inner_steps": 4}
    one = EntropySGD([divided.x], lr=0.5, **settings)
    other = EntropySGD([letter.x], lr=2.0, divide_by_gamma=False, **settings)
    for _ in range(3):
        one.step(divided)
        other.step(letter)
    torch.testing.assert_close(divided.x, letter.x, rtol=1e-12, atol=1e-14)


def test_the_seed_decides_the_noise() -> None:
    ends = []
    for seed in (0, 0, 1):
        closure = Quadratic(start(), seed=seed)
        EntropySGD([closure.x], noise=0.5).step(closure)
        ends.append(closure.x.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_parameters_get_noise_of_their_own() -> None:
    closure = Quadratic(torch.zeros(2, 3, dtype=torch.float64))
    EntropySGD([closure.x], noise=0.5, inner_steps=1).step(closure)
    assert not torch.equal(closure.x[0], closure.x[1])


def test_resuming_is_exact() -> None:
    settings: dict[str, Any] = {"lr": 0.2, "gamma1": 0.3, "noise": 0.1, "inner_steps": 3}
    whole, broken = Quadratic(start()), Quadratic(start())
    first, second = EntropySGD([whole.x], **settings), EntropySGD([broken.x], **settings)
    for _ in range(3):
        first.step(whole)
        second.step(broken)
    resumed = Quadratic(broken.x.detach())
    resumed.generator.set_state(broken.generator.get_state())
    third = EntropySGD([resumed.x], **settings)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    assert third.gamma == first.gamma > 0.03
    for _ in range(3):
        first.step(whole)
        third.step(resumed)
    assert torch.equal(whole.x, resumed.x)


def test_a_closure_that_raises_leaves_the_parameters_at_x() -> None:
    class Stops(Quadratic):
        def __call__(self) -> float:
            if self.batch == 2:
                raise ArithmeticError("stop")
            return super().__call__()

    closure = Stops(start())
    optimizer = EntropySGD([closure.x])
    with pytest.raises(ArithmeticError, match="stop"):
        optimizer.step(closure)
    assert torch.equal(closure.x.detach(), start())
    assert optimizer.gamma == 0.03


def test_a_parameter_without_a_gradient_stays() -> None:
    closure, unused = Quadratic(start()), nn.Parameter(torch.ones(2))
    EntropySGD([closure.x, unused], noise=0.5).step(closure)
    assert torch.equal(unused.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"EntropySGD: lr must be >= 0 and finite, got -1\.0"),
        ({"gamma1": math.nan}, r"EntropySGD: gamma1 must be >= 0 and finite, got nan"),
        ({"momentum": 1.0}, r"EntropySGD: momentum must be in \[0, 1\), got 1\.0"),
        ({"momentum": 0.0}, r"EntropySGD: nesterov needs momentum > 0, got 0"),
        ({"inner_steps": 0}, r"EntropySGD: inner_steps must be >= 1, got 0"),
        ({"inner_lr": 0.0}, r"EntropySGD: inner_lr must be > 0 and finite, got 0\.0"),
        ({"average": 0.0}, r"EntropySGD: average must be in \(0, 1\], got 0\.0"),
        ({"gamma_max": 20.0}, r"EntropySGD: inner_lr \* gamma_max must be < 2, got 0\.1 \* 20\.0: unstable"),
        ({"gamma_max": 0.01}, r"EntropySGD: gamma_max must be >= gamma0 = 0\.03, got 0\.01"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropySGD([nn.Parameter(torch.zeros(1))], **settings)


def test_refuses_a_plain_function() -> None:
    optimizer = EntropySGD([nn.Parameter(torch.zeros(1))])
    with pytest.raises(TypeError, match=r"EntropySGD: step needs a closure like the runner's"):
        optimizer.step(lambda: 0.0)  # type: ignore[arg-type]
