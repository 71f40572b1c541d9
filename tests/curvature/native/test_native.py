"""The compiled sweeps against forward-over-reverse derivatives of the network itself, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.backends import Backend, choose_backend
from spectral_run.curvature.native.build import NoNativeCodeError, library
from spectral_run.curvature.objective import LossFunction, Objective

try:
    library()
except NoNativeCodeError as error:
    pytest.skip(f"native: {error}", allow_module_level=True)

RTOL = 1e-9


class Reference:
    """Dense derivatives by torch.func, which shares no code with the kernels; the layers here have them right."""

    def __init__(self, objective: Objective, inputs: Tensor, targets: Tensor) -> None:
        names = [name for name, p in objective.model.named_parameters() if p.requires_grad]
        self.point = torch.cat([p.detach().reshape(-1) for p in objective.parameters])

        written_out = {LOSSES[name]: function for name, function in WRITTEN_OUT.items()}
        of_outputs = written_out.get(objective.loss, objective.loss)

        def loss(w: Tensor) -> Tensor:
            parameters = dict(zip(names, objective.split(w), strict=True))
            return of_outputs(functional_call(objective.model, parameters, (inputs,)), targets)

        self.loss = loss
        self.gradient = torch.func.grad(loss)

    def product(self, v: Tensor) -> Tensor:
        return torch.func.jvp(self.gradient, (self.point,), (v,))[1]

    def quadratic_grad(self, v: Tensor) -> Tensor:
        return torch.func.jvp(lambda w: torch.func.jvp(self.gradient, (w,), (v,))[1], (self.point,), (v,))[1]


def network(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def after(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """An elementwise layer between affine ones, so that its second and third derivatives count."""
    return lambda: network(nn.Linear(4, 5), layer(), nn.Linear(5, 6), layer(), nn.Linear(6, 3))


def image(*layers: nn.Module, features: int) -> Callable[[], nn.Module]:
    """Convolution, the layers, then an affine layer to 3 outputs; smooth, so that all orders are non-zero."""
    return lambda: network(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), *layers, nn.Softplus(), nn.Flatten(), nn.Linear(features, 3)
    )


VECTOR, IMAGE = (4,), (2, 7, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "affine": (lambda: nn.Linear(4, 3), VECTOR),
    "no bias": (lambda: network(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)), VECTOR),
    "wide": (lambda: network(nn.Linear(4, 53), nn.Tanh(), nn.Linear(53, 41), nn.ReLU(), nn.Linear(41, 3)), VECTOR),
    "relu": (after(nn.ReLU), VECTOR),
    "leaky relu": (after(partial(nn.LeakyReLU, 0.3)), VECTOR),
    "leaky relu first": (lambda: network(nn.LeakyReLU(0.3), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), VECTOR),
    "tanh": (after(nn.Tanh), VECTOR),
    "sigmoid": (after(nn.Sigmoid), VECTOR),
    "softplus": (after(partial(nn.Softplus, beta=2.0, threshold=3.0)), VECTOR),
    "elu": (after(partial(nn.ELU, 0.7)), VECTOR),
    "silu": (after(nn.SiLU), VECTOR),
    "gelu": (after(nn.GELU), VECTOR),
    "gelu by tanh": (after(partial(nn.GELU, approximate="tanh")), VECTOR),
    "identity": (after(nn.Identity), VECTOR),
    "convolution": (image(nn.Conv2d(4, 5, 3), features=100), IMAGE),
    "strided": (image(nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(2, 1)), features=175), IMAGE),
    "dilated": (image(nn.Conv2d(4, 5, 2, dilation=(3, 2), padding=1), features=180), IMAGE),
    "same": (image(nn.Conv2d(4, 5, (2, 3), padding="same"), features=210), IMAGE),
    "grouped": (image(nn.Conv2d(4, 6, 3, groups=2), features=120), IMAGE),
    "depthwise": (image(nn.Conv2d(4, 8, 3, groups=4, bias=False), features=160), IMAGE),
    "max pool": (image(nn.MaxPool2d(2), features=36), IMAGE),
    "overlapping max pool": (image(nn.MaxPool2d(3, stride=2, padding=1), features=48), IMAGE),
    "max pool, ceiling": (image(nn.MaxPool2d((2, 3), stride=2, ceil_mode=True), features=48), IMAGE),
    "dilated max pool": (image(nn.MaxPool2d(2, stride=1, dilation=2), features=80), IMAGE),
    "relu, max pool": (image(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2), features=20), IMAGE),
    "average pool": (image(nn.AvgPool2d(2), features=36), IMAGE),
    "padded average pool": (image(nn.AvgPool2d(3, stride=2, padding=1), features=48), IMAGE),
    "average pool without padding": (
        image(nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), features=48),
        IMAGE,
    ),
    "average pool, ceiling": (image(nn.AvgPool2d(2, stride=2, ceil_mode=True), features=48), IMAGE),
    "divided average pool": (image(nn.AvgPool2d(2, divisor_override=3), features=36), IMAGE),
    "adaptive average pool": (image(nn.AdaptiveAvgPool2d((3, 4)), features=48), IMAGE),
    "global average pool": (image(nn.AdaptiveAvgPool2d(1), features=4), IMAGE),
    "adaptive max pool": (image(nn.AdaptiveMaxPool2d((3, 4)), features=48), IMAGE),
}
LOSSES: dict[str, LossFunction] = {
    "cross-entropy": F.cross_entropy,
    "summed": partial(F.cross_entropy, reduction="sum"),
    "weighted": partial(F.cross_entropy, weight=torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)),
    "smoothed": partial(F.cross_entropy, label_smoothing=0.2),
    "weighted and smoothed": nn.CrossEntropyLoss(
        torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64), label_smoothing=0.1
    ),
    "ignoring": partial(F.cross_entropy, ignore_index=1),
    "soft targets": partial(F.cross_entropy, label_smoothing=0.1),
    "binary": F.binary_cross_entropy_with_logits,
    "binary, weighted": partial(
        F.binary_cross_entropy_with_logits,
        weight=torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64),
        pos_weight=torch.tensor([3.0, 0.2, 1.0], dtype=torch.float64),
    ),
    "squared error": F.mse_loss,
    "squared error, summed": nn.MSELoss(reduction="sum"),
}
# torch.func's derivatives of mse_loss end in an error of its own, at times a crash.
WRITTEN_OUT: dict[str, LossFunction] = {
    "squared error": lambda z, y: ((z - y) ** 2).mean(),
    "squared error, summed": lambda z, y: ((z - y) ** 2).sum(),
}


def targets_for(loss: str, rows: int) -> Tensor:
    if "binary" in loss:
        return torch.rand(rows, 3, dtype=torch.float64)
    if "squared" in loss:
        return torch.randn(rows, 3, dtype=torch.float64)
    if "soft" in loss:
        return torch.rand(rows, 3, dtype=torch.float64).softmax(1)
    return torch.arange(rows) % 3


def build(name: str, loss: str = "cross-entropy", rows: int = 7) -> tuple[Objective, Tensor, Tensor]:
    torch.manual_seed(3)
    make, shape = NETWORKS[name]
    objective = Objective(make().double(), LOSSES[loss])
    return objective, torch.randn(rows, *shape, dtype=torch.float64), targets_for(loss, rows)


def native(objective: Objective, inputs: Tensor) -> Backend:
    return choose_backend("native", objective, inputs)


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def check(objective: Objective, inputs: Tensor, targets: Tensor) -> None:
    problem = native(objective, inputs)(objective, inputs, targets)
    reference = Reference(objective, inputs, targets)
    v = torch.randn(problem.n, dtype=torch.float64)
    product, quadratic = reference.product(v), reference.quadratic_grad(v)
    assert error(problem.loss(), reference.loss(reference.point)) < RTOL
    assert error(problem.grad(), reference.gradient(reference.point)) < RTOL
    assert error(problem.hvp(v), product) < RTOL
    both = problem.hvp_and_quadratic_grad(v)
    assert error(both[0], product) < RTOL
    if float(quadratic.norm()) > 1e-12:
        assert error(both[1], quadratic) < RTOL
        assert error(problem.quadratic_grad(v), quadratic) < RTOL
    else:
        assert float(both[1].norm()) < 1e-12
    assert problem.products == (3 if float(quadratic.norm()) > 1e-12 else 2)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # the reference's, for even kernels
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer(name: str) -> None:
    check(*build(name))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss: str) -> None:
    check(*build("tanh", loss))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 64, 130, 300])
@pytest.mark.parametrize("name", ["relu", "gelu", "max pool", "relu, max pool"])
def test_every_size_of_batch(name: str, rows: int) -> None:
    check(*build(name, rows=rows))


@pytest.mark.parametrize("loss", ["weighted", "ignoring", "binary, weighted", "squared error"])
def test_losses_over_several_parts(loss: str) -> None:
    check(*build("softplus", loss, rows=200))


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias", "0", "4", "0 2"])
def test_frozen_parameters_stay_out(frozen: str) -> None:
    objective, inputs, targets = build("tanh")
    for name, parameter in objective.model.named_parameters():
        parameter.requires_grad_(not any(name.startswith(start) for start in frozen.split()))
    check(objective, inputs, targets)


def test_dense_hessian() -> None:
    objective, inputs, targets = build("relu, max pool")
    problem = native(objective, inputs)(objective, inputs, targets)
    hessian = torch.func.jacfwd(Reference(objective, inputs, targets).gradient)(problem.params)
    rows = torch.stack([problem.hvp(row) for row in torch.eye(problem.n, dtype=torch.float64)])
    assert error(rows, hessian) < RTOL
    assert error(rows, rows.T) < RTOL


def test_float32_is_as_close_as_the_other_backend() -> None:
    objective, inputs, targets = build("max pool", rows=130)
    reference = Reference(objective, inputs, targets)
    v = torch.randn(objective.n, dtype=torch.float64)
    want = reference.quadratic_grad(v)
    objective.model.float()
    problems = [
        make(objective, inputs.float(), targets) for make in (native(objective, inputs.float()), AutogradProblem)
    ]
    off = [error(problem.quadratic_grad(v.float()).double(), want) for problem in problems]
    assert off[0] < 2 * off[1] + 1e-6


def test_parameters_are_read_when_the_problem_is_used() -> None:
    objective, inputs, targets = build("tanh")
    backend = native(objective, inputs)
    backend(objective, inputs, targets).grad()
    with torch.no_grad():
        for parameter in objective.parameters:
            parameter += 0.1
    later = backend(objective, inputs, targets)
    assert error(later.grad(), Reference(objective, inputs, targets).gradient(later.params)) < RTOL


def test_problems_that_share_a_plan_do_not_mix() -> None:
    objective, inputs, targets = build("gelu")
    backend = native(objective, inputs)
    one = backend(objective, inputs, targets)
    v = torch.randn(one.n, dtype=torch.float64)
    first = one.hvp(v)
    other = one.at(one.params + 0.3)
    moved = other.hvp(v)
    assert torch.equal(one.hvp(v), first)
    assert torch.equal(other.hvp(v), moved)
    assert error(moved, first) > 1e-3
    with torch.no_grad():
        for parameter in objective.parameters:
            parameter += 0.3
    assert error(moved, Reference(objective, inputs, targets).product(v)) < RTOL


def test_a_problem_stays_where_it_was_when_the_parameters_move() -> None:
    objective, inputs, targets = build("gelu")
    backend = native(objective, inputs)
    earlier = backend(objective, inputs, targets)
    v = torch.randn(earlier.n, dtype=torch.float64)
    before, point = earlier.hvp(v), earlier.params
    with torch.no_grad():
        for parameter in objective.parameters:
            parameter += 0.3
    assert error(backend(objective, inputs, targets).hvp(v), before) > 1e-3  # takes the plan away
    assert torch.equal(earlier.hvp(v), before)
    assert torch.equal(earlier.params, point)


def test_results_are_the_callers_own() -> None:
    objective, inputs, targets = build("tanh")
    problem = native(objective, inputs)(objective, inputs, targets)
    u, v = torch.randn(2, problem.n, dtype=torch.float64)
    gradient, product = problem.grad(), problem.hvp(u)
    copies = gradient.clone(), product.clone()
    problem.hvp_and_quadratic_grad(v)
    problem.at(problem.params + 1).grad()
    assert torch.equal(gradient, copies[0])
    assert torch.equal(product, copies[1])


def test_weight_decay_moves_every_eigenvalue() -> None:
    objective, inputs, targets = build("tanh")
    plain = native(objective, inputs)(objective, inputs, targets)
    decayed = choose_backend("native", objective, inputs, weight_decay=0.25)(objective, inputs, targets)
    v = torch.randn(plain.n, dtype=torch.float64)
    assert error(decayed.hvp(v), plain.hvp(v) + 0.25 * v) < RTOL
    assert error(decayed.at(plain.params).hvp(v), plain.hvp(v) + 0.25 * v) < RTOL
    assert torch.equal(decayed.quadratic_grad(v), plain.quadratic_grad(v))


def test_nan_flows_through() -> None:
    objective, inputs, targets = build("relu, max pool")
    inputs[2] = float("nan")
    problem = native(objective, inputs)(objective, inputs, targets)
    assert problem.loss().isnan()
    assert problem.hvp(torch.ones(problem.n, dtype=torch.float64)).isnan().any()


def test_the_same_numbers_every_time() -> None:
    objective, inputs, targets = build("relu, max pool", rows=200)
    v = torch.randn(objective.n, dtype=torch.float64)
    results = [native(objective, inputs)(objective, inputs, targets).quadratic_grad(v) for _ in range(2)]
    assert torch.equal(*results)
