"""Small networks in float64, each with its loss written out again as a function of a flat vector, module-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.objective import Objective, flatten


@dataclass(frozen=True)
class Case:
    """A network on a batch, and ``reference(w, inputs, targets)``, which shares no code with the package."""

    objective: Objective
    inputs: Tensor
    targets: Tensor
    reference: Callable[[Tensor, Tensor, Tensor], Tensor]

    @property
    def point(self) -> Tensor:
        return flatten([p.detach() for p in self.objective.parameters])

    def dense_hessian(self) -> Tensor:
        """Forward over reverse mode on the reference: another path through other derivatives."""
        return torch.func.jacfwd(torch.func.grad(lambda w: self.reference(w, self.inputs, self.targets)))(self.point)

    def dense_quadratic_grad(self, v: Tensor) -> Tensor:
        """grad v'Hv = d^2/dt^2 grad f(w + t v): two forward-mode derivatives of the reference's gradient."""
        gradient = torch.func.grad(lambda w: self.reference(w, self.inputs, self.targets))

        def first(w: Tensor) -> Tensor:
            return torch.func.jvp(gradient, (w,), (v,))[1]

        return torch.func.jvp(first, (self.point,), (v,))[1]


def _pieces(w: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    sizes = [int(torch.Size(shape).numel()) for shape in shapes]
    return [piece.view(shape) for piece, shape in zip(w.split(sizes), shapes, strict=True)]


def _norm(x: Tensor, dims: list[int], weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    deviation = ((x - mean) ** 2).mean(dims, keepdim=True).add(1e-5).sqrt()
    shape = (1, -1, 1, 1) if x.dim() == 4 else (1, -1)
    return (x - mean) / deviation * weight.view(shape) + bias.view(shape)


def _mlp(activation: type[nn.Module], function: Callable[[Tensor], Tensor]) -> Case:
    model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 6), activation(), nn.Linear(6, 3))

    def reference(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        a, b, c, d, e, f = _pieces(w, [(5, 4), (5,), (6, 5), (6,), (3, 6), (3,)])
        logits = function(function(x @ a.T + b) @ c.T + d) @ e.T + f
        return -(logits - logits.exp().sum(1, keepdim=True).log()).gather(1, y[:, None]).mean()

    return _case(model, torch.randn(7, 4), reference)


def _cnn(norm: bool) -> Case:
    layers: list[nn.Module] = [nn.Conv2d(1, 3, 3, padding=1)]
    layers += [nn.BatchNorm2d(3)] if norm else []
    layers += [nn.Softplus(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)]
    layers += [nn.Flatten(), nn.LayerNorm(16)] if norm else [nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16, 3))
    shapes: list[tuple[int, ...]] = [(3, 1, 3, 3), (3,), *([(3,), (3,)] if norm else []), (4, 3, 3, 3), (4,)]
    shapes += [*([(16,), (16,)] if norm else []), (3, 16), (3,)]

    def reference(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        p = _pieces(w, shapes)
        x = F.conv2d(x, p.pop(0), p.pop(0), padding=1)
        if norm:
            x = _norm(x, [0, 2, 3], p.pop(0), p.pop(0))
        x = F.max_pool2d((1 + x.exp()).log(), 2)
        x = F.avg_pool2d(F.conv2d(x, p.pop(0), p.pop(0), padding=1).tanh(), 2).flatten(1)
        if norm:
            x = _norm(x, [1], p.pop(0), p.pop(0))
        logits = x @ p.pop(0).T + p.pop(0)
        return -(logits - logits.exp().sum(1, keepdim=True).log()).gather(1, y[:, None]).mean()

    return _case(model, torch.randn(7, 1, 8, 8), reference)


def _case(model: nn.Module, inputs: Tensor, reference: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Case:
    model = swap_norms(model).double().train()
    for parameter in model.parameters():  # away from ones and zeros of the norms, so that every term counts
        parameter.data += 0.3 * torch.randn_like(parameter)
    return Case(Objective(model, F.cross_entropy), inputs.double(), torch.randint(3, (len(inputs),)), reference)


@pytest.fixture(params=["mlp_tanh", "mlp_relu", "cnn", "norm_cnn"])
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(5)
    if request.param == "mlp_tanh":
        return _mlp(nn.Tanh, torch.tanh)
    if request.param == "mlp_relu":
        return _mlp(nn.ReLU, torch.relu)
    return _cnn(norm=request.param == "norm_cnn")


@pytest.fixture
def summed_case() -> Case:
    """A network whose loss over many rows is a sum over rows: no layer mixes them."""
    torch.manual_seed(6)
    return _cnn(norm=False)
