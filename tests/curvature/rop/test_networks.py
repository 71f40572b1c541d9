"""Whole networks: values read twice, parameters used twice, frozen or not at all, every shipped model, DenseNet-121."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.models.mlp import MLP
from spectral_run.models.resnet import ResNet
from spectral_run.models.usps_cnn import USPSCNN

RTOL = 1e-9


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def check(objective: Objective, inputs: Tensor, targets: Tensor, reference: Callable[..., Tensor]) -> None:
    """Against forward-mode derivatives of ``reference(parameters, inputs, targets)``."""
    w = flatten([p.detach() for p in objective.parameters])
    v, gradient = torch.randn_like(w), torch.func.grad(lambda w: reference(objective.split(w), inputs, targets))

    def first(w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(gradient, (w,), (v,))

    (g, product), (_, quadratic) = torch.func.jvp(first, (w,), (v,))
    problem = RopProblem(objective, inputs, targets)
    for got, want in [
        (problem.grad(), g),
        (problem.hvp(v), product),
        *zip(problem.hvp_and_quadratic_grad(v), (product, quadratic), strict=True),
    ]:
        torch.testing.assert_close(got, want, rtol=RTOL, atol=RTOL * float(want.norm()))


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return -(z - z.exp().sum(1, keepdim=True).log()).gather(1, y[:, None]).mean()


class Residual(nn.Module):
    """Every way in which values meet, a value that is read by a dead end, and one parameter used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5, bias=False), nn.Linear(20, 3)
        self.scale = nn.Parameter(torch.randn(5))
        self.fixed = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("shift", torch.randn(5))
        self.tied = nn.Linear(5, 5)
        self.tied.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.first(x))
        b = self.second(a)
        b += a
        self.last(torch.cat([a, a, b, b], 1))
        c = self.tied(b * self.scale) * a - self.fixed * self.scale + self.shift
        d = F.softplus(c + x) * torch.sigmoid(self.second(b))
        return self.last(torch.cat((a, c, d, x * self.fixed), dim=1))


def residual(p: tuple[Tensor, ...], fixed: Tensor, shift: Tensor, x: Tensor, y: Tensor) -> Tensor:
    scale, w1, b1, w2, w3, b3, b4 = p
    a = (x @ w1.T + b1).tanh()
    b = a @ w2.T + a
    c = ((b * scale) @ w2.T + b4) * a - fixed * scale + shift
    d = (1 + (c + x).exp()).log() / (1 + (-(b @ w2.T)).exp())
    return cross_entropy(torch.cat([a, c, d, x * fixed], 1) @ w3.T + b3, y)


@pytest.mark.parametrize("rows", [1, 4])
def test_residual_network(rows: int) -> None:
    torch.manual_seed(0)
    model = Residual().double()
    reference = lambda p, x, y: residual(p, model.fixed, model.shift, x, y)  # noqa: E731
    inputs, targets = torch.randn(rows, 5).double(), torch.randint(3, (rows,))
    check(Objective(model, F.cross_entropy), inputs, targets, reference)


FROZEN = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "4.weight", "4.bias"]


@pytest.mark.parametrize("frozen", [*[[name] for name in FROZEN], FROZEN[:4], FROZEN[:2] + FROZEN[4:], FROZEN[1:]])
def test_frozen_parameters(frozen: list[str]) -> None:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 2, 2), swap_norms(nn.BatchNorm2d(2)), nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers).double()
    names = dict(model.named_parameters())
    for name, p in names.items():
        p.data = torch.randn_like(p)
        p.requires_grad_(name not in frozen)

    def reference(moving: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        free = iter(moving)
        w1, b1, w, b, w2, b2, w3, b3 = (p.detach() if n in frozen else next(free) for n, p in names.items())
        x = F.conv2d(x, w1, b1)
        x = x - x.mean((0, 2, 3), keepdim=True)
        x = x / ((x * x).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt() * w.view(-1, 1, 1) + b.view(-1, 1, 1)
        return cross_entropy(F.conv2d(x, w2, b2).flatten(1) @ w3.T + b3, y)

    objective = Objective(model, F.cross_entropy)
    check(objective, torch.randn(3, 1, 4, 4).double(), torch.randint(3, (3,)), reference)


def test_only_the_first_bias_is_free() -> None:
    """The one place where order 1 of a layer is a bias and nothing else."""
    torch.manual_seed(2)
    for layer in (nn.Linear(4, 6), nn.Conv1d(2, 3, 3)):
        model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)).double()
        for p in model.parameters():
            p.requires_grad_(p is layer.bias)
        inputs = torch.randn(4, 4).double() if isinstance(layer, nn.Linear) else torch.randn(4, 2, 4).double()
        objective, targets = Objective(model, F.cross_entropy), torch.randint(3, (4,))
        v = torch.randn(objective.n).double()
        want = AutogradProblem(objective, inputs, targets).hvp_and_quadratic_grad(v)
        for a, b in zip(RopProblem(objective, inputs, targets).hvp_and_quadratic_grad(v), want, strict=True):
            assert error(a, b) < RTOL


def test_an_unused_parameter_has_zero_rows() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    problem = RopProblem(
        Objective(Unused().double(), F.cross_entropy), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
    )
    one = torch.ones(problem.n, dtype=torch.float64)
    assert not problem.grad()[8:].any()
    for got in problem.hvp_and_quadratic_grad(one):
        assert got[:8].any()
        assert not got[8:].any()
    with torch.no_grad():
        frozen = nn.Linear(3, 2).double().requires_grad_(False)
        frozen.register_parameter("apart", nn.Parameter(torch.zeros(3).double()))
    nothing = RopProblem(Objective(frozen, F.cross_entropy), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0]))
    assert not torch.cat([nothing.grad(), *nothing.hvp_and_quadratic_grad(torch.ones(3).double())]).any()


MODELS = {
    "mlp": (partial(MLP, activation="gelu"), (5,)),
    "usps_cnn": (partial(USPSCNN, activation="silu"), (1, 16, 16)),
    "usps_cnn_relu": (USPSCNN, (1, 16, 16)),
    "resnet_batch": (partial(ResNet, width=4), (3, 8, 8)),
    "resnet_group": (partial(ResNet, width=4, norm="group"), (3, 8, 8)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_as_with_autograd(name: str, training: bool) -> None:
    torch.manual_seed(3)
    make, shape = MODELS[name]
    model = swap_norms(make(input_shape=shape, classes=4)).double().train(training)
    objective = Objective(model, partial(F.cross_entropy, label_smoothing=0.1))
    batch = torch.randn(3, *shape).double(), torch.randint(4, (3,))
    ours, theirs = RopProblem(objective, *batch), AutogradProblem(objective, *batch)
    v = torch.randn(ours.n).double()
    assert float(ours.loss()) == pytest.approx(float(theirs.loss()), rel=1e-13)
    assert error(ours.grad(), theirs.grad()) < RTOL
    want = theirs.hvp_and_quadratic_grad(v)
    for a, b in zip(ours.hvp_and_quadratic_grad(v), want, strict=True):
        assert error(a, b) < RTOL


def smooth(model: nn.Module) -> nn.Module:
    """Tanh and means in the place of ReLU and maxima, so that finite differences cross no kinks."""
    for name, child in model.named_children():
        kinked = isinstance(child, nn.ReLU | nn.MaxPool2d)
        setattr(
            model, name, (nn.Tanh() if isinstance(child, nn.ReLU) else nn.AvgPool2d(2)) if kinked else smooth(child)
        )
    return model


def smooth_densenet() -> nn.Module:
    model = torchvision.models.densenet121(num_classes=3)
    model.forward = lambda x: model.classifier(F.silu(model.features(x)).mean((2, 3)))  # its own has F.relu
    return smooth(model)


@pytest.mark.parametrize("make", [smooth_densenet, lambda: smooth(torchvision.models.resnet18(num_classes=3))])
def test_torchvision_against_differences_of_gradients(make: Callable[[], nn.Module]) -> None:
    """Central differences, with one step of Richardson's extrapolation, of first-order gradients by autograd."""
    torch.manual_seed(4)
    model = swap_norms(make()).double().train()
    objective = Objective(model, F.binary_cross_entropy_with_logits)
    inputs, targets = torch.randn(6, 3, 32, 32).double(), torch.rand(6, 3).double()
    problem = RopProblem(objective, inputs, targets)
    v = torch.randn(problem.n).double()
    v /= v.norm()
    w = problem.params

    def gradient(t: float) -> Tensor:
        return AutogradProblem(objective, inputs, targets, params=w + t * v).grad()

    def differences(h: float) -> tuple[Tensor, Tensor]:
        ahead, behind = gradient(h), gradient(-h)
        return (ahead - behind) / (2 * h), (ahead - 2 * here + behind) / h**2

    here, h = gradient(0.0), 4e-3
    (coarse1, coarse2), (fine1, fine2) = differences(2 * h), differences(h)
    assert error(problem.grad(), here) < RTOL
    product, quadratic = problem.hvp_and_quadratic_grad(v)
    assert error(product, (4 * fine1 - coarse1) / 3) < 1e-8
    assert error(quadratic, (4 * fine2 - coarse2) / 3) < 1e-6
    assert error(problem.hvp(v), product) < 1e-12


def test_densenet_as_it_is() -> None:
    torch.manual_seed(5)
    objective = Objective(swap_norms(torchvision.models.densenet121(num_classes=3)).double(), F.cross_entropy)
    inputs, targets = torch.randn(2, 3, 32, 32).double(), torch.tensor([0, 2])
    ours, theirs = RopProblem(objective, inputs, targets), AutogradProblem(objective, inputs, targets)
    v = torch.randn(ours.n).double()
    assert error(ours.grad(), theirs.grad()) < RTOL
    assert error(ours.hvp(v), theirs.hvp(v)) < RTOL
