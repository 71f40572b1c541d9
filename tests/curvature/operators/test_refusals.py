"""What the factory refuses, by name, and the point and mode that it holds fast."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.operators.operators import KINDS, curvature_operator

OVER_ROWS = ("fisher", "fisher_sampled", "fisher_empirical", "gradient_covariance")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def make(
    kind: str, loss: Any = F.cross_entropy, targets: Tensor | None = None, model: Any = None, **settings: Any
) -> Tensor:
    torch.manual_seed(0)
    model = (model or nn.Linear(4, 3)).double()
    targets = torch.tensor([0, 1, 2, 1, 0]) if targets is None else targets
    settings = {"generator": generator()} | settings
    operator = curvature_operator(kind, Objective(model, loss), torch.randn(5, 4).double(), targets, **settings)
    return operator.matvec(torch.ones(operator.n, dtype=torch.float64))


def test_names_the_kinds() -> None:
    with pytest.raises(ValueError, match=f"kind must be one of {', '.join(KINDS)}; got 'ggn'"):
        make("ggn")


@pytest.mark.parametrize("kind", ["fisher", "fisher_sampled"])
@pytest.mark.parametrize(
    ("loss", "targets", "why"),
    [
        (partial(F.cross_entropy, weight=torch.ones(3).double()), None, "class weights"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), None, "label smoothing"),
        (partial(F.cross_entropy, ignore_index=2), None, "ignored rows"),
        (F.cross_entropy, torch.full((5, 3), 1 / 3).double(), "probabilities for targets"),
        (partial(F.cross_entropy, reduction="sum"), None, "reduction sum"),
        (partial(F.mse_loss, reduction="sum"), torch.zeros(5, 3).double(), "reduction sum"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3).double()), torch.zeros(5, 3).double(), "weights"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(3).double()), torch.zeros(5, 3).double(), "weights"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refuses_losses_that_are_no_likelihood(kind: str, loss: Any, targets: Tensor | None, why: str) -> None:
    allowed = "it takes cross_entropy of class numbers, binary_cross_entropy_with_logits, mse_loss, with reduction mean"
    with pytest.raises(ValueError, match=f"{kind}: a loss with {why} is no negative log likelihood; {allowed}"):
        make(kind, loss, targets)


@pytest.mark.parametrize("kind", OVER_ROWS)
def test_refuses_losses_that_are_no_mean_over_rows(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}: the loss must be one of .*cross_entropy, mse_loss, .* it takes"):
        make(kind, F.l1_loss, torch.zeros(5, 3).double())
    for loss, why in [
        (partial(F.cross_entropy, weight=torch.ones(3).double()), "class weights"),
        (partial(F.cross_entropy, ignore_index=2), "ignored rows"),
        (partial(F.cross_entropy, reduction="sum"), "reduction sum"),
    ]:
        with pytest.raises(ValueError, match=f"{kind}: a loss with {why} is no"):
            make(kind, loss)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (partial(F.cross_entropy, label_smoothing=0.3), torch.tensor([0, 1, 2, 1, 0])),
        (F.cross_entropy, torch.rand(5, 3, generator=generator()).double()),
        (partial(F.cross_entropy, ignore_index=7), torch.tensor([0, 1, 2, 1, 0])),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2, 3]).double()), torch.eye(5, 3).double()),
    ],
    ids=["smoothed", "probabilities", "nothing ignored", "positive weights"],
)
def test_empirical_takes_any_mean_over_rows(loss: Any, targets: Tensor) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    want = torch.zeros(15, 15, dtype=torch.float64)
    for i in range(5):
        gradient = torch.autograd.grad(loss(model(inputs[i : i + 1]), targets[i : i + 1]), list(model.parameters()))
        g = torch.cat([piece.reshape(-1) for piece in gradient])
        want += torch.outer(g, g) / 5
    for batch_size in (5, 2):
        made = curvature_operator(
            "fisher_empirical", Objective(model, loss), inputs, targets, batch_size=batch_size
        ).dense()
        torch.testing.assert_close(made, want, rtol=1e-9, atol=1e-12)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y - y.mean(0)


@pytest.mark.parametrize("kind", OVER_ROWS)
def test_refuses_networks_that_mix_rows(kind: str) -> None:
    for norm in (nn.BatchNorm1d(4), swap_norms(nn.BatchNorm1d(4)), nn.BatchNorm1d(4, track_running_stats=False).eval()):
        name = type(norm).__name__
        with pytest.raises(ValueError, match=rf"{kind}: layer '1' \({name}\) normalizes by its batch"):
            make(kind, model=nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 3)))
    make(kind, model=nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval())
    with pytest.raises(ValueError, match=f"{kind}: the model's outputs for a row depend on the other rows"):
        make(kind, model=Mixed())


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_masks_that_would_not_stay(kind: str) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3))

    with pytest.raises(ValueError, match=rf"{kind}: layer '1' \(Dropout\) draws new masks at every pass"):
        make(kind, model=network(), batch_size=2)
    make(kind, model=network().eval(), batch_size=2)
    if kind != "hessian":
        with pytest.raises(ValueError, match="draws new masks"):
            make(kind, model=network())


def test_hessian_of_one_batch_keeps_its_masks() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    operator = curvature_operator(
        "hessian", Objective(model, F.cross_entropy), torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])
    )
    v = torch.ones(operator.n, dtype=torch.float64)
    first = operator.matvec(v)
    assert float(first.norm()) > 0
    assert torch.equal(operator.matvec(v), first)


def test_refuses_numbers() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make("hessian", batch_size=0)
    with pytest.raises(ValueError, match="as many inputs as targets, and some; got 5 and 4"):
        make("hessian", targets=torch.tensor([0, 1, 2, 1]))
    with pytest.raises(ValueError, match=r"params must have 15 numbers of torch.float64, got shape \(14,\)"):
        make("hessian", params=torch.zeros(14, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"of torch.float64, got shape .* of torch.float32"):
        make("hessian", params=torch.zeros(15))
    with pytest.raises(ValueError, match="fisher_sampled: its labels are random: it needs a generator on the CPU"):
        make("fisher_sampled", generator=None)
    with pytest.raises(ValueError, match="fisher_sampled: samples must be at least 1, got 0"):
        make("fisher_sampled", samples=0)
    with pytest.raises(ValueError, match="gauss_newton: the loss has no second derivative"):
        make("gauss_newton", lambda z, y: z.mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [5, 2])
def test_leaves_the_network_alone_and_refuses_another_mode(kind: str, batch_size: int) -> None:
    torch.manual_seed(0)
    model = swap_norms(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))).double().eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    inputs, targets = torch.randn(5, 4, generator=generator()).double(), torch.tensor([0, 1, 2, 1, 0])
    operator = curvature_operator(
        kind, Objective(model, F.cross_entropy), inputs, targets, generator=generator(), batch_size=batch_size
    )
    v = torch.ones(operator.n, dtype=torch.float64)
    first = operator.matvec(v)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    for p in model.parameters():
        p.data += 1  # as an optimizer does
    assert torch.equal(operator.matvec(v), first)
    model.train()
    with pytest.raises(RuntimeError, match="the network's mode has changed since it was made"):
        operator.matvec(v)
