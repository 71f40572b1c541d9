"""SAM and its variants: against formulas with the dense Hessian, and what the two gradients of a step may touch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectral_run.optimizers.entropy_sgd import EntropySGD
from spectral_run.optimizers.sam import KINDS, SAM

sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
plain_sgd = partial(torch.optim.SGD, lr=1.0)


class Net:
    """A smooth network on fixed data, whole or in micro-batches; ``before`` is called first thing in the closure."""

    def __init__(self, *, micro_batches: int = 1, norm: bool = False, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(24, 4, generator=generator, dtype=dtype)
        self.targets = torch.randint(3, (24,), generator=generator)
        middle: list[nn.Module] = [nn.BatchNorm1d(5, dtype=dtype)] if norm else []
        self.model = nn.Sequential(nn.Linear(4, 5, dtype=dtype), *middle, nn.Tanh(), nn.Linear(5, 3, dtype=dtype))
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=dtype) / 2)
        self.micro_batches, self.calls = micro_batches, 0
        self.before: Callable[[], None] = lambda: None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def loss(self, flat: Tensor) -> Tensor:
        """f at a flat vector: plain functions, nothing of ours."""
        at, rest = {}, flat
        for name, p in self.model.named_parameters():
            at[name], rest = rest[: p.numel()].view(p.shape), rest[p.numel() :]
        return F.cross_entropy(torch.func.functional_call(self.model, at, (self.inputs,)), self.targets)

    def gradient_and_hessian(self) -> tuple[Tensor, Tensor]:
        w = self.flat()
        hessian = torch.autograd.functional.hessian(self.loss, w)
        assert isinstance(hessian, Tensor)
        (gradient,) = torch.autograd.functional.jacobian(self.loss, (w,))
        return gradient, hessian

    def __call__(self) -> float:
        self.before()
        self.calls += 1
        total = 0.0
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
        for rows in self._rows():
            loss = F.cross_entropy(self.model(self.inputs[rows]), self.targets[rows]) * len(rows) / len(self.inputs)
            loss.backward()
            total += float(loss.detach())
        return total

    def _rows(self) -> Iterator[Tensor]:
        yield from torch.arange(len(self.inputs)).chunk(self.micro_batches)


def direction(net: Net, **settings: Any) -> Tensor:
    """The gradient that the base optimizer steps with: what SGD at learning rate 1 subtracts."""
    before = net.flat()
    SAM(net.parameters, base=plain_sgd, **settings).step(net)
    return before - net.flat()


def penalty_gradient(net: Net, kind: str, rho: float, eta: float = 0.01) -> Tensor:
    """To first order in rho: g + H e."""
    g, H = net.gradient_and_hessian()
    if kind == "sam":
        return g + rho * H @ g / g.norm()
    if kind == "unnormalized":
        return g + rho * H @ g
    T = net.flat().abs() + eta
    return g + rho * H @ (T**2 * g) / (T * g).norm()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_gradient_penaltys_to_second_order(kind: str) -> None:
    errors = []
    for rho in (0.04, 0.02, 0.01):
        net = Net()
        expected = penalty_gradient(net, kind, rho)
        errors.append(float((direction(net, kind=kind, rho=rho) - expected).norm()))
    assert errors[0] > 1e-6
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_penalty_gradients_are_gradients_of_penalties() -> None:
    """g + rho H g/|g| is the gradient of f + rho |g|, g + rho H g that of f + rho/2 |g|^2."""
    net = Net()
    w = net.flat().requires_grad_()
    (g,) = torch.autograd.grad(net.loss(w), [w], create_graph=True)
    for kind, penalty in {"sam": g.norm(), "unnormalized": g @ g / 2}.items():
        (gradient,) = torch.autograd.grad(net.loss(w) + 0.1 * penalty, [w], retain_graph=True)
        torch.testing.assert_close(gradient, penalty_gradient(net, kind, 0.1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_taken_at_the_formulas_point(kind: str) -> None:
    net, rho, eta = Net(), 0.3, 0.05
    w, (g, _) = net.flat(), net.gradient_and_hessian()
    T = w.abs() + eta
    e = {"sam": rho * g / g.norm(), "unnormalized": rho * g, "asam": rho * T**2 * g / (T * g).norm()}[kind]
    (expected,) = torch.autograd.functional.jacobian(net.loss, (w + e,))
    torch.testing.assert_close(direction(net, kind=kind, rho=rho, eta=eta), expected, rtol=1e-9, atol=1e-12)


def test_asam_does_not_see_a_rescaling_that_leaves_the_network_alone() -> None:
    """Without eta: for f(w1 w2), (w1, w2) -> (c w1, w2 / c) moves e the same way. SAM's e is not so."""
    ends: dict[str, list[float]] = {"asam": [], "sam": []}
    for kind, products in ends.items():
        for c in (1.0, 8.0):
            w = [nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.5 * c, 0.5 / c)]
            seen: list[float] = []

            def closure(w: list[nn.Parameter] = w, seen: list[float] = seen) -> float:
                product = w[0] * w[1]
                seen.append(float(product.detach()))
                for p, g in zip(w, torch.autograd.grad((product - 2) ** 2, w), strict=True):
                    p.grad = g
                return 0.0

            SAM(w, base=plain_sgd, kind=kind, rho=0.2, eta=0.0).step(closure)
            products.append(seen[1])
    assert ends["asam"][0] == pytest.approx(ends["asam"][1], rel=1e-12)
    assert ends["sam"][0] != pytest.approx(ends["sam"][1], rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", [sgd, partial(torch.optim.AdamW, lr=0.01)])
def test_radius_0_is_the_base_optimizer_to_the_bit(kind: str, base: Any) -> None:
    ours, plain = Net(), Net()
    sam, alone = SAM(ours.parameters, base=base, kind=kind, rho=0.0), base(plain.parameters)
    for _ in range(4):
        sam.step(ours)
        alone.step(plain)
    assert torch.equal(ours.flat(), plain.flat())
    assert (ours.calls, plain.calls) == (8, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_steps_from_w_to_the_bit(kind: str) -> None:
    net = Net(dtype=torch.float32)
    before = net.flat()
    seen: list[Tensor] = []
    net.before = lambda: seen.append(net.flat())
    optimizer = SAM(net.parameters, base=partial(torch.optim.SGD, lr=0.0), kind=kind, rho=0.7)
    loss = optimizer.step(net)
    assert torch.equal(net.flat(), before)
    assert torch.equal(seen[0], before)
    assert not torch.equal(seen[1], before)
    assert loss == Net(dtype=torch.float32)()


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_give_the_whole_batchs_step(kind: str) -> None:
    whole, split = Net(), Net(micro_batches=5)  # parts of 5 and a last of 4
    for net in (whole, split):
        optimizer = SAM(net.parameters, base=sgd, kind=kind, rho=0.3)
        for _ in range(3):
            optimizer.step(net)
    torch.testing.assert_close(split.flat(), whole.flat(), rtol=1e-12, atol=1e-12)


def test_running_statistics_move_once_and_by_the_batch_at_w() -> None:
    """As the runner's closure has it: a step's first call moves them, later ones use the batch's and leave them."""

    class Statistics:
        def __init__(self, net: Net) -> None:
            self.net, self.norm, self.calls = net, net.model[1], 0
            assert isinstance(self.norm, nn.BatchNorm1d)

        def __call__(self) -> float:
            self.norm.track_running_stats = self.calls == 0
            buffers = self.norm.running_mean, self.norm.running_var
            if self.calls > 0:
                self.norm.running_mean = self.norm.running_var = None
            loss = self.net()
            self.norm.running_mean, self.norm.running_var = buffers
            self.calls += 1
            return loss

    net, reference = Net(norm=True), Net(norm=True)
    SAM(net.parameters, base=sgd, rho=0.5).step(Statistics(net))
    reference()  # one plain forward pass at w
    norm, expected = net.model[1], reference.model[1]
    assert torch.equal(norm.running_mean, expected.running_mean)
    assert torch.equal(norm.running_var, expected.running_var)
    assert float(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_of_zero_is_no_perturbation(kind: str) -> None:
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    points: list[Tensor] = []

    def closure() -> float:
        points.append(w.detach().clone())
        w.grad = torch.zeros(2)
        return 0.0

    SAM([w], base=plain_sgd, kind=kind, rho=0.5).step(closure)
    assert len(points) == 2
    for point in (*points, w.detach()):
        assert torch.equal(point, torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e30])
def test_the_perturbation_has_length_rho_however_small_or_large_the_gradient(size: float) -> None:
    """In float32: the square of the norm, and at 1e-40 its inverse, are beyond its range."""
    w = nn.Parameter(torch.zeros(2))
    points: list[Tensor] = []

    def closure() -> float:
        points.append(w.detach().clone())
        w.grad = torch.tensor([3 * size, 4 * size])
        return 0.0

    SAM([w], base=partial(torch.optim.SGD, lr=0.0), rho=0.5).step(closure)
    torch.testing.assert_close(points[1], torch.tensor([0.3, 0.4]), rtol=1e-4, atol=0)


def test_a_gradient_that_is_not_finite_stops_the_step_at_w() -> None:
    w = nn.Parameter(torch.tensor([1.0, -2.0]))

    def closure() -> float:
        w.grad = torch.tensor([torch.nan, 1.0])
        return 0.0

    with pytest.raises(FloatingPointError, match=r"SAM: the gradient must be finite, got one of norm nan"):
        SAM([w], base=plain_sgd, rho=0.5).step(closure)
    assert torch.equal(w.detach(), torch.tensor([1.0, -2.0]))


def test_a_second_call_that_raises_leaves_the_parameters_at_w() -> None:
    net = Net()
    before = net.flat()

    def stop() -> None:
        if net.calls == 1:
            raise ArithmeticError("stop")

    net.before = stop
    with pytest.raises(ArithmeticError, match="stop"):
        SAM(net.parameters, base=sgd, rho=0.5).step(net)
    assert torch.equal(net.flat(), before)


@pytest.mark.parametrize("base", [sgd, partial(torch.optim.Adam, lr=0.01)])
def test_resuming_is_exact(base: Any) -> None:
    whole, broken = Net(), Net()
    first, second = (SAM(net.parameters, base=base, kind="asam", rho=0.3) for net in (whole, broken))
    for _ in range(3):
        first.step(whole)
        second.step(broken)
    resumed = Net()
    resumed.model.load_state_dict(broken.model.state_dict())
    third = SAM(resumed.parameters, base=base, kind="asam", rho=0.3)
    third.load_state_dict(copy.deepcopy(second.state_dict()))
    for _ in range(3):
        first.step(whole)
        third.step(resumed)
    assert torch.equal(whole.flat(), resumed.flat())


def test_a_schedule_on_the_groups_reaches_the_base_after_loading_too() -> None:
    slow, fast = Net(), Net()
    halved = SAM(slow.parameters, base=plain_sgd, rho=0.3)
    halved.load_state_dict(halved.state_dict())
    for group in halved.param_groups:
        group["lr"] *= 0.5
    before = slow.flat()
    halved.step(slow)
    SAM(fast.parameters, base=plain_sgd, rho=0.3).step(fast)
    torch.testing.assert_close(before - slow.flat(), (before - fast.flat()) / 2, rtol=1e-12, atol=1e-14)


def test_a_parameter_without_a_gradient_stays() -> None:
    net, unused = Net(), nn.Parameter(torch.ones(2))
    SAM([*net.parameters, unused], base=sgd, rho=0.5, kind="asam").step(net)
    assert torch.equal(unused.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, r"SAM: rho must be >= 0 and finite, got -0\.1"),
        ({"rho": 0.1, "eta": float("inf")}, r"SAM: eta must be >= 0 and finite, got inf"),
        ({"rho": 0.1, "kind": "gsam"}, r"SAM: kind must be one of sam, asam, unnormalized; got 'gsam'"),
        ({"rho": 0.1, "base": torch.optim.LBFGS}, r"SAM: base must step from \.grad alone, and LBFGS calls"),
        ({"rho": 0.1, "base": EntropySGD}, r"SAM: base must step from \.grad alone, and EntropySGD calls"),
        (
            {"rho": 0.1, "base": partial(SAM, base=sgd, rho=0.1)},
            r"SAM: base must step from \.grad alone, and SAM calls",
        ),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAM([nn.Parameter(torch.zeros(1))], **{"base": sgd, **settings})
