"""Lookahead at its ends is its base or nothing; between, a cycle contracts as it must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spectral_run.optimizers.averaging import IterateAverage
from spectral_run.optimizers.base import MakeOptimizer
from spectral_run.optimizers.lookahead import Lookahead

CURVATURES = torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)


def sgd(params: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.2)  # type: ignore[arg-type]


def adamw(params: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1)  # type: ignore[arg-type]


def trajectory(make: MakeOptimizer, steps: int) -> tuple[list[Tensor], torch.optim.Optimizer]:
    """Iterates on a quadratic with three curvatures."""
    w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    optimizer = make([w])
    iterates = []

    def closure() -> float:
        w.grad = CURVATURES * w.detach()
        return float(w.detach() @ w.grad) / 2

    for _ in range(steps):
        optimizer.step(closure)
        iterates.append(w.detach().clone())
    return iterates, optimizer


@pytest.mark.parametrize("base", [sgd, adamw])
def test_one_whole_step_is_the_base(base: MakeOptimizer) -> None:
    ours, _ = trajectory(lambda p: Lookahead(p, base, k=1, alpha=1.0), 50)
    plain, _ = trajectory(base, 50)
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_without_a_step_it_stays() -> None:
    iterates, _ = trajectory(lambda p: Lookahead(p, adamw, k=1, alpha=0.0), 20)
    assert all(torch.equal(w, torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)) for w in iterates)


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.5), (3, 0.8), (1, 0.3)])
def test_a_cycle_contracts_as_in_closed_form(k: int, alpha: float) -> None:
    iterates, optimizer = trajectory(lambda p: Lookahead(p, sgd, k=k, alpha=alpha), 4 * k)
    factor = 1 - alpha + alpha * (1 - 0.2 * CURVATURES) ** k
    for cycle in range(1, 5):
        want = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64) * factor**cycle
        torch.testing.assert_close(iterates[cycle * k - 1], want, rtol=1e-13, atol=0)
    assert isinstance(optimizer, Lookahead)


def test_within_a_cycle_the_slow_weights_are_evaluated() -> None:
    iterates, optimizer = trajectory(lambda p: Lookahead(p, sgd), 8)
    assert isinstance(optimizer, Lookahead)
    slow = optimizer.averaged()
    assert slow is not None
    assert torch.equal(slow[0], iterates[4])
    assert not torch.equal(slow[0], iterates[7])


def test_before_any_step_there_is_no_average() -> None:
    assert trajectory(lambda p: Lookahead(p, sgd), 0)[1].averaged() is None  # type: ignore[attr-defined]


def test_gadam_around_lookahead() -> None:
    """Wrappers nest: groups and states reach through, a loaded state too."""

    def make(params: object) -> IterateAverage:
        inner = lambda p: Lookahead(p, adamw)  # noqa: E731
        return IterateAverage(params, inner, start=1, epochs=1, every=1)  # type: ignore[arg-type]

    iterates, optimizer = trajectory(make, 12)
    plain, _ = trajectory(lambda p: Lookahead(p, adamw), 12)
    assert torch.equal(iterates[-1], plain[-1])
    (average,) = optimizer.averaged()  # type: ignore[attr-defined]
    torch.testing.assert_close(average, torch.stack(iterates).mean(0), rtol=1e-13, atol=0)
    optimizer.load_state_dict(optimizer.state_dict())
    innermost = optimizer.base.base  # type: ignore[attr-defined]
    assert optimizer.param_groups is innermost.param_groups


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"k": 0}, "k must be at least 1, got 0"), ({"alpha": 1.5}, r"alpha must be in \[0, 1\], got 1.5")],
)
def test_refusals(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"Lookahead: {message}"):
        Lookahead([nn.Parameter(torch.zeros(1))], sgd, **settings)  # type: ignore[arg-type]
