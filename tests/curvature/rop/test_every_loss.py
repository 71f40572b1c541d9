"""Every loss and each of its settings in float64, against forward-mode derivatives of its formula written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.registry import registry

RTOL = 1e-9
ROWS, CLASSES = 6, 4
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 1.5], dtype=torch.float64)
NUMBERS = torch.tensor([0, 3, 1, 1, 2, 0])
SOME_IGNORED = torch.tensor([0, -100, 1, 3, -100, 2])
PLACES = torch.arange(ROWS * 3).reshape(ROWS, 3) % CLASSES
DISTRIBUTIONS = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)).double().softmax(1)
SOFT = torch.rand(ROWS, CLASSES, generator=torch.Generator().manual_seed(1)).double()
VALUES = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(2)).double()

Loss = Callable[[Tensor, Tensor], Tensor]


def log_softmax(z: Tensor) -> Tensor:
    return z - z.exp().sum(1, keepdim=True).log()


def hard(z: Tensor, y: Tensor, weight: Tensor | None = None, smoothing: float = 0.0, mean: bool = True) -> Tensor:
    """A sum over rows and places, one number at a time."""
    total, mass = z.new_zeros(()), 0.0
    logs = log_softmax(z).movedim(1, -1).reshape(-1, CLASSES)
    for row, number in zip(logs, y.reshape(-1).tolist(), strict=True):
        if number >= 0:
            w = torch.ones(CLASSES).double() if weight is None else weight
            total = total - (1 - smoothing) * w[number] * row[number] - smoothing / CLASSES * (w * row).sum()
            mass += float(w[number])
    return total / mass if mean else total


def soft(z: Tensor, t: Tensor, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    t = (1 - smoothing) * t + smoothing / CLASSES
    return -(log_softmax(z) * t * (1 if weight is None else weight)).sum() / len(z)


def binary(z: Tensor, t: Tensor, weight: Tensor | float = 1.0, positive: Tensor | float = 1.0) -> Tensor:
    s = 1 / (1 + (-z).exp())
    return -(weight * (positive * t * s.log() + (1 - t) * (1 - s).log()))


CASES: dict[str, list[tuple[Loss, Tensor, Loss]]] = {
    "cross_entropy": [
        (F.cross_entropy, NUMBERS, hard),
        (nn.CrossEntropyLoss(), NUMBERS, hard),
        (nn.CrossEntropyLoss(reduction="sum"), NUMBERS, partial(hard, mean=False)),
        (partial(F.cross_entropy, weight=WEIGHT), NUMBERS, partial(hard, weight=WEIGHT)),
        (partial(F.cross_entropy, label_smoothing=0.1), NUMBERS, partial(hard, smoothing=0.1)),
        (partial(F.cross_entropy, ignore_index=-100), SOME_IGNORED, hard),
        (
            nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.3).double(),
            SOME_IGNORED,
            partial(hard, weight=WEIGHT, smoothing=0.3),
        ),
        (
            partial(partial(F.cross_entropy, weight=WEIGHT), label_smoothing=0.2),
            PLACES,
            partial(hard, weight=WEIGHT, smoothing=0.2),
        ),
        (F.cross_entropy, DISTRIBUTIONS, soft),
        (
            partial(F.cross_entropy, weight=WEIGHT, label_smoothing=0.2),
            DISTRIBUTIONS,
            partial(soft, weight=WEIGHT, smoothing=0.2),
        ),
    ],
    "bce_with_logits": [
        (F.binary_cross_entropy_with_logits, SOFT, lambda z, t: binary(z, t).mean()),
        (nn.BCEWithLogitsLoss(reduction="sum"), SOFT, lambda z, t: binary(z, t).sum()),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), SOFT, lambda z, t: binary(z, t, positive=WEIGHT).mean()),
        (
            partial(F.binary_cross_entropy_with_logits, weight=SOFT[0], pos_weight=WEIGHT),
            SOFT.round(),
            lambda z, t: binary(z, t, SOFT[0], WEIGHT).mean(),
        ),
    ],
    "mse": [
        (F.mse_loss, VALUES, lambda z, t: ((z - t) ** 2).mean()),
        (nn.MSELoss(reduction="sum"), VALUES, lambda z, t: ((z - t) ** 2).sum()),
    ],
}
ALL = [(name, i) for name, cases in CASES.items() for i in range(len(cases))]


def test_every_loss_has_a_case() -> None:
    assert {loss.__module__.rsplit(".", 1)[1] for loss in registry().losses} == set(CASES)


@pytest.mark.parametrize("deep", [False, True], ids=["linear", "deep"])
@pytest.mark.parametrize(("name", "number"), ALL, ids=[f"{name}-{i}" for name, i in ALL])
def test_loss(name: str, number: int, deep: bool) -> None:
    given, targets, formula = CASES[name][number]
    torch.manual_seed(4)
    places = targets.shape[1:] if targets.shape != (ROWS, CLASSES) else ()
    inputs = torch.randn(ROWS, 5, *places, dtype=torch.float64)
    kind = nn.Conv1d if places else nn.Linear
    last = {"kernel_size": 1} if places else {}
    layers = [kind(5, 5, **last), nn.Tanh()] if deep else []
    objective = Objective(nn.Sequential(*layers, kind(5, CLASSES, **last)).double(), given)

    def loss(w: Tensor) -> Tensor:
        *hidden, weight, bias = (p.flatten(1) if p.dim() > 1 else p for p in objective.split(w))
        x = inputs.movedim(1, -1)
        if hidden:
            x = (x @ hidden[0].T + hidden[1]).tanh()
        return formula((x @ weight.T + bias).movedim(-1, 1), targets)

    w = flatten([p.detach() for p in objective.parameters])
    v, gradient = torch.randn_like(w), torch.func.grad(loss)

    def first(w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(gradient, (w,), (v,))

    (g, product), (_, quadratic) = torch.func.jvp(first, (w,), (v,))
    problem = RopProblem(objective, inputs, targets)
    for got, want in [
        (problem.loss(), loss(w)),
        (problem.grad(), g),
        (problem.hvp(v), product),
        *zip(problem.hvp_and_quadratic_grad(v), (product, quadratic), strict=True),
        (problem.hvps(torch.stack([v, 2 * v]))[1], 2 * product),
    ]:
        torch.testing.assert_close(got, want, rtol=RTOL, atol=RTOL * float(g.norm()))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y, t: (y - t).abs().mean(), "must be one of binary_cross_entropy_with_logits, cross_entropy, mse_loss"),
        (nn.L1Loss(), "got L1Loss"),
        (partial(F.mse_loss, reduction="none"), "mse_loss: reduction must be mean or sum, got 'none'"),
        (partial(F.cross_entropy, reduce=True), "it covers weight, ignore_index, .* not reduce"),
        (partial(F.cross_entropy, torch.zeros(2, 2)), "partial with keywords only"),
    ],
)
def test_refusals(loss: Loss, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopProblem(Objective(nn.Linear(2, 2), loss), torch.zeros(2, 2), torch.zeros(2, 2))


def test_targets_of_another_shape_are_refused_by_name() -> None:
    problem = RopProblem(Objective(nn.Linear(2, 3), F.mse_loss), torch.zeros(2, 2), torch.zeros(1, 3))
    with pytest.warns(UserWarning, match="target size"), pytest.raises(ValueError, match=r"\(2, 3\), got \(1, 3\)"):
        problem.grad()
