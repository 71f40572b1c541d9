"""Small networks in float64 written out as functions of a flat vector, and every kind's dense matrix made of them.

Nothing here uses the package but for the objective: Jacobians and second derivatives are torch.func's, of plain
functions; expectations are sums over all labels, or quadrature.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.backends import Backend, choose_backend
from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.native.build import NoNativeCodeError, library
from spectral_run.curvature.objective import Objective, flatten

ROWS, CLASSES = 7, 3
LOSSES = {
    "cross-entropy": F.cross_entropy,
    "binary": F.binary_cross_entropy_with_logits,
    "squares": F.mse_loss,
}


def row_loss(loss: str, z: Tensor, y: Tensor) -> Tensor:
    """Of one row, in primitive operations."""
    if loss == "cross-entropy":
        return z.exp().sum().log() - z[y]
    if loss == "binary":
        return ((1 + z.exp()).log() - y * z).mean()
    return ((z - y) ** 2).mean()


def labels(loss: str, z: Tensor) -> list[tuple[float, Tensor]]:
    """(probability, label) over all labels of a row; for the normal distribution nodes of a Gauss-Hermite rule."""
    if loss == "cross-entropy":
        return [(float(p), torch.tensor(y)) for y, p in enumerate(z.exp() / z.exp().sum())]
    places = range(len(z))
    if loss == "binary":
        p = 1 / (1 + (-z).exp())
        every = itertools.product((0, 1), repeat=len(z))
        return [(math.prod(float(p[i] if y[i] else 1 - p[i]) for i in places), torch.tensor(y) * 1.0) for y in every]
    nodes = [(-(3**0.5), 1 / 6), (0.0, 2 / 3), (3**0.5, 1 / 6)]  # exact for polynomials of degree 5
    every = itertools.product(nodes, repeat=len(z))
    deviation = (len(z) / 2) ** 0.5
    return [
        (math.prod(w for _, w in y), z + deviation * torch.tensor([t for t, _ in y], dtype=torch.float64))
        for y in every
    ]


@dataclass(frozen=True)
class Case:
    """A network and loss at ``point``, with ``function(w, inputs)`` its outputs."""

    objective: Objective
    inputs: Tensor
    targets: Tensor
    loss: str
    function: Callable[[Tensor, Tensor], Tensor]
    point: Tensor

    @cached_property
    def jacobian(self) -> Tensor:
        """(rows, C, n)."""
        return torch.func.jacrev(self.function)(self.point, self.inputs)

    def gradients(self, z: Tensor, y: Tensor, i: int) -> Tensor:
        return torch.func.grad(lambda z: row_loss(self.loss, z, y))(z) @ self.jacobian[i]

    @cached_property
    def matrices(self) -> dict[str, Tensor]:
        """Every kind that is not random, dense."""
        outputs = self.function(self.point, self.inputs)
        n, rows = len(self.point), len(self.inputs)

        def mean_loss(w: Tensor) -> Tensor:
            z = self.function(w, self.inputs)
            return torch.stack([row_loss(self.loss, z[i], self.targets[i]) for i in range(rows)]).mean()

        found = {name: torch.zeros(n, n, dtype=torch.float64) for name in ("gauss_newton", "fisher", "empirical")}
        mean = torch.zeros(n, dtype=torch.float64)
        for i, (z, y, j) in enumerate(zip(outputs, self.targets, self.jacobian, strict=True)):
            curvature = torch.func.hessian(lambda z, y=y: row_loss(self.loss, z, y))(z)
            found["gauss_newton"] += j.T @ curvature @ j / rows
            for probability, label in labels(self.loss, z):
                g = self.gradients(z, label, i)
                found["fisher"] += probability * torch.outer(g, g) / rows
            g = self.gradients(z, y, i)
            found["empirical"] += torch.outer(g, g) / rows
            mean += g / rows
        hessian = torch.func.hessian(mean_loss)(self.point)
        return {
            "hessian": hessian,
            "gauss_newton": found["gauss_newton"],
            "residual": hessian - found["gauss_newton"],
            "fisher": found["fisher"],
            "fisher_empirical": found["empirical"],
            "gradient_covariance": found["empirical"] - torch.outer(mean, mean),
        }


def _pieces(w: Tensor, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    sizes = [math.prod(shape) for shape in shapes]
    return [piece.view(shape) for piece, shape in zip(w.split(sizes), shapes, strict=True)]


def _mlp() -> tuple[nn.Module, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    def function(w: Tensor, x: Tensor) -> Tensor:
        a, b, c, d = _pieces(w, [(4, 3), (4,), (CLASSES, 4), (CLASSES,)])
        return torch.tanh(x @ a.T + b) @ c.T + d

    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)), torch.randn(ROWS, 3), function


def _cnn() -> tuple[nn.Module, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, CLASSES)]

    def function(w: Tensor, x: Tensor) -> Tensor:
        a, b, c, d = _pieces(w, [(2, 1, 3, 3), (2,), (CLASSES, 8), (CLASSES,)])
        x = F.pad(x, (1, 1, 1, 1))
        shifted = [x[:, :, i : i + 4, j : j + 4] * a[:, 0, i, j].view(1, 2, 1, 1) for i in range(3) for j in range(3)]
        x = torch.stack(shifted).sum(0) + b.view(1, 2, 1, 1)
        x = x * (x > 0)
        x = torch.stack([x[:, :, i::2, j::2] for i in range(2) for j in range(2)]).amax(0)
        return x.flatten(1) @ c.T + d

    return nn.Sequential(*layers), torch.randn(ROWS, 1, 4, 4), function


def _norms() -> tuple[nn.Module, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    norm = nn.BatchNorm1d(4).double()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()

    def function(w: Tensor, x: Tensor) -> Tensor:
        a, b, s, t, c, d = _pieces(w, [(4, 3), (4,), (4,), (4,), (CLASSES, 4), (CLASSES,)])
        x = (x @ a.T + b - mean) / (variance + 1e-5) ** 0.5 * s + t
        return torch.tanh(x) @ c.T + d

    return nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, CLASSES)), torch.randn(ROWS, 3), function


NETWORKS = {"mlp": _mlp, "cnn": _cnn, "norms": _norms}
BACKENDS = ("autograd", "rop", "native")


@lru_cache
def case_of(network: str, loss: str) -> Case:
    torch.manual_seed(11)
    model, inputs, function = NETWORKS[network]()
    model = swap_norms(model).double().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.6
    objective = Objective(model, LOSSES[loss])
    targets = torch.randint(CLASSES, (ROWS,))
    if loss == "binary":
        targets = torch.randint(2, (ROWS, CLASSES)).double()
    if loss == "squares":
        targets = torch.randn(ROWS, CLASSES).double()
    point = flatten([p.detach() for p in objective.parameters]).clone()
    return Case(objective, inputs.double(), targets, loss, function, point)


def backend_of(name: str, case: Case, weight_decay: float = 0.0) -> Backend:
    if name == "native":
        try:
            library()
        except NoNativeCodeError as error:
            pytest.skip(f"native: {error}")
    return choose_backend(name, case.objective, case.inputs, weight_decay=weight_decay)


@pytest.fixture
def make_case() -> Callable[[str, str], Case]:
    return case_of


@pytest.fixture
def make_backend() -> Callable[..., Backend]:
    return backend_of
